"""Runs as visitors ask for them: each a stream of messages, plain JSON values, as `viewer/run.js` takes them.

Nothing of a run is written again here: `sdkit.stages` and branches of traces are driven, a `Trace` and `AttentionMaps`
record, and what they have recorded is told.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from types import MappingProxyType
from typing import Any

from sdkit import hooks as gallery
from sdkit.events import Event, Hook, Stage
from sdkit.inputs.checks import pick, whole
from sdkit.live import limits, painting, uploads
from sdkit.live.kept import BranchedHeat, Kept, listed
from sdkit.live.studio import METHODS, Studio
from sdkit.measure import ColourMap
from sdkit.show.report import POINTS
from sdkit.show.report_values import HEAT, WORDS, beginning, ending, step_values
from sdkit.tasks.again import branching
from sdkit.tasks.generate import stages
from sdkit.trace.trace import Trace
from sdkit.unet.maps import AttentionMaps

Messages = Generator[list[dict[str, Any]]]
OF_WORDS = (  # what `compare` takes for each of its runs
    *("prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "scheduler", "method", "model"),
)
EVERY = 0.05  # seconds between messages, at least: what comes sooner is told together


def generate(studio: Studio, prompt: Any, *, model: str = "", method: str = "", **options: Any) -> Messages:
    """A run from words, or with `image` from a picture; options are those of `stages` that a page has."""
    loaded, paint = studio.model(model), studio.colours(model)
    words, options = limits.text("prompt", prompt), allowed(options)
    if "image" in options:
        options["image"] = uploads.fitted(uploads.picture(options["image"]), loaded.size)
    if "mask_image" in options:
        options["mask_image"] = uploads.fitted(uploads.picture(options["mask_image"]), loaded.size)
    trace, maps = Trace(), AttentionMaps()
    events = stages(words, model=loaded, hooks=[*method_hooks(method), maps, trace], **options)
    kept = Kept(trace, maps, model=model, method=method)
    yield from follow(studio, kept, events, paint, {"unknown": loaded.unknown_words(words)})


def compare(studio: Studio, a: Any, b: Any) -> Messages:
    """Two runs from words that advance together, a step of the one and a step of the other. Each message says of which
    `side` it tells: 0 or 1.

    Args:
        a: the arguments of the one, by name, and `b` those of the other.
    """
    for given in (a, b):
        if not isinstance(given, Mapping) or "prompt" not in given:
            raise ValueError('each side of a comparison is given as its arguments, such as {"prompt": "a red star"}')
        for name in given:
            pick("argument", name, OF_WORDS)
    sides = {side: generate(studio, **given) for side, given in enumerate((a, b))}
    with ExitStack() as both:
        for stream in sides.values():
            both.enter_context(closing(stream))
        while sides:
            for side, stream in list(sides.items()):
                if told := next(stream, None):
                    yield [{**message, "side": side} for message in told]
                else:
                    del sides[side]


def go_on(
    studio: Studio, run: Any, step: Any, *, steps: Any = None, paint: Any = None, look: Any = None, **changes: Any
) -> Messages:
    """A kept run from one of its steps on: with other words or guidance, colours on the picture that this step
    predicts, or a word that is to act where it is painted.

    Args:
        steps: so many, and then a pause.
    """
    parent = studio.shelf.get(run)
    model, colours = studio.model(parent.model), studio.colours(parent.model)
    step, changes = whole("step", step, at_least=0), allowed(changes)
    hooks = method_hooks(parent.method)
    if paint:
        hooks.append(painting.colours(paint, step))
    if look:
        hooks.append(painting.looks(look))
    maps = AttentionMaps()
    trace, events = branching(parent.trace, step, hooks=[*hooks, maps], model=model, changes=changes)
    last = None if steps is None else step + whole("steps", steps, at_least=1) - 1
    kept = Kept(
        trace, BranchedHeat(parent.maps, step, maps), model=parent.model, method=parent.method, last=last,
        branched=parent.branched or bool(changes or paint or look),
    )  # fmt: skip
    words = changes.get("prompt", parent.trace.prompt or "")
    more = {"parent": parent.name, "from": step, "unknown": model.unknown_words(words)}
    yield from follow(studio, kept, events, colours, more, parent.trace, range(step))


def follow(
    studio: Studio,
    kept: Kept,
    events: Generator[Event, None, Any],
    paint: ColourMap,
    more: Mapping[str, Any] = MappingProxyType({}),
    parent: Trace | None = None,
    before: Sequence[int] = (),
) -> Messages:
    """Drive a run, and tell each step when it is complete. It ends within a step when whoever listens has left."""
    trace, maps, words = kept.trace, kept.maps, None
    studio.shelf.put(kept)
    waiting: list[dict[str, Any]] = [{"kind": "queued", "run": kept.name, **more}]
    yield waiting
    waiting, last, seen, paused = [], 0.0, -1, False

    def step(number: int) -> list[dict[str, Any]]:
        nonlocal words
        first = []
        if words is None:
            words = listed(maps, WORDS)
            count = trace.settings["start"]["steps"]
            begin = beginning(trace, paint, 0, POINTS) | {"steps": count, "words": words, "run": kept.name}
            first = [{"kind": "begin", "seed": trace.settings["seed"][0], **begin, **more}]
            first += [_step(parent, one, maps, words, paint) for one in before if parent is not None]
        return [*first, _step(trace, number, maps, words, paint)]

    try:
        for event in events:
            if event.stage is Stage.LATENT and seen >= 0:
                waiting += step(seen)
                seen = -1
                if time.monotonic() - last >= EVERY:
                    yield waiting
                    waiting, last = [], time.monotonic()
            if event.stage is Stage.DENOISED:
                assert event.step is not None
                seen = event.step
                if kept.wish == "stop":
                    event.run.stop()
                elif kept.wish == "pause" or (seen == kept.last and seen + 1 < len(event.run.visits)):
                    paused = True
                    break
    finally:
        events.close()
        studio.shelf.put(kept)
    if seen >= 0:
        waiting += step(seen)
    outcome = ending(trace, paint, 0, POINTS)
    yield [*waiting, {"kind": "end", "run": kept.name, "paused": paused, **outcome}]


def _step(trace: Trace, step: int, maps: Any, words: Sequence[str], paint: ColourMap) -> dict[str, Any]:
    h, w = trace[Stage.LATENT][0].value.shape[-2:]
    size = (max(1, round(HEAT * h / max(h, w))), max(1, round(HEAT * w / max(h, w))))
    heat = maps.heats(words, step=step, size=size) if words else None
    return {"kind": "step", **step_values(trace, step, heat, paint, 0, POINTS)}


def method_hooks(name: str) -> list[Hook]:
    return [getattr(gallery, pick("method", name, METHODS))()] if name else []


def allowed(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of these options, within what this page allows; what they are otherwise is checked by the run."""
    given = {name: value for name, value in options.items() if value is not None and value != ""}
    for name in ("prompt", "negative_prompt"):
        if name in given:
            limits.text(name, given[name])
    limits.at_most("num_inference_steps", given.get("num_inference_steps"), limits.STEPS)
    limits.at_most("guidance_scale", given.get("guidance_scale"), limits.GUIDANCE)
    return given
