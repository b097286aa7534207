"""What the report's page draws from: the numbers of a trace as JSON values, packed to stay small."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Stage
from sdkit.measure import ColourMap
from sdkit.noise import NoiseLevel
from sdkit.show.tiles import LOSSLESS, TILE, sheet, small, uri
from sdkit.show.view import Heat, by_step, check_picture, guided, heats, prompt_of, spread_out, standard
from sdkit.trace.record import Record
from sdkit.trace.trace import Trace

STEPS = 60  # at most, evenly spaced: of a longer run more would be seen by nobody and take the page over 3 MB
PICTURE = 768  # pixels of the finished picture, at most
HEAT = 16  # points along the longer side of a heat map
WORDS = 24  # at most


def run_values(trace: Trace, maps: Heat | None, paint: ColourMap, picture: int, points: int) -> dict[str, Any]:
    """Everything that the page knows of a run, as JSON values; what the trace lacks is None or empty."""
    check_picture(trace, picture)
    noisy = by_step(trace, Stage.LATENT) or by_step(trace, Stage.DENOISED)
    steps = spread_out(sorted(noisy), STEPS)
    ends = [record for record in trace[Stage.LATENT] if record.step is None]
    values, sharp = _values(trace, steps, ends, picture, points, paint)
    words = prompt_of(trace, picture).split() if picture else ()  # maps have the words of the first picture alone
    return beginning(trace, paint, picture, points) | {
        "steps": [_level(trace.levels.get(step), step, noisy[step]) for step in steps],
        "ends": bool(ends),
        "values": values,
        "sharp": sharp,
        "decoded": _decoded(trace, steps, picture),
        "heat": None if maps is None else _heat(maps, steps, words, picture),
        **_outcome(trace, steps, ends, picture),
    }


def beginning(trace: Trace, paint: ColourMap, picture: int, points: int) -> dict[str, Any]:
    """What is known of a run once its first step is recorded."""
    rows = trace.tokens[len(trace.tokens) // 2 if guided(trace) else 0 :] if trace.tokens else []
    first = (trace[Stage.LATENT] or trace[Stage.DENOISED])[0]
    return {
        "prompt": prompt_of(trace, picture),
        "process": trace.settings.get("process") or ("image" if trace[Stage.PIXELS] else "text"),
        "facts": _facts(trace, picture),
        "prediction": trace.settings.get("scheduler", {}).get("prediction_type", "epsilon"),
        "guidance": trace.settings.get("guidance_scale") if guided(trace) else None,
        "size": list(first.value.shape[1:]),
        "tokens": [[token.id, token.text, token.word] for token in rows[picture]] if picture < len(rows) else [],
        "text": _text(trace, picture),
        "colours": {"weight": paint.weight.tolist(), "bias": paint.bias.tolist(), "true": paint.true},
        "input": _finished(trace, Stage.PIXELS, picture),
        "encoded": _encoded(trace, picture, points),
    }


def step_values(
    trace: Trace, step: int, heat: Tensor | None, paint: ColourMap, picture: int, points: int
) -> dict[str, Any]:
    """One step of a run, as the viewer takes it, with the heat (words, h, w) in [0, 1] of its words."""
    values, sharp = _values(trace, [step], [], picture, points, paint)
    level = _level(trace.levels.get(step), step, by_step(trace, Stage.LATENT)[step])
    seen = {} if heat is None else {"heat": _bytes(heat), "heat_shape": list(heat.shape)}
    return {"level": level, "values": values, "sharp": sharp, **seen}


def ending(trace: Trace, paint: ColourMap, picture: int, points: int) -> dict[str, Any]:
    """What a run has come to, as the viewer takes it: of one that was left on its way only its path."""
    steps = sorted(by_step(trace, Stage.DENOISED))
    ends = [record for record in trace[Stage.LATENT] if record.step is None]
    values, sharp = _values(trace, [], ends, picture, points, paint) if ends else ({}, {})
    both = {name: {"x": one["x"], "x0": one["x"]} for name, one in (("values", values), ("sharp", sharp)) if one}
    return both | _outcome(trace, steps, ends, picture)


def _outcome(trace: Trace, steps: list[int], ends: list[Record], picture: int) -> dict[str, Any]:
    return {"picture": _finished(trace, Stage.IMAGE, picture), "path": _path(trace, steps, ends, picture)}


def _facts(trace: Trace, picture: int) -> list[list[str]]:
    """What made the run, as pairs of a name and its value."""
    settings = trace.settings
    seed = settings.get("seed")
    size = (
        f"{settings['width']} \u00d7 {settings['height']} pixels"
        if settings.get("width") and settings.get("height")
        else None
    )
    pairs = [
        ("seed", seed[picture] if isinstance(seed, list) and picture < len(seed) else None),
        ("steps", settings.get("start", {}).get("steps")),
        ("guidance", settings.get("guidance_scale")),
        ("strength", settings.get("strength")),
        ("not", settings.get("negative_prompt")),
        ("scheduler", settings.get("scheduler", {}).get("class", "").removesuffix("Scheduler") or None),
        ("size", size),
        ("model", settings.get("model")),
        ("words it does not know", ", ".join(settings.get("unknown_words", [])) or None),
        ("edited by", ", ".join(settings.get("edited_by", [])) or None),
    ]
    return [[name, str(value)] for name, value in pairs if value is not None]


def _level(level: NoiseLevel | None, step: int, record: Record) -> dict[str, Any]:
    if level is None:
        return {"step": step, "t": record.t, "noise": None, "snr": None, "alpha": None, "sigma": None}
    snr = level.snr if level.sigma else None
    noise, snr = round(level.noise, 4), None if snr is None else float(f"{snr:.3g}")
    return {
        "step": step,
        "t": level.t,
        "noise": noise,
        "snr": snr,
        "alpha": round(level.alpha, 4),
        "sigma": round(level.sigma, 4),
    }


def _values(
    trace: Trace,
    steps: list[int],
    ends: list[Record],
    picture: int,
    points: int,
    paint: ColourMap,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The latents of each stage at every step as numbers, and where those leave points out, small pictures as well.

    x_t and x0 end with the ends latent, where the trace has it.
    """
    end = [record.value[picture].float() for record in ends]
    noisy, clean = by_step(trace, Stage.LATENT), by_step(trace, Stage.DENOISED)
    predicted, followed = by_step(trace, Stage.NOISE), by_step(trace, Stage.GUIDED)
    two, many = guided(trace), len(next(iter(followed.values())).value) if followed else 0
    stages: dict[str, list[Tensor]] = {}
    if all(step in noisy for step in steps):
        stages["x"] = [noisy[step].value[picture].float() for step in steps] + end
    if steps and all(step in clean for step in steps):
        stages["x0"] = [clean[step].value[picture].float() for step in steps] + end
    if steps and all(step in predicted for step in steps):
        records = [predicted[step].value.float() for step in steps]
        if two:
            half = many or len(records[0]) // 2
            stages["uncond"] = [value[picture] for value in records]
            stages["cond"] = [value[half + picture] for value in records]
        else:
            stages["cond"] = [value[picture] for value in records]
    if two and steps and all(step in followed for step in steps):
        stages["guided"] = [followed[step].value[picture].float() for step in steps]
    thin = max((-(-max(value.shape[-2:]) // points) for values in stages.values() for value in values[:1]), default=1)
    bits = 16 if thin == 1 else 8
    packed = {name: _pack(torch.stack(values)[..., ::thin, ::thin], bits) for name, values in stages.items()}
    for entry in packed.values():
        entry["thin"] = thin
    scales = [trace.levels[step].scale if step in trace.levels else 1.0 for step in steps] + [1.0] * len(end)
    if "x" in packed:
        packed["x"]["spread"] = [round(scale, 5) for scale in scales]
    sharp: dict[str, str] = {}
    if thin > 1:
        for name in ("x", "x0"):
            if name in stages:
                shown = [v / scales[i] if name == "x" else v for i, v in enumerate(stages[name])]
                sharp[name] = sheet([small(paint(torch.stack(shown)))])
    return packed, sharp


def _pack(values: Tensor, bits: int = 8) -> dict[str, Any]:
    """Numbers (N, ...) as whole ones, little-endian in base64, and what each of the N is multiplied by.

    16 bits keep four digits; 8 bits keep two, and the page small where there is much to keep.
    """
    top = 2 ** (bits - 1) - 1
    reach = values.flatten(1).abs().amax(dim=1).clamp(min=1e-12)  # (N,)
    whole = (values / reach.view(-1, *[1] * (values.ndim - 1)) * top).round()
    raw = whole.to(torch.int16 if bits == 16 else torch.int8).numpy().tobytes()
    scale = [float(f"{one:.6g}") for one in (reach / top).tolist()]
    return {"shape": list(values.shape), "bits": bits, "scale": scale, "data": base64.b64encode(raw).decode()}


def _text(trace: Trace, picture: int) -> dict[str, Any] | None:
    """The text embeddings of the prompt: all tokens, every n-th of their numbers."""
    records = trace[Stage.TEXT]
    if not records:
        return None
    rows = records[0].value.float()
    half = rows[len(rows) // 2 :] if guided(trace) else rows
    if picture >= len(half):
        return None
    embeddings = half[picture][:77]  # (L, D); of a split prompt the first window
    width = embeddings.shape[1]
    kept = embeddings[:, :: max(1, width // 96)][:, :96]
    return _pack(kept[None]) | {"width": width}


def _encoded(trace: Trace, picture: int, points: int) -> dict[str, Any] | None:
    """What the encoder made of the picture to start from: the mean of its posterior, as it is, not yet scaled."""
    records = trace[Stage.POSTERIOR]
    if not records:
        return None
    mean = records[0].value.float().chunk(2, dim=1)[0][picture]  # (C, h, w)
    thin = -(-max(mean.shape[-2:]) // points)
    return _pack(mean[None, :, ::thin, ::thin]) | {"thin": thin}


def _decoded(trace: Trace, steps: list[int], picture: int) -> str | None:
    """The pictures that the trace holds of its steps, as a sheet."""
    images = by_step(trace, Stage.IMAGE)
    if not steps or not all(step in images for step in steps):
        return None
    pixels = torch.stack([images[step].value[picture].float() / 2 + 0.5 for step in steps])
    return sheet([small(pixels, 2 * TILE)])


def _heat(maps: Heat, steps: list[int], words: Sequence[str], picture: int) -> dict[str, Any] | None:
    """Heat of each word at each step as bytes; of all words that the maps have, if none are given."""
    planes = dict(list(heats(maps, steps, words=words, picture=picture).items())[:WORDS])
    if not planes or not steps:
        return None
    heat = small(torch.stack(list(planes.values()), dim=1), HEAT)  # (N, words, h, w)
    return {"words": list(planes), "shape": list(heat.shape), "data": _bytes(heat)}


def _bytes(heat: Tensor) -> str:
    return base64.b64encode((heat * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def _path(trace: Trace, steps: list[int], ends: list[Record], picture: int) -> dict[str, Any] | None:
    """x_t and x0 in the two directions in which the run moves most, each ending in the ends latent."""
    noisy, clean = by_step(trace, Stage.LATENT), by_step(trace, Stage.DENOISED)
    if len(steps) < 2 or any(step not in noisy or step not in clean for step in steps):
        return None
    end = [record.value[picture].float() for record in ends]
    walks = [
        torch.stack([standard(trace, noisy[step], picture) for step in steps] + end).flatten(1),
        torch.stack([clean[step].value[picture].float() for step in steps] + end).flatten(1),
    ]
    flat = torch.cat(walks)
    mean = flat.mean(dim=0)
    _, spread, rows = torch.linalg.svd(flat - mean, full_matrices=False)
    share = (spread.square() / spread.square().sum())[:2]
    x, x0 = (((walk - mean) @ rows[:2].T).double().round(decimals=2).tolist() for walk in walks)
    return {"x": x, "x0": x0, "share": [round(one, 3) for one in share.tolist()]}


def distances(trace: Trace, other: Trace, pages: Sequence[dict[str, Any]], picture: int) -> list[dict[str, Any]]:
    """How far the two runs are apart at the steps that both have, as shares of the length of the first."""
    shown = {level["step"] for level in pages[0]["steps"]}
    rows = []
    for step in sorted(shown):
        row: dict[str, Any] = {"step": step}
        for name, stage in (("x", Stage.LATENT), ("x0", Stage.DENOISED)):
            ours, theirs = by_step(trace, stage).get(step), by_step(other, stage).get(step)
            if ours is not None and theirs is not None and ours.value[0].shape == theirs.value[0].shape:
                a, b = ours.value[picture].double(), theirs.value[picture].double()
                row[name] = float(f"{((a - b).norm() / a.norm()).item():.4g}")
        if len(row) > 1:
            rows.append(row)
    return rows


def _finished(trace: Trace, stage: Stage, picture: int) -> str | None:
    """The picture that a run made, or started from, as a data URI."""
    records = [record for record in trace[stage] if record.step is None]
    if not records:
        return None
    pixels = records[-1].value[picture].float() / 2 + 0.5
    return uri(small(pixels[None], PICTURE)[0], 90 if max(pixels.shape[-2:]) > LOSSLESS else None)
