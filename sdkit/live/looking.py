"""What visitors may ask for beside runs: a picture noised or inspected, a film of two prompts, a file opened again."""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from sdkit.events import Event, Stage, on
from sdkit.inputs.arguments import GIVEN
from sdkit.latents.autoencoder import round_trip
from sdkit.latents.statistics import describe
from sdkit.live import limits, uploads
from sdkit.live.files import settings_in, trace_in
from sdkit.live.kept import Kept
from sdkit.live.runs import Messages, allowed, follow, method_hooks
from sdkit.live.studio import METHODS, Studio
from sdkit.model import schedulers
from sdkit.model.model import Model
from sdkit.pictures import to_pixels
from sdkit.process.prepare import prepare
from sdkit.show.report import POINTS
from sdkit.show.report_values import run_values
from sdkit.show.tiles import uri
from sdkit.tasks.again import ACTED, NOT_HELD, recorded
from sdkit.tasks.diffuse import diffuse
from sdkit.tasks.generate import result_of, stages
from sdkit.tasks.interpolate import Walk
from sdkit.tasks.interpolate import interpolate as walk_between
from sdkit.trace.trace import Trace
from sdkit.unet.maps import AttentionMaps

LEVELS = 12  # of noise, on the way of a picture that is inspected


def noised(studio: Studio, image: Any, *, model: str = "", **options: Any) -> Messages:
    """A picture as image to image begins with it: decoded, with its level of noise."""
    loaded = studio.model(model)
    start = uploads.fitted(uploads.picture(image), loaded.size)
    events = stages("", image=start, model=loaded, **{"guidance_scale": 1.0, **allowed(options)})
    for event in events:
        if event.stage is Stage.LATENT:
            level = event.run.levels[event.step]
            pixels = loaded.decode(event.value / level.scale)[0].float().cpu() / 2 + 0.5
            steps = event.run.record["start"]["steps"]
            yield [{"kind": "noised", "picture": uri(pixels, 90), "t": level.t, "noise": level.noise, "steps": steps}]
            break
    events.close()


def inspect(studio: Studio, image: Any, *, model: str = "") -> Messages:
    """A picture through the autoencoder and back, in numbers, and its way to noise as a run to look at."""
    loaded, paint = studio.model(model), studio.colours(model)
    fitted = uploads.fitted(uploads.picture(image), loaded.size)
    back, trace = round_trip(fitted, model=loaded), diffuse(fitted, LEVELS, model=loaded, seed=0)
    kept = Kept(trace, model=model)
    studio.shelf.put(kept)
    named = {
        "The picture": back.originals,
        "There and back": back.images,
        "What changed, four times": back.differences,
    }
    yield [
        {"kind": "recorded", "run": kept.name, "told": run_values(trace, None, paint, 0, POINTS)},
        {
            "kind": "round_trip",
            "pictures": [[title, uri(to_pixels(one, signed=False)[0])] for title, (one,) in named.items()],
            "text": f"{back}\n\n{describe(back.latents)}",
        },
    ]


def interpolate(studio: Studio, start: Any, end: Any, *, frames: int, model: str = "", **options: Any) -> Messages:
    """A film from one prompt to another, each frame told as it comes."""
    loaded = studio.model(model)
    ends = limits.text("start", start), limits.text("end", end)
    limits.at_most("frames", frames, limits.FRAMES)
    given, drawn, left = allowed(options), SimpleQueue[Any](), threading.Event()

    @on(Stage.DENOISED, Stage.IMAGE)
    def tell(event: Event) -> None:
        if left.is_set():
            raise InterruptedError("nobody is looking any more")
        if event.stage is Stage.IMAGE:
            drawn.put(event.value)

    def walk() -> None:
        try:
            drawn.put(walk_between(*ends, frames=frames, model=loaded, hooks=[tell], **given))
        except Exception as error:
            drawn.put(error)

    thread = threading.Thread(target=walk, daemon=True)
    thread.start()
    try:
        while True:
            one = drawn.get()
            if isinstance(one, Exception):
                raise one
            if isinstance(one, Walk):
                break
            yield [{"kind": "frame", "picture": uri(one[0].float().cpu() / 2 + 0.5)}]
    finally:
        left.set()
        thread.join()
    with TemporaryDirectory() as folder:
        film = one.save(Path(folder, "film.gif")).read_bytes()
    yield [{"kind": "film", "film": "data:image/gif;base64," + base64.b64encode(film).decode()}]


def restore(studio: Studio, file: Any) -> Messages:
    """A file that sdkit saved: the settings of a PNG, for the page to make it again; of a trace the run as well.

    Raises:
        ValueError: it is neither, or was made by a model that this page does not have, or from what it does not hold.
    """
    raw = uploads.uploaded(file)
    picture = raw.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF"))
    trace = None if picture else trace_in(raw)
    settings = settings_in(raw) if trace is None else trace.settings
    name = studio.maker(settings)
    model, paint = studio.model(name), studio.colours(name)
    check_restored(settings, model)
    edits = [*settings.get("edited_by", ()), *(one for one in ACTED if one in settings)]
    method = next((one for one in edits if one in METHODS), "")
    scheduler = schedulers.named(settings.get("scheduler") or {}, model.scheduler)
    yield [{"kind": "settings", "settings": settings, "model": name, "scheduler": scheduler or "", "method": method}]
    if trace is None:
        if missing := [one for one in (*GIVEN, *NOT_HELD) if settings.get(one)]:
            raise ValueError(f"this picture was made from {missing[0]}, which its file does not hold; give it again")
        if others := [one for one in edits if one != method]:
            raise ValueError(f"this picture was changed on its way by {others[0]}, which its trace holds; open that")
        values, stepper = recorded(settings)
        trace, maps = Trace(), AttentionMaps()
        events = result_of(prepare(values, model, stepper, hooks=[*method_hooks(method), maps, trace]))
        yield from follow(studio, Kept(trace, maps, model=name, method=method), events, paint)
        return
    check_latents(trace, model)
    kept = Kept(trace, model=name, method=method, branched=trace.parent is not None)
    studio.shelf.put(kept)
    yield [{"kind": "recorded", "run": kept.name, "told": run_values(trace, None, paint, 0, POINTS)}]


def check_restored(settings: Mapping[str, Any], model: Model) -> None:
    """See to it that going on with what somebody has brought takes no more than a run of this page.

    Raises:
        ValueError: it would, or it is no run of one picture.
    """
    height, width = model.size
    if settings.get("process"):
        raise ValueError("this is no run from noise to a picture; open one that is")
    alone = settings.get("num_images_per_prompt") == 1 and isinstance(settings.get("prompt"), str)
    if not alone or (settings.get("height"), settings.get("width")) != model.size:
        raise ValueError(f"this page opens runs of one picture of {width} x {height} pixels")
    start = settings.get("start")
    steps = start.get("steps") if isinstance(start, Mapping) else None
    lists = [len(settings.get(one) or ()) for one in ("timesteps", "sigmas")]
    if type(steps) is not int or max(steps, settings.get("num_inference_steps") or 0, *lists) > limits.STEPS:
        raise ValueError(f"this page opens runs of at most {limits.STEPS} steps")


def check_latents(trace: Trace, model: Model) -> None:
    """See to it that a trace has latents of this model.

    Raises:
        ValueError: it has none, or others.
    """
    latents = [*trace[Stage.LATENT], *trace[Stage.DENOISED]]
    if not latents or latents[0].value.shape != model.latent_shape(1, *model.size):
        raise ValueError("this trace holds no latents of this model to show")
