"""What a run is made from, checked and complete, and what its events carry of it."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sdkit import __version__
from sdkit.events import Event, Hook
from sdkit.model import Model
from sdkit.schedulers import Visit
from sdkit.settings import Settings

T = TypeVar("T")
Generators = list[torch.Generator] | torch.Generator | None


@dataclass(frozen=True, eq=False)
class History:
    """The first steps of an earlier run, to be stepped through again without the U-Net."""

    latents: list[Tensor]  # x of each step, (B, C, h, w), as its prediction saw it
    predictions: list[Tensor]  # what was stepped along, (B, C, h, w)


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures that a run was given, checked."""

    pixels: Tensor | None = None  # (N, 3, H, W) in [-1, 1] to start from, or latents (N, 4, h, w) of them; B = N * n
    mask: Tensor | None = None  # (M, 1, H, W), 1 where to paint anew; M is 1 or N
    control: list[Tensor] = field(default_factory=list)  # for each ControlNet (M, 3, H, W) in [0, 1]
    ip_adapter_image: Any = None  # as diffusers takes it: PIL, or a list for several IP-Adapters
    ip_adapter_image_embeds: list[Tensor] | None = None

    def hashes(self) -> dict[str, Any]:
        """What a record says of them: a hash of each picture, and the shapes of embeddings."""
        embeds = self.ip_adapter_image_embeds
        return {
            "image": _hash(self.pixels),
            "mask_image": _hash(self.mask),
            "control_image": _hash(self.control or None),
            "ip_adapter_image": _hash(self.ip_adapter_image),
            "ip_adapter_image_embeds": embeds and [list(one.shape) for one in embeds],
        }


@dataclass(frozen=True, eq=False)
class Embeds:
    """What stands in for the words of either half."""

    negative_prompt_embeds: Tensor | None = None  # (P, L, D)
    prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None  # (P, D'), of SDXL
    pooled_prompt_embeds: Tensor | None = None


@dataclass(eq=False)
class Run:
    """Everything that one run of the reverse process is made from, checked and complete."""

    model: Model
    settings: Settings  # complete
    guidance_scale: float
    shape: tuple[int, int, int, int]  # (B, C, h, w) of the latents
    generator: Generators  # one for each picture, or one for all
    latents: Tensor | None  # (B, C, h, w) start noise of unit variance, drawn from the generators if None
    pictures: Pictures
    embeds: Embeds
    scheduler: Any  # a fresh one
    visits: list[Visit]  # the timesteps that it was set to
    record: dict[str, Any]  # plain JSON values: all that makes this run but hooks
    history: History | None = None  # of a branch
    hooks: tuple[Hook, ...] = ()  # called in line, at the stages inside the U-Net that they name
    token_ids: Tensor | None = None  # (2B, L) as heard; of one half where embeddings stand for the other
    stepped: dict[int, Tensor] = field(default_factory=dict)  # what was stepped along where an x0 was edited, by step
    stop: bool = False  # set by a hook: end with the x0 of this step

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1 and not self.model.takes_guidance


def _hash(pictures: Any) -> str | None:
    """SHA-256 of the bytes of pictures, or of lists of them, one after another."""
    if pictures is None:
        return None
    digest = hashlib.sha256()
    rest = [pictures]
    while rest:
        one = rest.pop(0)
        if isinstance(one, list | tuple):
            rest = [*one, *rest]
        elif one is not None:
            digest.update(one.cpu().float().numpy().tobytes() if isinstance(one, Tensor) else one.tobytes())
    return digest.hexdigest()


def surroundings(model: Model) -> dict[str, Any]:
    """What a record says of the model and the machine: all that the bits depend on beside the settings."""
    return {
        "model": model.name,
        "model_hash": model.fingerprint(),
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {
            "sdkit": __version__,
            **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        },
    }


class Origin(Protocol):
    """What a process is made from, as its events carry it: enough for a `Trace` to record them."""

    model: Model
    record: dict[str, Any]  # plain JSON values, with "edited_by"
    stepped: dict[int, Tensor]  # what was stepped along where an x0 was edited, by step


def signed(request: Origin, events: Generator[Event, None, T]) -> Generator[Event, None, T]:
    """The same events, each with the run that it comes from."""
    edited_by = request.record["edited_by"]
    event = None
    try:
        while True:
            try:
                following = next(events)
            except StopIteration as end:
                found: T = end.value
                return found
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if told := _out_of_memory(error):
                    raise type(error)(told) from error
                raise
            finally:  # only now is it known who replaced the value before
                names: list[str] = [] if event is None else [edit.hook for edit in event.edits]
                edited_by.extend(name for name in dict.fromkeys(names) if name not in edited_by)
            event = following
            event.origin = request
            yield event
    finally:
        request.model.pipeline.maybe_free_model_hooks()  # where the pipeline offloads, its parts go back


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
