"""From what somebody asked for to a `Run`: everything is checked, the model's defaults are filled in, and what was left
to chance is drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Hook, checked
from sdkit.inputs.arguments import Settings
from sdkit.inputs.seeds import seed_each
from sdkit.model import schedulers
from sdkit.model.model import Model
from sdkit.model.vocabulary import sentence
from sdkit.process.materials import Generators, History, Pictures, check_control, embeds_for, plain_kwargs
from sdkit.process.run import Run, generators, surroundings

LARGE = 4  # times the pixels that a model was trained on, from which on a picture is said to be large


def prepare(
    settings: Settings,
    model: Model,
    scheduler: Any,
    *,
    hooks: Iterable[Hook] = (),
    generator: Generators = None,
    embeds: Mapping[str, Tensor | None] | None = None,
    cross_attention_kwargs: Mapping[str, Any] | None = None,
    latents: Tensor | None = None,
    pictures: Pictures | None = None,
    history: History | None = None,
    inversion: Mapping[str, Any] | None = None,
) -> Run:
    """Check everything, fill in the model's defaults, draw what was left to chance.

    Args:
        inversion: what the record of an inversion has beside, which goes through the timesteps the other way.
    """
    hooks = checked(hooks)
    pictures = pictures or Pictures()
    settings = _fitted(settings, model, pictures, latents)
    text_embeds = embeds_for(model, settings, embeds or {})
    if model.controlnets:
        check_control(settings, model)
    steps, guidance_scale = settings.num_inference_steps, settings.guidance_scale
    assert steps is not None and guidance_scale is not None  # noqa: PT018 - filled in by `_fitted`
    generator, seeds = _generators(settings, generator)
    device = model.device
    stepper = schedulers.fresh(scheduler, model.scheduler, generator)
    visits = schedulers.visits(
        stepper,
        steps,
        device,
        settings.strength,
        timesteps=settings.timesteps,
        sigmas=settings.sigmas,
        denoising_start=settings.denoising_start,
        denoising_end=settings.denoising_end,
        original_inference_steps=settings.original_inference_steps,
        distilled=model.takes_guidance,
    )
    assert settings.height is not None and settings.width is not None  # noqa: PT018 - filled in too
    shape = model.latent_shape(settings.pictures, settings.height, settings.width)
    record = {
        **asdict(settings),
        **text_embeds.shapes(),
        **pictures.hashes(),
        "seed": seeds,
        "latents": latents is not None,
        "cross_attention_kwargs": plain_kwargs(cross_attention_kwargs),
        "start": schedulers.level(stepper, visits[0]) | {"steps": len(visits)},
        "scheduler": schedulers.plain(stepper),
        "edited_by": [],  # names of the hooks that replaced a value, as they do
        **surroundings(model, device),
        **(inversion or {}),
    }
    run = Run(
        model=model,
        device=device,
        settings=settings,
        scheduler=stepper,
        visits=visits if inversion is None else visits[::-1],
        shape=shape,
        generator=generator,
        record=record,
        hooks=hooks,
        process="reverse" if inversion is None else "inversion",
        guidance_scale=guidance_scale,
        latents=None if latents is None else _check_latents(latents, shape, model.dtype),
        pictures=pictures,
        embeds=text_embeds,
        attention=None if cross_attention_kwargs is None else dict(cross_attention_kwargs),
        history=history,
    )
    _check_words(run)
    _note_unknown_words(run)
    return run


def _check_words(run: Run) -> None:
    """Say it where there is nothing that could read the words, and where diffusers pairs noise and pictures
    otherwise."""
    embeds, pictures = run.embeds, run.pictures
    needed = [embeds.prompt_embeds] + [embeds.negative_prompt_embeds] * (run.guided and not run.empty_is_zeros)
    if not run.model.encoders and any(one is None for one in needed):
        names = "prompt_embeds and negative_prompt_embeds" if run.guided else "prompt_embeds"
        raise ValueError(f"{run.model.name} carries no text encoder, so nothing reads words; give {names}")
    each = run.settings.num_images_per_prompt
    if pictures.pixels is not None and len(pictures.pixels) > 1 and each > 1:
        warnings.warn(
            f"{len(pictures.pixels)} pictures with {each} variations each: those of one picture come together, each "
            "from the noise that it would have alone; diffusers pairs pictures and noise otherwise",
            stacklevel=6,
        )


def _note_unknown_words(run: Run) -> None:
    """Say and write down which words the model does not know, or that a run from nothing is asked for nothing."""
    model, embeds, asked = run.model, run.embeds, run.settings
    if not model.vocabulary or embeds.prompt_embeds is not None:
        return
    negative = asked.negative_prompt if run.guided and embeds.negative_prompt_embeds is None else None
    refused = [negative] if isinstance(negative, str) else negative or []
    unknown = model.unknown_words(*asked.prompts, *refused)
    if unknown:
        run.record["unknown_words"] = unknown
    drawn_from_nothing = run.process == "reverse" and run.pictures.pixels is None and run.latents is None
    if unknown or (drawn_from_nothing and not all(prompt.strip() for prompt in asked.prompts)):
        warnings.warn(sentence(model.name, unknown, model.vocabulary), stacklevel=6)


def _fitted(settings: Settings, model: Model, pictures: Pictures, latents: Tensor | None) -> Settings:
    """The settings with the size of the pictures, a prompt for each of them, and the model's own defaults."""
    pixels, height, width = pictures.pixels, settings.height, settings.width
    if pixels is not None:
        if latents is not None:
            raise ValueError("both image and latents were given; a run starts from one of them")
        scale = 1 if pixels.shape[1] == 3 else model.pipeline.vae_scale_factor
        if settings.height is None and settings.width is None:
            _check_size(pixels.shape[-2] * scale, pixels.shape[-1] * scale, model)
        height, width = pixels.shape[-2] * scale, pixels.shape[-1] * scale
        if len(settings.prompts) == 1 and len(pixels) > 1:
            settings = replace(settings, prompt=settings.prompts * len(pixels))
        if len(pixels) not in (1, len(settings.prompts)):
            raise ValueError(
                f"{len(pixels)} pictures were given for {len(settings.prompts)} prompts; give one, or one each"
            )
    elif settings.strength is not None or settings.denoising_start is not None:
        name = "strength" if settings.strength is not None else "denoising_start"
        raise ValueError(f"{name} was given without image; it says how far a picture is noised")
    elif pictures.control:
        height, width = height or pictures.control[0].shape[-2], width or pictures.control[0].shape[-1]
    if model.paints and pictures.mask is None:
        raise ValueError(
            f"{model.name} paints into pictures: its U-Net sees a mask; give image_to_image a picture and mask_image"
        )
    return replace(
        settings,
        height=height or model.size[0],
        width=width or model.size[1],
        num_inference_steps=settings.num_inference_steps or model.num_inference_steps,
        guidance_scale=model.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
    )


def _check_size(height: int, width: int, model: Model) -> None:
    """Say it before minutes pass, where a picture is far larger than what the model was trained on."""
    times = height * width / (model.size[0] * model.size[1])
    if times > LARGE:
        side = (model.size[0] * model.size[1] / (height * width)) ** 0.5
        fit = [max(8, round(one * side / 8) * 8) for one in (height, width)]
        warnings.warn(
            f"the picture is {width}x{height}, {times:.0f} times the pixels that the model was trained on, so "
            f"every step takes as many times as long, or more; height={fit[0]}, width={fit[1]} would fit it",
            stacklevel=7,
        )


def _generators(settings: Settings, generator: Generators) -> tuple[Generators, list[int] | None]:
    """The generators of a run and the seeds that they stand for, or those that were given and None."""
    if generator is None:
        seeds = seed_each(settings.seed, settings.pictures)
        return generators(seeds), seeds
    if settings.seed is not None:
        raise ValueError("both seed and generator were given; give one of them")
    every = generator if isinstance(generator, list) else [generator]
    if not all(isinstance(one, torch.Generator) for one in every):
        raise TypeError(f"generator must be a torch.Generator or a list of them, but is {generator!r}")
    if isinstance(generator, list) and len(generator) != settings.pictures:
        raise ValueError(f"{len(generator)} generators were given for {settings.pictures} pictures; give one each")
    return generator, None


def _check_latents(latents: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents must be a tensor, but is a {type(latents).__name__}")
    if latents.shape != shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; expected {shape} for these prompts and this size")
    return latents.detach().to(dtype)
