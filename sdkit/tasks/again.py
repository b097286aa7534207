"""A recorded run again: from the settings in its file, or from one of the steps in its trace on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Generator, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sdkit.events import Event, Hook, Stage, checked
from sdkit.files import settings_text
from sdkit.inputs.arguments import GIVEN, Settings
from sdkit.inputs.checks import pick
from sdkit.inputs.paths import TINY
from sdkit.inputs.record import check_record
from sdkit.model import schedulers
from sdkit.model.loading import load
from sdkit.pictures import same_pixels
from sdkit.process.materials import EMBEDS, History, Pictures, pictures_for
from sdkit.process.prepare import prepare
from sdkit.process.result import Result
from sdkit.progress import driven
from sdkit.tasks.generate import made, result_of
from sdkit.trace.record import value_of
from sdkit.trace.trace import Trace

NOT_HELD = (
    "latents",
    *EMBEDS,
    "ip_adapter_image_embeds",
    "masked_image_latents",
    "cross_attention_kwargs",
)  # tensors that a record mentions and does not hold
ACTED = ("stopped_after", "visited", "given")  # what hooks asked of the run, beside edits
NEEDED = ("prompt", "seed", "model", "scheduler", "versions", "index")  # in a PNG that is to be made again
CHANGES = ("prompt", "negative_prompt", "guidance_scale", "guidance_rescale")  # that a branch may make


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a picture of sdkit carries, which is a PNG, a JPEG or a WebP.

    Returns:
        The settings, as `Result.settings` has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file carries none, or they are damaged.

    Example:
        >>> sdkit.read_settings("star.png")["prompt"]
        'a red star on a blue background'
    """
    return _settings_in(path)


def _settings_in(path: str | Path, needed: Iterable[str] = ()) -> dict[str, Any]:
    text = settings_text(path)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the settings in {path} are damaged: {error}") from error
    return check_record(record, str(path), needed)


def rerun(
    path: str | Path,
    *,
    image: Any = None,
    mask_image: Any = None,
    control_image: Any = None,
    ip_adapter_image: Any = None,
    model: Any = None,
    trust_model: bool = False,
    hooks: Iterable[Hook] = (),
) -> Result:
    """A picture that sdkit saved, generated again: the same pixels where the surroundings are the same.

    Where they are not (another version, device, precision or other weights) a warning says what differs, and another
    where the file holds other pixels than it should. Of a JPEG they are compared as JPEG keeps them.

    Args:
        path: the PNG, JPEG or WebP. Of several pictures that were made together, all are made again, and this one is
            returned.
        image, mask_image, control_image, ip_adapter_image: the pictures that it was made from, which a file does not
            carry.
        model: what `load` takes; by default the embedded model, if it made the picture.
        trust_model: load whatever model the settings name instead. Whoever made the file has chosen that name.
        hooks: those that edited the run, which a file does not carry either.

    Returns:
        That one picture, its clean latents (1, C, h, w), and the settings that made it.

    Raises:
        ValueError: the file carries no settings, or its run started from something that settings cannot hold.

    Example:
        >>> sdkit.rerun("star.png").save("again.png")
    """
    record, hooks = _settings_in(path, NEEDED), checked(hooks)
    if missing := [name for name in NOT_HELD if record.get(name)] + ["a generator"] * (record["seed"] is None):
        raise ValueError(f"{path} was made from {missing[0]}, which its settings do not hold; it cannot be rerun")
    pictures = dict(zip(GIVEN, (image, mask_image, control_image, ip_adapter_image), strict=True))
    for name, picture in pictures.items():
        if (record.get(name) is None) != (picture is None):
            advice = f"give that picture as {name}" if picture is None else f"leave {name} out"
            raise ValueError(f"{path} was made {'without' if picture is not None else 'from'} {name}; {advice}")
    edited_by = [*record.get("edited_by", []), *(name for name in ACTED if name in record)]
    if edited_by and not hooks:
        names = ", ".join(edited_by)
        warnings.warn(f"{path} was edited by hooks, which settings do not hold: {names}; give them again", stacklevel=2)
    model = load(_chosen(record["model"], str(path), trust_model) if model is None else model)
    settings, scheduler = recorded(record)
    prepared = prepare(settings, model, scheduler, hooks=hooks, pictures=pictures_for(model, settings, **pictures))
    index, many = record["index"], prepared.settings.pictures
    if not 0 <= index < many:
        raise ValueError(f"the settings in {path} are damaged: there is no picture {index} among {many}")
    result = made(prepared)
    differs = differences(record, result.settings)
    if differs:
        warnings.warn(f"{path} may come out otherwise: {'; '.join(differs)}", stacklevel=2)
    same = not differs and all(result.settings.get(name) == record.get(name) for name in ("edited_by", *ACTED))
    if same and not same_pixels(path, result.images[index]):
        warnings.warn(
            f"the pixels in {path} are not those that its settings make here: it was changed after it was made, or "
            "another processor made it",
            stacklevel=2,
        )
    settings_now = record if same else result.settings  # what is saved says what made it
    return Result([result.images[index]], result.latents[index : index + 1], result.seeds, settings_now, first=index)


def _chosen(name: Any, source: str, trust_model: bool) -> Any:
    """The name of the model that a file names, if it may: a stranger's file does not choose what is loaded."""
    if name != TINY and not trust_model:
        raise ValueError(
            f"{source} names the model {name!r}, which is not loaded because a file names it: give the model yourself "
            "(model=, or --model on the command line), or trust_model=True if you trust that name"
        )
    return name


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two records of runs, but for what is the run's own to choose."""
    names = ("model_hash", *GIVEN, "device", "dtype", "scheduler")
    pairs = [(key, old.get(key), new.get(key)) for key in names]
    pairs.append(("engine", old.get("engine", "torch"), new.get("engine", "torch")))
    extras = old.get("extras") or {}, new.get("extras") or {}
    if "extras" in old:  # older records do not have them
        pairs += [(name, extras[0].get(name), extras[1].get(name)) for name in {**extras[0], **extras[1]}]
    libraries = {**old["versions"], **new["versions"]}
    pairs += [(name, old["versions"].get(name), new["versions"].get(name)) for name in libraries]
    return [f"{name} was {before} and is {now}" for name, before, now in pairs if before != now]


def recorded(record: Mapping[str, Any]) -> tuple[Settings, Any]:
    """The settings and the scheduler that a record stands for; one of an older sdkit may lack newer settings."""
    settings = Settings(**{field.name: record[field.name] for field in fields(Settings) if field.name in record})
    return settings, schedulers.rebuilt(record["scheduler"])


def branch(
    trace: Trace, step: int, *, hooks: Iterable[Hook], model: Any, trust_model: bool, changes: Mapping[str, Any]
) -> Trace:
    """A recorded run from one of its steps on; `Trace.branch` says the rest."""
    child, events = branching(trace, step, hooks=hooks, model=model, trust_model=trust_model, changes=changes)
    driven(events)
    return child


def branching(
    trace: Trace,
    step: int,
    *,
    hooks: Iterable[Hook] = (),
    model: Any = None,
    trust_model: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Trace, Generator[Event, None, Result]]:
    """A branch that is yet to be driven: the trace that it fills, and its events. When these have ended, or were left,
    the trace has the steps before as well."""
    record, changes = trace.settings, changes or {}
    for name in changes:
        pick("change of a branch", name, CHANGES)
    if process := record.get("process"):
        raise ValueError(f"this trace cannot be branched: it shows the {process} process; branch a run from noise")
    if "visited" in record:
        raise ValueError("this trace cannot be branched: a hook has sent its run to other steps; branch one without")
    if not record or record["seed"] is None:
        raise ValueError("this trace cannot be branched: its run had no seed; record a run that was given one")
    if any(record.get(name) for name in ("prompt_embeds", "negative_prompt_embeds")):
        raise ValueError("this trace cannot be branched: its run was given embeddings; record one that was given words")
    if step == 0 and record.get("latents"):
        raise ValueError("a run from latents that were given is branched at step 1 or later; begin it anew instead")
    history = _history(trace, step)
    if model is None:
        model = trace.model or _chosen(record["model"], "the trace", trust_model or not trace.opened)
    model = load(model)
    settings, scheduler = recorded(record)
    child = Trace(budget=trace.budget)
    prepared = prepare(
        replace(settings, **changes),
        model,
        scheduler,
        hooks=[*checked(hooks), child],
        latents=history.latents[0] if record.get("latents") else None,
        pictures=_pictures(trace),
        history=history,
    )
    return child, _onto(trace, step, child, result_of(prepared))


def _onto(
    trace: Trace, step: int, child: Trace, events: Generator[Event, None, Result]
) -> Generator[Event, None, Result]:
    """The events of a branch, after which its trace begins with the steps that it has in common with another."""
    try:
        return (yield from events)
    finally:
        before = [one for one in trace.records if one.step is not None and one.step < step]
        first = next((i for i, one in enumerate(child.records) if one.step is not None), len(child.records))
        child.records[first:first] = before
        child.stepped |= {at: source for at, source in trace.stepped.items() if at < step}
        child.parent = {"step": step, "settings": trace.settings}


def _history(trace: Trace, step: int) -> History:
    """x and the prediction that the scheduler was given, of every step before this one."""
    latents = {record.step: record for record in trace[Stage.LATENT]}
    guided = {record.step: record for record in trace[Stage.GUIDED]}
    count = trace.settings["start"]["steps"]
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < count:
        raise ValueError(f"a branch starts at a step of the run, 0 to {count - 1}, but was to start at {step!r}")
    if trace.dtype is not None or any(at not in latents or at not in guided for at in range(step)):
        raise ValueError(
            f"a branch at step {step} needs the stages latent and guided of every step before it, as they came; "
            "record with every=1, without dtype and with room enough"
        )
    return History(
        [latents[at].value for at in range(step)],
        [value_of(trace.stepped[at]) if at in trace.stepped else guided[at].value for at in range(step)],
    )


def _pictures(trace: Trace) -> Pictures:
    """The pictures that the run was given: as recorded, otherwise as the trace still holds them."""
    each, record = trace.settings["num_images_per_prompt"], trace.settings
    recorded: dict[str, Tensor] = {}
    for name, field, stage in (("image", "pixels", Stage.PIXELS), ("mask_image", "mask", Stage.MASK)):
        if record.get(name) and trace[stage]:
            recorded[field] = trace[stage][0].value.float()[::each]
    pictures: Pictures = replace(trace.pictures or Pictures(), **recorded)
    for name, value in pictures.hashes().items():
        if record.get(name) and value is None:
            raise ValueError(f"this trace cannot be branched: it does not hold {name}, which its run was given")
    return pictures
