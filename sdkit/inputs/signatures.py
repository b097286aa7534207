"""What the functions take beside plain values, and how a function is given a signature and documentation by the table
of its arguments."""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sdkit.inputs.arguments import Arguments, FromPicture, argument

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdkit.events import Hook

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
PROGRESS = "whether to show a bar over the steps, in a terminal and in a notebook"


@dataclass(frozen=True, kw_only=True, eq=False)
class Options(Arguments):
    """What every way of making pictures takes."""

    hooks: Iterable[Hook] = argument(
        (), "called with every `Event`, in their order; assigning `event.value` edits the run"
    )
    model: Any = argument(None, "what `load` takes; the embedded model by default", "MODEL")
    scheduler: Any = argument(
        None, "a short name of `SCHEDULERS` or a diffusers scheduler; by default the model's own", "NAME"
    )
    generator: list[torch.Generator] | torch.Generator | None = argument(
        None, "torch generators instead of a seed, as diffusers takes them"
    )
    latents: Tensor | None = argument(
        None, "(B, C, h, w) start noise of unit variance instead of noise drawn from the seed"
    )
    prompt_embeds: Tensor | None = argument(
        None, "(P, L, D) text embeddings instead of prompt, from compel for instance"
    )
    negative_prompt_embeds: Tensor | None = argument(None, "the same instead of negative_prompt")
    pooled_prompt_embeds: Tensor | None = argument(None, "(P, D'), which SDXL needs beside prompt_embeds")
    negative_pooled_prompt_embeds: Tensor | None = argument(None, "the same beside negative_prompt_embeds")
    ip_adapter_image: Any = argument(
        None, "a picture to go by, or a list with one for each IP-Adapter that the pipeline carries", "FILE"
    )
    ip_adapter_image_embeds: list[Tensor] | None = argument(None, "the same as embeddings, as diffusers takes them")
    control_image: Any = argument(
        None, "a picture for the ControlNet that the pipeline carries, or a list with one for each", "FILE"
    )
    cross_attention_kwargs: Mapping[str, Any] | None = argument(
        None,
        'what attention processors take beside, as in diffusers: {"scale": 0.5} for LoRA, {"ip_adapter_masks": ...}',
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureOptions(FromPicture, Options):
    """What a run that starts from a picture takes."""

    mask_image: Any = argument(
        None,
        "white where to paint anew, in any form that a picture comes in, and fitted to its size. A U-Net with 9 "
        "channels sees mask and picture; for one with 4 the rest is put back after each step, and seams are fewest "
        "under a prompt for the whole picture, at a strength just below 1. As in diffusers, pictures that are "
        "inpainted together share the first one's draw of the latents",
        "FILE",
    )
    masked_image_latents: Tensor | None = argument(
        None,
        "(N, C, h, w) latents of the picture without what is under the mask, for a U-Net with 9 channels; by default "
        "they are encoded",
    )


@dataclass(frozen=True, eq=False)
class TextToImage(Options):
    """The arguments of `text_to_image`."""

    prompt: str | Sequence[str] | None = argument(None, "what to draw, or a list of such")
    progress: bool = argument(True, PROGRESS)


@dataclass(frozen=True, eq=False)
class ImageToImage(PictureOptions):
    """The arguments of `image_to_image`."""

    image: Any = argument(
        None,
        "the picture to start from, or a list of them: PIL, a path, an array (H, W, 3) of 0..255 or of [0, 1], or "
        "a tensor (3, H, W) of [0, 1]. With several pictures and one prompt, the prompt is for all; otherwise one "
        "each. A tensor (N, 4, h, w) is taken as latents",
        "FILE",
    )
    prompt: str | Sequence[str] | None = argument(None, "what to make of it")
    progress: bool = argument(True, PROGRESS)


@dataclass(frozen=True, eq=False)
class Stages(PictureOptions):
    """The arguments of `stages`."""

    prompt: str | Sequence[str] | None = argument(None, "what to draw, or what to make of the picture")
    image: Any = argument(None, "a picture to start from: whatever `image_to_image` takes", "FILE")


HABITS = {  # names from elsewhere, and what is meant here
    "steps": "num_inference_steps is meant",
    "cfg": "guidance_scale is meant",
    "cfg_scale": "guidance_scale is meant",
    "sampler": "scheduler is meant",
    "sampler_name": "scheduler is meant",
    "size": "height and width are meant",
    "n": "num_images_per_prompt is meant",
    "device": "give model=sdkit.load(..., device=...)",
    "dtype": "give model=sdkit.load(..., dtype=...)",
    "torch_dtype": "give model=sdkit.load(..., dtype=...)",
    "callback_on_step_end": "give hooks=[sdkit.hooks.from_diffusers(callback)]",
    "callback_on_step_end_tensor_inputs": "give hooks=[sdkit.hooks.from_diffusers(callback, tensor_inputs)]",
    "output_type": "a result has both, result.images as PIL and result.latents",
    "return_dict": "leave it out",
}


def takes(request: Callable[P, R]) -> Callable[[Callable[[R], T]], Callable[P, T]]:
    """Let a function of one request be called with the fields of that request, documented by the table.

    Raises:
        TypeError: when the function is called with an argument that the table does not have; the message has the
            nearest one.
    """

    def wrap(function: Callable[[R], T]) -> Callable[P, T]:
        @wraps(function)
        def called(*arguments: P.args, **options: P.kwargs) -> T:
            for name in options:
                if name not in known:
                    raise TypeError(f"there is no argument {name!r} here; {hint(name, function.__name__, known)}")
            return function(request(*arguments, **options))

        known = {one.name: one for one in fields(request)}  # type: ignore[arg-type]  # a dataclass
        signature = inspect.signature(request)
        returns = inspect.signature(function).return_annotation
        called.__signature__ = signature.replace(return_annotation=returns)  # type: ignore[attr-defined]
        lines = [
            textwrap.fill(
                f"{name}: {known[name].metadata['meaning']}.", 112, initial_indent=" " * 8, subsequent_indent=" " * 12
            )
            for name in signature.parameters
        ]
        text = inspect.cleandoc(function.__doc__ or "")
        described = "Args:\n" + textwrap.indent(textwrap.dedent("\n".join(lines)), " " * 4)
        called.__doc__ = text.replace("Args: as in the table.", described)
        return called

    return wrap


def hint(name: str, function: str, known: Iterable[str]) -> str:
    if name in ("image", "mask_image", "strength", "denoising_start", "padding_mask_crop", "masked_image_latents"):
        return "sdkit.image_to_image takes it"
    if name in HABITS:
        return HABITS[name]
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"help(sdkit.{function}) lists what there is"
