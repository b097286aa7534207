"""Words in, or a picture and words, and pictures out: `text_to_image`, `image_to_image`, and `stages`, which is either
as a loop of your own."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import fields
from typing import Any

from sdkit.events import Event
from sdkit.inputs.arguments import STRENGTH, Settings
from sdkit.inputs.checks import truth
from sdkit.inputs.signatures import ImageToImage, Options, Stages, TextToImage, takes
from sdkit.model.loading import load
from sdkit.pictures import to_pil
from sdkit.process.materials import EMBEDS, pictures_for, prompts_for
from sdkit.process.prepare import prepare
from sdkit.process.result import Result
from sdkit.process.reverse import reverse
from sdkit.process.run import Run, begin
from sdkit.progress import driven


@takes(TextToImage)
def text_to_image(request: TextToImage) -> Result:
    """Generate pictures from words.

    Args: as in the table.

    Returns:
        The pictures, their clean latents, and the settings that made them.

    Raises:
        ValueError, TypeError, FileNotFoundError: an argument is not what it should be; the message says which.

    Example:
        >>> sdkit.text_to_image("a red star on a blue background", seed=7).save("star.png")
    """
    return made(_prepared(request, request.prompt), progress=request.progress)


@takes(ImageToImage)
def image_to_image(request: ImageToImage) -> Result:
    """Generate variations of a picture: noise it part of the way, then denoise it under new words (SDEdit, Meng et al.
    2021, arXiv:2108.01073). With a mask, paint anew what is under it and keep the rest.

    Args: as in the table.

    Returns:
        The pictures, their clean latents, and the settings that made them; "start" in these says where the run began.

    Raises:
        ValueError, TypeError, FileNotFoundError: an argument is not what it should be; the message says which.

    Example:
        >>> sdkit.image_to_image("star.png", "a green star", strength=0.6, seed=7).save("green.png")
    """
    if request.image is None:
        raise TypeError(
            "image_to_image needs the picture to start from as its first argument; text_to_image needs none"
        )
    return made(_from_picture(request), progress=request.progress)


@takes(Stages)
def stages(request: Stages) -> Generator[Event, None, Result]:
    """Make a run a loop of your own: every `Event` in turn, and `break` when you have seen enough.

    Without image it does what `text_to_image` does, with it what `image_to_image` does. All arguments are checked
    before the first event. Assigning `event.value` edits. Hooks see each event before the loop does; the stages inside
    the U-Net, at which no loop can stop, are for them alone.

    Args: as in the table.

    Returns:
        The generator of events, which returns the `Result` in the end.

    Example:
        >>> for event in sdkit.stages("a red star", seed=7):
        ...     if event.stage is Stage.DENOISED and event.step == 12:
        ...         break
    """
    return result_of(_from_picture(request))


def _from_picture(request: ImageToImage | Stages) -> Run:
    strength = request.strength
    if strength is None and request.image is not None:
        strength = STRENGTH
    return _prepared(
        request,
        request.prompt,
        {
            "strength": strength,
            "denoising_start": request.denoising_start,
            "padding_mask_crop": request.padding_mask_crop,
        },
        image=request.image,
        mask_image=request.mask_image,
        masked_image_latents=request.masked_image_latents,
    )


def _prepared(request: Options, prompt: Any, start: dict[str, Any] | None = None, **pictures: Any) -> Run:
    """The run that the arguments of a function ask for."""
    embeds = {name: getattr(request, name) for name in EMBEDS}
    names = {field.name for field in fields(Settings)} & {field.name for field in fields(Options)}
    settings = Settings(
        prompts_for(prompt, embeds), **{name: getattr(request, name) for name in names}, **(start or {})
    )
    model = load(request.model)
    return prepare(
        settings,
        model,
        request.scheduler,
        hooks=request.hooks,
        generator=request.generator,
        embeds=embeds,
        cross_attention_kwargs=request.cross_attention_kwargs,
        latents=request.latents,
        pictures=pictures_for(
            model,
            settings,
            control_image=request.control_image,
            ip_adapter_image=request.ip_adapter_image,
            ip_adapter_image_embeds=request.ip_adapter_image_embeds,
            **pictures,
        ),
    )


def made(one: Run, *, progress: bool = True) -> Result:
    """The result of a prepared run, with a bar over its steps if that is wanted."""
    truth("progress", progress)
    return driven(result_of(one), wanted=progress)


def result_of(one: Run) -> Generator[Event, None, Result]:
    """A prepared run of the reverse process, not yet begun."""
    latents, image = yield from begin(one, reverse(one))
    lay_back, pictures = one.pictures.lay_back, to_pil(image)
    whole = pictures if lay_back is None else [lay_back(part) for part in pictures]
    return Result(whole, latents, one.record["seed"], one.record)
