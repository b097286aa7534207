"""A run: everything that one process is made from, checked and complete, and what it writes down as it goes."""

from __future__ import annotations

from collections.abc import Generator, Hashable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdkit.events import INNER, Edit, Event, Hook, Stage, name_of, show, stages_of
from sdkit.inputs.arguments import Settings
from sdkit.model import schedulers
from sdkit.model.condition import Condition
from sdkit.model.engines import parts_for
from sdkit.model.extras import extras_of
from sdkit.model.model import Model
from sdkit.model.schedulers import Visit
from sdkit.model.text import scales_kept
from sdkit.noise import NoiseLevel
from sdkit.process.asked import Asked
from sdkit.process.materials import Embeds, Generators, History, Pictures
from sdkit.unet.scope import Scope

T = TypeVar("T")
_SHOWN = {  # the stages of each process, before what this model and these pictures leave out
    "reverse": frozenset(Stage),
    "inversion": frozenset(Stage) - {Stage.MASK, Stage.CONTEXT, Stage.GUIDED, Stage.IMAGE},
    "forward": frozenset({Stage.PIXELS, Stage.POSTERIOR, Stage.NOISE, Stage.LATENT, Stage.IMAGE}),
}


@dataclass(frozen=True, eq=False)
class Run(Asked):
    """One run of a process: the reverse one, the forward one, or an inversion.

    Raises:
        ValueError: when it is made, if a hook names a stage that it never shows, or a layer that its U-Net lacks.
    """

    model: Model  # that it calls
    device: torch.device  # where that computes: diffusers walks through all its modules to find out, so once a run
    settings: Settings  # complete
    scheduler: Any  # a fresh one
    visits: list[Visit]  # the timesteps that it goes through, in the order in which it does
    shape: tuple[int, ...]  # (B, C, h, w) of the latents
    generator: Generators  # one for each picture, or one for all
    record: dict[str, Any]  # plain JSON values: all that makes this run but hooks
    hooks: tuple[Hook, ...] = ()  # called at every stage, in their order
    process: str = "reverse"  # or "inversion", or "forward"
    guidance_scale: float = 1.0  # off at 1 and below
    latents: Tensor | None = None  # (B, C, h, w) start noise of unit variance, drawn from the generators if None
    pictures: Pictures = field(default_factory=Pictures)  # that it was given
    embeds: Embeds = field(default_factory=Embeds)  # that it was given instead of words
    attention: dict[str, Any] | None = None  # diffusers' cross_attention_kwargs
    history: History | None = None  # of a branch
    # Written down as it goes, for hooks and traces to read.
    levels: dict[int, NoiseLevel] = field(default_factory=dict, init=False)  # how noisy x is, by step
    seen: dict[Stage, Tensor] = field(default_factory=dict, init=False)  # the last value of each stage, as it was left
    tokens: dict[str, Tensor] = field(default_factory=dict, init=False)  # ids (2B, L) for each text encoder
    stepped: dict[int, Tensor] = field(default_factory=dict, init=False)  # by step, where an x0 was edited: the
    # prediction that the edited x0 stands for, which the scheduler was given
    step: int | None = field(default=None, init=False)  # the one that it is at
    condition: Condition | None = field(default=None, init=False)  # what that step goes by
    stopped: bool = field(default=False, init=False)  # a hook has called `stop`
    target: tuple[int, Tensor] | None = field(default=None, init=False)  # where a hook has sent it by `go_to`
    left_alone: bool = field(default=False, init=False)  # a hook has called `leave_scheduler`
    unet: Any = field(init=False, repr=False)  # the model's, or what its engine has put in its place,
    vae: Any = field(init=False, repr=False)  # and the same of what decodes
    scope: Scope = field(init=False, repr=False)  # the inside of the U-Net for its hooks
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False)
    _finite: list[tuple[str, list[Edit], Tensor]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        for hook in self.hooks:
            named = stages_of(hook)
            never = named - _SHOWN[self.process] or (named if named.isdisjoint(self.stages) else ())
            if never:  # one that only this run leaves out may stand beside others, so that a hook serves many runs
                raise ValueError(
                    f"{name_of(hook)!r} names {', '.join(sorted(never))}, which this run never shows; its stages are "
                    f"{', '.join(stage for stage in Stage if stage in self.stages)}"
                )
        inner = self.hooks if self.stages & INNER else ()
        unet, vae = parts_for(self.model, self.record)
        scope = Scope(unet, inner, self)
        if scope.unet is not unet:  # hooks look inside, so that torch computes all of it
            unet, vae = self.model.unet, self.model.vae
        self.write(unet=unet, vae=vae, scope=scope)

    @property
    def stages(self) -> frozenset[Stage]:
        """The stages that this run shows."""
        missing = set()
        if self.pictures.pixels is None or self.record.get("space") == "pixel":
            missing.add(Stage.POSTERIOR)
        if self.pictures.pixels is None or self.pictures.pixels.shape[1] != 3:
            missing.add(Stage.PIXELS)
        if self.pictures.mask is None:
            missing.add(Stage.MASK)
        if not self.model.is_xl:
            missing.add(Stage.POOLED)
        if self.embeds.prompt_embeds is not None and (
            self.embeds.negative_prompt_embeds is not None or not self.guided
        ):
            missing.add(Stage.TOKENS)
        return _SHOWN[self.process] - missing

    # -----------------------------------------------------------------------------------------------------------------
    # What its process does with it

    def show(
        self, stage: Stage, value: Tensor, *, step: int | None = None, layer: str | None = None
    ) -> Generator[Event, None, Tensor]:
        """Show a value to the hooks and to whoever drives the run, and return it as they left it."""
        event = Event(stage, value, step, None if step is None else self.levels[step].t, layer, self)
        try:
            value = yield from show(event, self.hooks)
        finally:
            self.note(event)
        self.seen[stage] = value
        return value

    def note(self, event: Event) -> None:
        """Write down who replaced a value, and whether all of it is finite."""
        edited_by, value = self.record["edited_by"], event.value
        edited_by.extend(name for name in {edit.hook: None for edit in event.edits} if name not in edited_by)
        if event.stage is Stage.CONTEXT and not event.edits:
            return  # it was TEXT or POOLED before
        if isinstance(value, Tensor) and value.is_floating_point():
            finite = value.detach().isfinite().all()
            if value.device.type != "cpu" or not finite:  # a GPU is asked at the end, so that nobody waits for it
                self._finite.append((str(event), event.edits, finite))

    def note_level(self, step: int, visit: Visit) -> None:
        """Write down how noisy the sample of a step is that is about to begin."""
        alpha, sigma = schedulers.alpha_sigma(self.scheduler, visit)
        self.levels[step] = NoiseLevel(visit.t, float(alpha), float(sigma))
        self.write(step=step, left_alone=False)
        if "visited" in self.record:  # a hook has sent it to another step
            self.record["visited"].append(step)

    @property
    def empty_is_zeros(self) -> bool:
        """Whether zeros stand for the negative prompt: none was given, and the pipeline has it so."""
        config = self.model.pipeline.config
        return self.settings.negative_prompt is None and bool(config.get("force_zeros_for_empty_prompt", False))

    def decode(self, x: Tensor) -> Tensor:
        """The picture of clean latents; an asymmetric autoencoder sees what is to be kept of the picture around it
        (Zhu et al. 2023, arXiv:2306.04632), where diffusers' pipeline has it so."""
        pixels, mask = self.pictures.pixels, self.pictures.mask
        kept = {}
        if mask is not None and pixels is not None and self.model.sees_around:
            kept = {"image": pixels.to(x.device, x.dtype), "mask": mask.to(x.device, x.dtype)}
        return self.model.decode(x, vae=self.vae, **kept)

    def call_unet(self, x: Tensor, step: int, condition: Condition) -> Tensor:
        """What the U-Net predicts for x (B, C, h, w), scaled as it takes it, (2B, C, h, w), its inside shown to the
        hooks."""
        visit = self.visits[step]
        predict = torch.no_grad()(self.model.predict)  # between a `with` and its end an interrupt would leave them off
        with self.scope.at(step, visit.t):
            return predict(x, visit.tensor, condition, (step, len(self.visits)), self.scope.unet)

    def check_finite(self) -> None:
        """Name the first value that is not a finite number.

        Raises:
            ValueError: there is one, and hooks have edited it.
            FloatingPointError: there is one that the model made.
        """
        flags = [finite.cpu() for *_, finite in self._finite]  # values may lie on several devices
        if not flags or bool(torch.stack(flags).all()):
            return
        where, edits = next((where, edits) for where, edits, finite in self._finite if not finite)
        if edits:
            names = ", ".join(repr(edit.hook) for edit in edits)
            raise ValueError(f"{where}: this is the first value that holds NaN or infinity; it was edited by {names}")
        advice = f"the model's values are not finite in {self.model.dtype}; load the model in bfloat16 or float32"
        if self.model.dtype == torch.float32:
            advice = (
                f"the weights are damaged, or {type(self.scheduler).__name__} cannot take these steps, as where a "
                "noise schedule ends without any signal and the model predicts the noise; try another scheduler"
            )
        raise FloatingPointError(
            f"{where}: this is the first value that holds NaN or infinity, and no hook has edited it: {advice}"
        )


def begin(run: Run, process: Generator[Event, None, T]) -> Generator[Event, None, T]:
    """A process, after which the model is as it was, and which says what to do when memory runs out."""
    try:
        with scales_kept([run.model.unet] if run.attention else []):
            return (yield from process)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if advice := _out_of_memory(error):
            raise type(error)(advice) from error
        raise
    finally:
        run.scope.close()
        run.model.pipeline.maybe_free_model_hooks()  # where the pipeline offloads, its parts go back


def _out_of_memory(error: RuntimeError) -> str | None:
    """A sentence with what to try, if that is what the error is: of a GPU a class of its own, of a CPU a message."""
    said = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in said and "enough memory" not in said:
        return None
    return (
        "out of memory; try a smaller height and width, fewer pictures at once, dtype='float16' on a GPU, or before "
        "sdkit.load(pipeline): pipeline.enable_model_cpu_offload(), pipeline.vae.enable_tiling() or "
        f"pipeline.enable_attention_slicing() ({said.splitlines()[0]})"
    )


def surroundings(model: Model, device: torch.device) -> dict[str, Any]:
    """What a record has of the model and the machine: all that the bits depend on beside the settings."""
    return {
        "model": model.name,
        "model_hash": model.fingerprint(),
        "extras": extras_of(model.pipeline),
        "device": device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {
            "sdkit": _version("sdkit-stages"),
            **{name: _version(name) for name in ("torch", "diffusers", "transformers")},
        },
    }


@cache
def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from its folder, not installed
        return "unknown"


def generators(seeds: list[int]) -> list[torch.Generator]:
    """One CPU generator for each picture, so that a seed means the same on every device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
