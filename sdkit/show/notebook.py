"""How values show themselves in a notebook: as plain HTML that needs no extension and no server.

Each output holds its own script, which finds nothing but its own output, so any number of them share a page. Where
scripts do not run (on GitHub, in a notebook that is not trusted) a strip of pictures stays.
"""

from __future__ import annotations

import html
import json
import secrets
from functools import singledispatch
from importlib import resources
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdkit.events import Stage
from sdkit.latents.autoencoder import Latents, RoundTrip
from sdkit.model.model import Model
from sdkit.process.result import Result
from sdkit.show.tiles import LOSSLESS, heat_colours, sheet, small, uri
from sdkit.show.view import by_step, colours, heats, noise_share, prompt_of, spread_out, standard
from sdkit.trace.trace import Trace
from sdkit.unet.maps import AttentionMaps

STEPS = 60  # at most, evenly spaced
STRIP = 10  # pictures in the strip that stays without a script
HEAT = 32  # points along a side of a heat map


@singledispatch
def show_html(value: Any) -> str:
    """A value as a notebook shows it, by its class; one without a display of its own as it is printed."""
    text = str(value)
    return _page(f"<pre>{html.escape(text)}</pre>" if "\n" in text else f"<p>{html.escape(text)}</p>")


@show_html.register
def result_html(result: Result) -> str:
    """Its pictures, the words and the settings that made them."""
    settings = result.settings
    prompt = settings.get("prompt")
    name = prompt if isinstance(prompt, str) else " / ".join(prompt or [])
    facts = [
        ("seed", ", ".join(map(str, result.seeds or [])) or None),
        ("steps", settings.get("start", {}).get("steps")),
        ("guidance", settings.get("guidance_scale")),
        ("scheduler", settings.get("scheduler", {}).get("class", "").removesuffix("Scheduler") or None),
        ("model", settings.get("model")),
        ("words it does not know", ", ".join(settings.get("unknown_words", [])) or None),
    ]
    return _page(_heading(name, facts) + _whole(result.page, name))


@show_html.register
def trace_html(trace: Trace) -> str:
    """A scrubber over its steps, with the latent before each, the x0 that it predicted, and the picture at the end."""
    noisy, clean = by_step(trace, Stage.LATENT), by_step(trace, Stage.DENOISED)
    steps = spread_out(sorted(noisy or clean), STEPS)
    if not steps:
        return _page(f"<p>{html.escape(repr(trace))}</p>")
    paint = colours(trace)
    panes = []
    if all(step in noisy for step in steps):
        values = torch.stack([standard(trace, noisy[step]) for step in steps])
        panes.append(("the latent before the step", [small(paint(values))]))
    if all(step in clean for step in steps):
        values = torch.stack([clean[step].value[0].float() for step in steps])
        panes.append(("the x0 that it predicts", [small(paint(values))]))
    end = [record for record in trace[Stage.IMAGE] if record.step is None]
    labels = [
        f"step {step}" + (f", t = {trace.levels[step].t}, {noise_share(trace, step)}" if step in trace.levels else "")
        for step in steps
    ]
    final = _picture(end[0].value[0].float() / 2 + 0.5, prompt_of(trace), 224, "the picture") if end else ""
    facts = [("steps", len(trace.steps)), ("pictures", len((noisy or clean)[steps[0]].value))]
    return _page(_heading(prompt_of(trace) or "a run", facts) + _scrubber(panes, labels, [], final))


@show_html.register
def maps_html(maps: AttentionMaps) -> str:
    """Words to click and a scrubber over the steps."""
    steps = spread_out(list(maps.steps), STEPS)
    planes = heats(maps, steps)
    if not planes:
        return _page("<p>no attention was recorded yet</p>")
    words, rows = list(planes), [heat_colours(small(heat[:, None], HEAT)[:, 0]) for heat in planes.values()]
    facts = [("words", len(words)), ("steps", len(maps.steps))]
    return _page(_heading("where each word acts", facts) + _scrubber([("", rows)], [f"step {s}" for s in steps], words))


@show_html.register
def latents_html(latents: Latents) -> str:
    """The channels of the mean, each with its numbers."""
    mean, std = latents.mean.float().cpu(), latents.std.float().cpu()  # (B, C, h, w)
    reach = float(mean.abs().max()) or 1.0
    cells = []
    for number, (plane, spread) in enumerate(zip(mean[0], std[0], strict=True)):
        numbers = f"mean {plane.mean():.2f}<br>std {plane.std():.2f}<br>± {spread.mean():.3f}"
        grey = (plane / reach / 2 + 0.5).expand(3, -1, -1)
        cells.append(
            _picture(small(grey[None], 128)[0], f"channel {number}", 128, f"channel {number}<br>{numbers}", True)
        )
    shape = " \u00d7 ".join(map(str, mean.shape[1:]))
    return _page(_heading("latents", [("pictures", len(mean)), ("numbers each", shape)]) + "".join(cells))


@show_html.register
def round_trip_html(trip: RoundTrip) -> str:
    """Pictures, what came back of them, and the difference, with what it cost in numbers."""
    rows = []
    for number, (before, after, apart) in enumerate(zip(trip.originals, trip.images, trip.differences, strict=True)):
        lost = f"what came back: PSNR {trip.psnr[number]:.2f} dB"
        shown = (before, "the picture"), (after, lost), (apart, "the difference, four times as strong")
        rows.append("".join(_whole(one, caption, caption) for one, caption in shown))
    return _page(_heading("there and back", []) + "<br>".join(rows[:STRIP]) + f"<pre>{html.escape(str(trip))}</pre>")


@show_html.register
def model_html(model: Model) -> str:
    """What it is, what it does by default, and the words that it knows, where it lists them."""
    height, width = model.size
    facts = [
        ("pipeline", type(model.pipeline).__name__),
        ("pictures of", f"{width}x{height}"),
        ("computes in", f"{str(model.dtype).removeprefix('torch.')} on {model.device}"),
        ("scheduler", type(model.scheduler).__name__.removesuffix("Scheduler")),
        ("predicts", model.scheduler.config.prediction_type),
        ("steps", model.num_inference_steps),
        ("guidance", model.guidance_scale),
    ]
    known = f"<p>It knows these words: {html.escape(' '.join(model.vocabulary))}</p>" if model.vocabulary else ""
    return _page(_heading(model.name, facts) + known)


def frames_html(name: str, facts: list[tuple[str, Any]], frames: list[Image.Image], labels: list[str]) -> str:
    """Pictures that a slider moves through."""
    shown = spread_out(range(len(frames)), STEPS)
    rows = [small(torch.stack([_pixels(frames[i]) for i in shown]), 256)]
    return _page(_heading(name, facts) + _scrubber([("", rows)], [labels[i] for i in shown], []))


# ---------------------------------------------------------------------------------------------------------------------


def _page(inner: str) -> str:
    template = resources.files("sdkit.show").joinpath("notebook.html").read_text(encoding="utf-8")
    return template.replace("__ID__", f"sdkit-{secrets.token_hex(6)}").replace("<!--inner-->", inner)


def _heading(name: str, facts: list[tuple[str, Any]]) -> str:
    listed = " · ".join(f"{key} {html.escape(str(value))}" for key, value in facts if value is not None)
    return f'<div class="head"><b>{html.escape(name)}</b><span>{listed}</span></div>'


def _picture(pixels: Tensor, alt: str, width: int, caption: str = "", pixelated: bool = False) -> str:
    source = uri(small(pixels[None], 768)[0], 90 if max(pixels.shape[-2:]) > LOSSLESS else None)
    kind = ' class="dots"' if pixelated else ""
    shown = f'<img{kind} src="{source}" width="{width}" alt="{html.escape(alt or "the picture", quote=True)}">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _whole(picture: Image.Image, alt: str, caption: str = "") -> str:
    return _picture(_pixels(picture), alt, min(512, max(picture.width, 256)), html.escape(caption))


def _scrubber(panes: list[tuple[str, list[Tensor]]], labels: list[str], words: list[str], final: str = "") -> str:
    """Panes, each a title and rows of small pictures (N, 3, h, w), that a slider moves through together."""
    many, shown, strip = len(labels), [], []
    for title, rows in panes:
        h, w = rows[0].shape[-2:]
        source = sheet(rows, None if max(h, w) <= 32 else 80)
        shown.append(
            f'<figure><div class="pane" role="img" aria-label="{title or "heat"}" style="aspect-ratio:{w}/{h};'
            f'background-image:url({source});background-size:{many * 100}% {len(rows) * 100}%"></div>'
            f"<figcaption>{title}</figcaption></figure>"
        )
        chosen = spread_out(range(many), STRIP)
        strip += [row[torch.tensor(chosen)] for row in rows]
    buttons = "".join(
        f'<button type="button" data-row="{i}" aria-pressed="{str(i == 0).lower()}">{html.escape(word)}</button>'
        for i, word in enumerate(words)
    )
    rows_of_strip = words or [title for title, _ in panes]
    alt = html.escape(f"some steps from first to last, row by row: {', '.join(rows_of_strip)}", quote=True)
    encoded = html.escape(json.dumps(labels), quote=True)
    return (
        f'<img class="strip dots" src="{sheet(strip, None)}" alt="{alt}">'
        f'<div class="live" hidden data-labels="{encoded}" data-rows="{max(len(rows) for _, rows in panes)}">'
        f'<div class="words" role="group" aria-label="Words">{buttons}</div>'
        f'<div class="panes">{"".join(shown)}{final}</div>'
        f'<label><input type="range" min="0" max="{many - 1}" value="{many // 3}" step="1" aria-label="Step">'
        f"<output></output></label></div>" + (f'<div class="rest">{final}</div>' if final else "")
    )


def _pixels(picture: Image.Image) -> Tensor:
    whole = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return whole.view(picture.height, picture.width, 3).movedim(-1, 0).float() / 255
