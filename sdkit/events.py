"""The whole mechanism: a process is a generator of events, and whoever drives it may look at each value or replace it.

`tap` shows one value and goes on with what it is handed back, `run` drives a process with hooks, `on` narrows a hook to
some stages. There is no second way to observe or to edit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from functools import update_wrapper
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class Stage(StrEnum):
    """The stages of a run, in the order in which it meets them.

    B is the number of pictures. With guidance, values marked 2B hold the unconditional half first.
    """

    TOKENS = "tokens"  # (2B, L) int64     token ids: negative prompts first, then prompts (B without guidance)
    TEXT = "text"  # (2B, L, D)        text embeddings
    POOLED = "pooled"  # (2B, P)           embedding of the whole text (SDXL)
    PIXELS = "pixels"  # (B, 3, H, W)      the input picture, in [-1, 1]          (image to image)
    MASK = "mask"  # (B, 1, H, W)      1 where the picture is painted anew         (inpainting)
    POSTERIOR = "posterior"  # (B, 2C, h, w)     mean and log-variance of the VAE encoder
    LATENT = "latent"  # (B, C, h, w)      x_t before step `step`; the last one (step None) is the clean latent
    NOISE = "noise"  # (2B, C, h, w)     what the U-Net predicted, unconditional first (B without guidance)
    GUIDED = "guided"  # (B, C, h, w)      after classifier-free guidance
    DENOISED = "denoised"  # (B, C, h, w)      x0 as this step believes it
    IMAGE = "image"  # (B, 3, H, W)      the decoded picture, in [-1, 1]
    # Inside the U-Net, once for each `layer`, and only for a hook that names them with `on`, because they cost time.
    ATTENTION = "attention"  # (2B, heads, h*w, L)    cross-attention: how much each place heeds each token, sums to 1
    SELF_ATTENTION = "self_attention"  # (2B, heads, h*w, h*w)  how much each place heeds each other, up to 32x32 places
    BLOCK = "block"  # (2B, c, h', w')   output of a block; that of "mid_block" is the h-space (arXiv:2210.10960)


INNER = frozenset({Stage.ATTENTION, Stage.SELF_ATTENTION, Stage.BLOCK})


@dataclass(frozen=True, slots=True)
class Edit:
    """That somebody replaced a value, and by how much."""

    hook: str  # its name
    distance: float  # Euclidean norm of what was added
    relative: float  # the same as a share of the norm that the value had


@dataclass(eq=False, slots=True)
class Event:
    """One value of one stage. Assign `value` to change what the process does next."""

    stage: Stage
    value: Tensor
    step: int | None = None  # 0 .. visits-1, which Heun and KDPM2 have nearly two of in a step
    t: int | None = None  # training timestep; 999 is pure noise
    layer: str | None = None  # which part of the model, or which of several values of a stage
    origin: Any = None  # the run that it comes from: `sdkit.runs.Run`
    edits: list[Edit] = field(default_factory=list)  # complete when the next event comes

    def __str__(self) -> str:
        where = f"stage {self.stage.value!r}"
        if self.step is not None:
            where += f", step {self.step} (t={self.t})"
        return where if self.layer is None else f"{where}, layer {self.layer!r}"

    def __repr__(self) -> str:
        return f"<Event {self}: {tuple(self.value.shape)} {self.value.dtype} on {self.value.device}>"


Hook = Callable[[Event], Any]


def tap(
    stage: Stage, value: Tensor, *, step: int | None = None, t: int | None = None, layer: str | None = None
) -> Generator[Event, None, Tensor]:
    """Show `value` to whoever drives the process and return it as they left it: the very same tensor if untouched.

    Raises:
        TypeError: what was assigned is not a tensor.
        ValueError: it has another shape, dtype or device, or the value was changed in place instead (which cannot be
            noticed under `torch.inference_mode`).
    """
    return (yield from show(Event(stage, value, step, t, layer)))


def show(event: Event) -> Generator[Event, None, Tensor]:
    """What `tap` does, with an event that is made already."""
    value = event.value
    version = None if value.is_inference() else value._version
    yield event
    given = event.value
    if given is value:
        if version is not None and value._version != version:
            raise ValueError(f"{event}: the value was changed in place; assign a new tensor to event.value instead")
        return value
    if not isinstance(given, Tensor):
        raise TypeError(f"{event}: event.value must stay a tensor, but was set to a {type(given).__name__}")
    for what in ("shape", "dtype", "device"):
        if getattr(given, what) != getattr(value, what):
            raise ValueError(
                f"{event}: event.value was set to a tensor of {what} {_plain(getattr(given, what))}, "
                f"but {what} {_plain(getattr(value, what))} is needed here"
            )
    if not event.edits:
        event.edits.append(_edit("whoever drives the run", value, given))
    return given.detach()


def _edit(hook: str, before: Tensor, after: Tensor) -> Edit:
    change, norm = (after.detach().double() - before.double()).norm().item(), before.double().norm().item()
    return Edit(hook, change, change / norm if norm else float("inf"))


def _comparable(after: object, before: Tensor) -> bool:
    return isinstance(after, Tensor) and after.shape == before.shape and after.device == before.device


def _plain(what: object) -> str:
    return str(tuple(what)) if isinstance(what, tuple) else str(what)


def run(events: Generator[Event, None, T], hooks: Iterable[Hook] = ()) -> T:
    """Drive a process to its end, show each event to every hook in their order, and return what the process returns.

    An exception in a hook passes through unchanged, with a note that names the hook, the stage and the step.
    """
    process = hooked(events, checked(hooks))
    while True:
        try:
            next(process)
        except StopIteration as end:
            result: T = end.value
            return result


def hooked(events: Generator[Event, None, T], hooks: Sequence[Hook]) -> Generator[Event, None, T]:
    """The same process, each event of which every hook has seen, in their order."""
    with closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                result: T = end.value
                return result
            for hook in hooks:
                before = event.value
                try:
                    hook(event)
                    if event.value is not before and _comparable(event.value, before):
                        event.edits.append(_edit(_name(hook), before, event.value))
                except BaseException as error:
                    error.add_note(f"raised by hook {_name(hook)!r} at {event}")
                    raise
            yield event


def checked(hooks: Iterable[Hook]) -> tuple[Hook, ...]:
    """Hooks as a tuple.

    Raises:
        TypeError: it is a single one.
    """
    if callable(hooks):
        raise TypeError(f"hooks must be a list of functions; put {_name(hooks)!r} in brackets")
    return tuple(hooks)


def on(*stages: Stage | str) -> Callable[[Hook], Hook]:
    """Make a hook that is called at these stages alone. Its `stages` tells which.

    Example:
        >>> @sdkit.on(Stage.DENOISED)
        ... def darken(event):
        ...     event.value = event.value * 0.9
    """
    chosen = frozenset(_stage(stage) for stage in stages)
    if not chosen:
        raise ValueError(f"on() needs at least one stage of {', '.join(Stage)}")

    def narrow(hook: Hook) -> Hook:
        def narrowed(event: Event) -> None:
            if event.stage in chosen:
                hook(event)

        update_wrapper(narrowed, hook)
        narrowed.__qualname__ = _name(hook)
        narrowed.stages = chosen  # type: ignore[attr-defined]
        return narrowed

    return narrow


def _stage(stage: Stage | str) -> Stage:
    try:
        return Stage(stage)
    except ValueError:
        raise ValueError(f"unknown stage {stage!r}; expected one of {', '.join(Stage)}") from None


def _name(hook: Hook) -> str:
    name: str = getattr(hook, "__qualname__", type(hook).__qualname__)
    return name.rpartition("<locals>.")[2]  # wherever it was written
