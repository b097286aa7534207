"""The whole mechanism: a process is a generator of events, and whoever drives it may look at each value or replace it.

`tap` shows one value and goes on with the value that it is handed back, `run` drives a process with hooks, `on` narrows
a hook to some stages. There is no second way to observe or to edit. The file is longer than others because it also has
the sentences for what is no hook, no stage and no event.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable, Sequence
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
    CONTEXT = "context"  # (2B, L, D)        text embeddings as this step hears them, for this step alone; `layer`
    # names what else it goes by: "pooled", "time_ids", "guidance", "mask", "masked", "control.0". A hook may change how
    # many tokens there are, or rows: B leave out the unconditional half and what it costs; rows beyond 2B are asked
    # too, and NOISE then has them beyond its first 2B, for a hook on GUIDED to use.
    NOISE = "noise"  # (2B, C, h, w)     what the U-Net predicted, unconditional first (B without guidance)
    GUIDED = "guided"  # (B, C, h, w)      after classifier-free guidance
    DENOISED = "denoised"  # (B, C, h, w)      x0 as this step predicts it
    IMAGE = "image"  # (B, 3, H, W)      the decoded picture, in [-1, 1]
    # Inside the U-Net, once for each `layer`, and only for a hook that names them with `on`, because they cost time.
    QUERY = "query"  # (2B, h*w, heads * d)     of an attention layer: "...attn1" is self-attention, "...attn2" cross-
    KEY = "key"  # (2B, n, heads * d)       n places or tokens, of which a hook may give more or fewer
    VALUE = "value"  # (2B, n, heads * d)       as many as there are keys
    ATTENTION = "attention"  # (2B, heads, h*w, L)    cross-attention: weight of each token at each place, sums to 1
    SELF_ATTENTION = "self_attention"  # (2B, heads, h*w, h*w)  weight of each place at each place, up to 32x32 places
    INPUT = "input"  # (2B, c, h', w')   what a residual block takes; in "up_blocks", hidden state and skip in one
    BLOCK = "block"  # (2B, c, h', w')   output of a block; that of "mid_block" is the h-space (arXiv:2210.10960);
    # or of any part within one, for a hook that names that part as its layer


INNER = frozenset(list(Stage)[list(Stage).index(Stage.QUERY) :])
# The axes whose length a hook may change; every other shape stays.
_FREE = {Stage.CONTEXT: (0, 1), Stage.KEY: (1,), Stage.VALUE: (1,)}


@dataclass(frozen=True, slots=True)
class Edit:
    """That somebody replaced a value, and by how much."""

    hook: str  # its name
    distance: float  # Euclidean norm of what was added; infinite where the shape is another
    relative: float  # the same as a share of the norm that the value had


@dataclass(eq=False, slots=True)
class Event:
    """One value of one stage. Assign `value` to change what the process does next."""

    stage: Stage
    value: Tensor
    step: int | None = None  # index of the U-Net call, from 0; Heun and KDPM2 make two calls in most of their steps
    t: int | None = None  # training timestep, 0 (nearly clean) to 999 (nearly pure noise)
    layer: str | None = None  # which part of the model, or which of several values of a stage
    run: Any = None  # the run that it belongs to: `sdkit.process.run.Run`
    edits: list[Edit] = field(default_factory=list)  # complete when the next event comes
    _known: Any = field(default=None, init=False)  # the value as the last of the edits left it
    _later: list[Callable[[Event], Any]] = field(default_factory=list, init=False)

    @property
    def alpha(self) -> float | None:
        """What x0 is multiplied by in this step's x = alpha * x0 + sigma * eps; None where there is no step."""
        level = self._level()
        return None if level is None else level.alpha

    @property
    def sigma(self) -> float | None:
        """What noise of unit variance is multiplied by in this step's x; None where there is no step."""
        level = self._level()
        return None if level is None else level.sigma

    def later(self, function: Callable[[Event], Any]) -> None:
        """Have a function called once every hook and the loop that drives the run have left this event, as a `Trace`
        does to keep the value as they left it.

        Example:
            >>> @sdkit.on(Stage.GUIDED, steps=[12])
            ... def look(event):
            ...     event.later(print)
            >>> result = sdkit.text_to_image("a red star", seed=7, hooks=[look])
            stage 'guided', step 12 (t=399)
        """
        if function not in self._later:
            self._later.append(function)

    def _level(self) -> Any:
        return None if self.run is None or self.step is None else self.run.levels.get(self.step)

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

    Example:
        >>> def process(x):
        ...     x = yield from sdkit.tap(Stage.LATENT, x)
        ...     return 2 * x
        >>> sdkit.run(process(torch.ones(3)))
        tensor([2., 2., 2.])
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"value must be a tensor, but is {_told(value)}")
    return (yield from show(Event(_stage(stage), value, step, t, layer)))


def show(event: Event, hooks: Sequence[Hook] = ()) -> Generator[Event, None, Tensor]:
    """Do what `tap` does with an event that is made already, once these hooks have seen it."""
    value = event._known = event.value
    version = None if value.is_inference() else value._version
    call(hooks, event)
    try:
        yield event
    except GeneratorExit:  # the loop has seen enough: what it saw is what was
        _leave(event)
        raise
    if event.value is not event._known:
        _note_edit("the loop that drives the run", event, event._known)
    if event.value is value:
        if version is not None and value._version != version:
            raise ValueError(f"{event}: the value was changed in place; assign a new tensor to event.value instead")
    else:
        _check_replacement(event, value)
        if not value.requires_grad:  # where gradients are wanted, they flow through what a hook has changed too
            event.value = event.value.detach()
    _leave(event)
    return event.value


def _check_replacement(event: Event, value: Tensor) -> None:
    after = event.value
    if not isinstance(after, Tensor):
        raise TypeError(f"{event}: event.value must stay a tensor, but was set to a {type(after).__name__}")
    shape = list(value.shape)
    for axis in _FREE.get(event.stage, ()) if event.layer is None or event.stage in INNER else ():
        if after.ndim == value.ndim and after.shape[axis]:
            shape[axis] = after.shape[axis]
    for what, needed in (("shape", tuple(shape)), ("dtype", value.dtype), ("device", value.device)):
        got = tuple(after.shape) if what == "shape" else getattr(after, what)
        if got != needed:
            raise ValueError(f"{event}: event.value was set to a tensor of {what} {got}, but {what} {needed} is needed")


def call(hooks: Iterable[Hook], event: Event) -> None:
    """Show an event to hooks in their order, and note which of them replaced its value.

    An exception in a hook passes through unchanged, with a note that names the hook, the stage and the step.
    """
    for hook in hooks:
        before = event.value
        try:
            hook(event)
        except BaseException as error:
            error.add_note(f"raised by hook {name_of(hook)!r} at {event}")
            raise
        if event.value is not before:
            _note_edit(name_of(hook), event, before)


def _note_edit(name: str, event: Event, before: Tensor) -> None:
    after = event._known = event.value
    if not isinstance(after, Tensor) or after.device != before.device:
        return  # refused when everybody has left the event
    change, norm = float("inf"), before.detach().double().norm().item()
    if after.shape == before.shape:
        change = (after.detach().double() - before.detach().double()).norm().item()
    event.edits.append(Edit(name, change, change / norm if norm else float("inf")))


def _leave(event: Event) -> None:
    for function in event._later:
        function(event)


def run(events: Generator[Event, None, T], hooks: Iterable[Hook] = ()) -> T:
    """Drive a process to its end, show each event to every hook in their order, and return what the process returns.

    An exception in a hook passes through unchanged, with a note that names the hook, the stage and the step.

    Raises:
        TypeError: hooks is a single one, or something in it cannot be called.
        ValueError: a hook names a stage inside the U-Net, which events that are under way no longer show: give it to
            the function that begins the run.

    Example:
        >>> recording = sdkit.Trace()
        >>> result = sdkit.run(sdkit.stages("a red star", seed=7), hooks=[recording])
    """
    hooks = checked(hooks)
    if not isinstance(events, Generator):
        raise TypeError(f"events must be what sdkit.stages or a process gives, but is {_told(events)}")
    for hook in hooks:
        if inside := INNER & stages_of(hook):
            raise ValueError(
                f"{name_of(hook)!r} names {', '.join(sorted(inside))}, which is shown to the hooks of the "
                "function that begins the run alone; give it there, as in sdkit.stages(..., hooks=[...])"
            )
    try:
        while True:
            event = next(events)
            call(hooks, event)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        events.close()


def checked(hooks: Iterable[Hook]) -> tuple[Hook, ...]:
    """Hooks as a tuple.

    Raises:
        TypeError: it is a single one, none, or something in it cannot be called.
    """
    if callable(hooks):
        raise TypeError(f"hooks must be a list of functions; put {name_of(hooks)!r} in brackets")
    if not isinstance(hooks, Iterable) or isinstance(hooks, str):
        raise TypeError(f"hooks must be a list of functions, but is {_told(hooks)}")
    chosen = tuple(hooks)
    for hook in chosen:
        if not callable(hook):
            raise TypeError(f"a hook is a function that takes an Event, but hooks holds {_told(hook)}")
        if isinstance(hook, type):
            raise TypeError(f"hooks holds the class {hook.__name__}; make one of it: hooks=[{hook.__name__}()]")
    return chosen


def on(*stages: Stage | str, layer: str | None = None, steps: Container[int] | None = None) -> Callable[[Hook], Hook]:
    """Make a hook that is called at these stages alone.

    Args:
        layer: only at this part of the U-Net and what lies within it, such as "mid_block" or "up_blocks.1".
        steps: only at these steps, such as `range(10)`.

    Returns:
        A decorator, which makes the narrower hook of a hook.

    Example:
        >>> @sdkit.on(Stage.DENOISED)
        ... def darken(event):
        ...     event.value = event.value * 0.9
    """
    chosen = frozenset(_stage(stage) for stage in stages)
    if not chosen:
        raise ValueError(f"on() needs at least one stage of {', '.join(Stage)}")
    if layer is not None and not isinstance(layer, str):
        raise TypeError(f"layer must be a name, such as 'mid_block', or None, but is {_told(layer)}")
    steps = getattr(steps, "tolist", lambda given=steps: given)()  # of an array a list
    listed = steps if isinstance(steps, list | tuple | set | frozenset) else ()
    odd = [one for one in listed if isinstance(one, bool) or not hasattr(one, "__index__")]
    if odd or not isinstance(steps, Container | None) or isinstance(steps, str | bytes):
        raise TypeError(f"steps must be a list or a range of whole numbers, or None, but is {_told(steps)}")

    def narrow(hook: Hook) -> Hook:
        checked([hook])

        def narrowed(event: Event) -> None:
            if event.stage in chosen and within(event.layer, layer) and (steps is None or event.step in steps):
                hook(event)

        update_wrapper(narrowed, hook)
        narrowed.__qualname__ = name_of(hook)
        narrowed.stages, narrowed.layer = chosen, layer  # type: ignore[attr-defined]
        return narrowed

    return narrow


def within(layer: str | None, part: str | None) -> bool:
    """Whether a layer is this part of the U-Net or lies within it; every layer is within None."""
    return part is None or (layer is not None and f"{layer}.".startswith(f"{part}."))


def _stage(stage: Stage | str) -> Stage:
    try:
        return Stage(stage)
    except ValueError:
        raise ValueError(f"unknown stage {_told(stage)}; expected one of {', '.join(Stage)}") from None


def _told(value: object) -> str:
    """A value as a sentence can hold it."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


def stages_of(hook: Hook) -> frozenset[Stage]:
    """The stages that a hook names; none for one that takes every event as it comes."""
    return getattr(hook, "stages", None) or frozenset()


def name_of(hook: Hook) -> str:
    """The name of a hook, wherever it was written."""
    name: str = getattr(hook, "__qualname__", type(hook).__qualname__)
    return name.rpartition("<locals>.")[2]
