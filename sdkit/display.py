"""How values show themselves in a notebook: as plain HTML that needs no extension and no server.

Each output holds its own script, which finds nothing but its own output, so any number of them share a page. Where
scripts do not run (on GitHub, in a notebook that is not trusted) a strip of pictures stays.
"""

from __future__ import annotations

import html
import json
import secrets
from importlib import resources
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdkit.events import Stage
from sdkit.pictures import contact_sheet
from sdkit.reading import Heat, by_step, colours, heats, levels, prompt_of, spread_out, standard
from sdkit.tiles import LOSSLESS, heat_colours, sheet, small, uri
from sdkit.trace import Trace

STEPS = 60  # at most, evenly spaced
STRIP = 10  # pictures in the strip that stays without a script
HEAT = 32  # points along a side of a heat map


def show_result(result: Any) -> str:
    """A `Result`: its pictures, the words and the settings that made them."""
    told = result.settings
    prompt = told.get("prompt")
    name = prompt if isinstance(prompt, str) else " / ".join(prompt or [])
    page = result.images[0] if len(result.images) == 1 else contact_sheet(result.images)
    facts = [
        ("seed", ", ".join(map(str, result.seeds or [])) or None),
        ("steps", told.get("start", {}).get("steps")),
        ("guidance", told.get("guidance_scale")),
        ("scheduler", told.get("scheduler", {}).get("class", "").removesuffix("Scheduler") or None),
        ("model", told.get("model")),
    ]
    return _page(_heading(name, facts) + _picture(_pixels(page), name, min(512, max(page.width, 256))))


def show_trace(trace: Trace) -> str:
    """A `Trace`: a scrubber over its steps, with what each was given, what it believed, and the picture at the end."""
    noisy, clean = by_step(trace, Stage.LATENT), by_step(trace, Stage.DENOISED)
    steps = spread_out(sorted(noisy or clean), STEPS)
    if not steps:
        return _page(f"<p>{html.escape(repr(trace))}</p>")
    known, paint = levels(trace), colours(trace)
    panes = []
    for found, title in ((noisy, "what the step is given"), (clean, "what it believes")):
        if all(step in found for step in steps):
            values = torch.stack([standard(found[step], known if found is noisy else {}) for step in steps])
            panes.append((title, [small(paint(values))]))
    end = [record for record in trace[Stage.IMAGE] if record.step is None]
    labels = [
        f"step {step}" + (f", t = {known[step].t}, {known[step].noise:.0%} noise" if step in known else "")
        for step in steps
    ]
    final = _picture(end[0].value[0].float() / 2 + 0.5, prompt_of(trace), 224, "the picture") if end else ""
    facts = [("steps", len(trace.steps)), ("pictures", len((noisy or clean)[steps[0]].value))]
    return _page(_heading(prompt_of(trace) or "a run", facts) + _scrubber(panes, labels, [], final))


def show_maps(maps: Heat) -> str:
    """`AttentionMaps`: words to click and a scrubber over the steps."""
    steps = spread_out(list(maps.steps), STEPS)
    found = heats(maps, steps)
    if not found:
        return _page("<p>no attention was recorded yet</p>")
    words, rows = list(found), [heat_colours(small(heat[:, None], HEAT)[:, 0]) for heat in found.values()]
    facts = [("words", len(words)), ("steps", len(maps.steps))]
    return _page(_heading("where each word acts", facts) + _scrubber([("", rows)], [f"step {s}" for s in steps], words))


def show_latents(latents: Any) -> str:
    """`Latents`: the channels of the mean, each with its numbers."""
    mean, std = latents.mean.float().cpu(), latents.std.float().cpu()  # (B, C, h, w)
    reach = float(mean.abs().max()) or 1.0
    cells = []
    for number, (plane, spread) in enumerate(zip(mean[0], std[0], strict=True)):
        told = f"mean {plane.mean():.2f}<br>std {plane.std():.2f}<br>± {spread.mean():.3f}"
        grey = (plane / reach / 2 + 0.5).expand(3, -1, -1)
        cells.append(_picture(small(grey[None], 128)[0], f"channel {number}", 128, f"channel {number}<br>{told}", True))
    shape = " \u00d7 ".join(map(str, mean.shape[1:]))
    return _page(_heading("latents", [("pictures", len(mean)), ("numbers each", shape)]) + "".join(cells))


# ---------------------------------------------------------------------------------------------------------------------


def _page(inner: str) -> str:
    template = resources.files("sdkit").joinpath("display.html").read_text(encoding="utf-8")
    return template.replace("__ID__", f"sdkit-{secrets.token_hex(6)}").replace("<!--inner-->", inner)


def _heading(name: str, facts: list[tuple[str, Any]]) -> str:
    told = " · ".join(f"{key} {html.escape(str(value))}" for key, value in facts if value is not None)
    return f'<div class="head"><b>{html.escape(name)}</b><span>{told}</span></div>'


def _picture(pixels: Tensor, alt: str, width: int, caption: str = "", pixelated: bool = False) -> str:
    source = uri(small(pixels[None], 768)[0], 90 if max(pixels.shape[-2:]) > LOSSLESS else None)
    kind = ' class="dots"' if pixelated else ""
    shown = f'<img{kind} src="{source}" width="{width}" alt="{html.escape(alt or "the picture", quote=True)}">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


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
    told = html.escape(json.dumps(labels), quote=True)
    return (
        f'<img class="strip dots" src="{sheet(strip, None)}" alt="{alt}">'
        f'<div class="live" hidden data-labels="{told}" data-rows="{max(len(rows) for _, rows in panes)}">'
        f'<div class="words" role="group" aria-label="Words">{buttons}</div>'
        f'<div class="panes">{"".join(shown)}{final}</div>'
        f'<label><input type="range" min="0" max="{many - 1}" value="{many // 3}" step="1" aria-label="Step">'
        f"<output></output></label></div>" + (f'<div class="rest">{final}</div>' if final else "")
    )


def _pixels(picture: Image.Image) -> Tensor:
    whole = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return whole.view(picture.height, picture.width, 3).movedim(-1, 0).float() / 255
