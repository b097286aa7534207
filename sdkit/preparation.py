"""From what somebody asked for to a `Run`: everything is checked, the model's defaults are filled in, and what was left
to chance is drawn."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor

from sdkit import schedulers
from sdkit.model import Model
from sdkit.pictures import to_mask, to_pixels, to_rgb
from sdkit.runs import Embeds, Generators, History, Pictures, Run, surroundings
from sdkit.settings import Settings

EMBEDS = tuple(field.name for field in fields(Embeds))


def prepare(
    settings: Settings,
    model: Model,
    scheduler: Any,
    *,
    generator: Generators = None,
    embeds: Mapping[str, Tensor | None] | None = None,
    latents: Tensor | None = None,
    pictures: Pictures | None = None,
    history: History | None = None,
) -> Run:
    """Check everything, fill in the model's defaults, draw what was left to chance."""
    pictures = pictures or Pictures()
    settings = _fitted(settings, model, pictures, latents)
    heard = _check_embeds(model, settings, embeds or {})
    steps, guidance_scale = settings.num_inference_steps, settings.guidance_scale
    assert steps is not None and guidance_scale is not None  # noqa: PT018 - filled in by `_fitted`
    generator, seeds = _generators(settings, generator)
    stepper = schedulers.fresh(scheduler, model.scheduler, generator)
    visits = schedulers.visits(
        stepper,
        steps,
        model.device,
        settings.strength,
        timesteps=settings.timesteps,
        sigmas=settings.sigmas,
        denoising_start=settings.denoising_start,
        denoising_end=settings.denoising_end,
        distilled=model.takes_guidance,
    )
    assert settings.height is not None and settings.width is not None  # noqa: PT018 - filled in too
    shape = model.latent_shape(settings.pictures, settings.height, settings.width)
    record = {
        **asdict(settings),
        **_told(heard),
        **pictures.hashes(),
        "seed": seeds,
        "latents": latents is not None,
        "start": schedulers.level(stepper, visits[0]) | {"steps": len(visits)},
        "scheduler": {"class": type(stepper).__name__, **schedulers.plain(stepper.config)},
        "edited_by": [],  # names of the hooks that replaced a value, as they do
        **surroundings(model),
    }
    return Run(
        model=model,
        settings=settings,
        guidance_scale=guidance_scale,
        shape=shape,
        generator=generator,
        latents=None if latents is None else _check_latents(latents, shape, model.dtype),
        pictures=pictures,
        embeds=heard,
        scheduler=stepper,
        visits=visits,
        record=record,
        history=history,
    )


def _fitted(settings: Settings, model: Model, pictures: Pictures, latents: Tensor | None) -> Settings:
    """The settings with the size of the pictures, a prompt for each of them, and the model's own defaults."""
    pixels, height, width = pictures.pixels, settings.height, settings.width
    if pixels is not None:
        if latents is not None:
            raise ValueError("both image and latents were given; a run starts from one of them")
        scale = 1 if pixels.shape[1] == 3 else model.pipeline.vae_scale_factor
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


def pictures_for(
    model: Model,
    settings: Settings,
    *,
    image: Any = None,
    mask_image: Any = None,
    control_image: Any = None,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: list[Tensor] | None = None,
) -> Pictures:
    """All pictures that a run is given, in the form in which it works with them."""
    size: tuple[Any, Any] = (settings.height, settings.width)
    pixels = mask = None
    if image is not None:
        pixels = to_pixels(image, *size, latent_channels=model.vae.config.latent_channels)
        scale = 1 if pixels.shape[1] == 3 else model.pipeline.vae_scale_factor
        size = pixels.shape[-2] * scale, pixels.shape[-1] * scale
    if mask_image is not None:
        if pixels is None:
            raise ValueError("mask_image was given without image; it says where to paint a picture anew")
        mask = to_mask(mask_image, *size)
        if len(mask) not in (1, len(pixels)):
            raise ValueError(f"{len(mask)} masks were given for {len(pixels)} pictures; give one, or one each")
    return Pictures(
        pixels,
        mask,
        _control_pictures(model, control_image, size),
        _ip_adapter_pictures(model, ip_adapter_image, ip_adapter_image_embeds),
        ip_adapter_image_embeds,
    )


def _control_pictures(model: Model, image: Any, size: tuple[int | None, int | None]) -> list[Tensor]:
    """For each ControlNet its pictures, (M, 3, H, W) in [0, 1]."""
    nets = len(model.controlnets)
    if image is None:
        if nets:
            raise ValueError(f"{model.name} carries a ControlNet; give the picture that it goes by as control_image")
        return []
    if not nets:
        raise ValueError(f"control_image was given, but {model.name} carries no ControlNet; load a pipeline with one")
    each = [image] if nets == 1 else image
    if not isinstance(each, list | tuple) or len(each) != nets:
        raise ValueError(f"control_image must be a list of {nets}, one for each ControlNet")
    return [to_pixels(one, *size, signed=False) for one in each]


def _ip_adapter_pictures(model: Model, image: Any, embeds: list[Tensor] | None) -> Any:
    """The pictures for the IP-Adapters as diffusers takes them: PIL, or tensors as they came."""
    takes = model.unet.config.encoder_hid_dim_type == "ip_image_proj"
    if image is not None and embeds is not None:
        raise ValueError("both ip_adapter_image and ip_adapter_image_embeds were given; give one of them")
    if takes and image is None and embeds is None:
        raise ValueError(f"{model.name} carries an IP-Adapter; give the picture that it goes by as ip_adapter_image")
    if not takes and (image is not None or embeds is not None):
        raise ValueError(
            f"ip_adapter_image was given, but {model.name} carries no IP-Adapter; load one with "
            "pipeline.load_ip_adapter(...)"
        )

    def rgb(one: Any) -> Any:
        if isinstance(one, list | tuple):
            return [rgb(part) for part in one]
        return one if one is None or isinstance(one, Tensor) else to_rgb(one)

    return rgb(image)


def _generators(settings: Settings, generator: Generators) -> tuple[Generators, list[int] | None]:
    """The generators of a run and the seeds that they stand for, or those given and None."""
    if generator is None:
        seeds = settings.seeds_from(secrets.randbelow(2**32) if settings.seed is None else settings.seed)
        return [torch.Generator().manual_seed(seed) for seed in seeds], seeds
    if settings.seed is not None:
        raise ValueError("both seed and generator were given; give one of them")
    given = generator if isinstance(generator, list) else [generator]
    if not all(isinstance(one, torch.Generator) for one in given):
        raise TypeError(f"generator must be a torch.Generator or a list of them, but is {generator!r}")
    if isinstance(generator, list) and len(generator) != settings.pictures:
        raise ValueError(f"{len(generator)} generators were given for {settings.pictures} pictures; give one each")
    return generator, None


def prompts_for(prompt: str | Sequence[str] | None, embeds: Mapping[str, Tensor | None]) -> str | Sequence[str]:
    """The prompt, or one empty one for each of the embeddings that stand in for it."""
    given = embeds["prompt_embeds"]
    if given is None:
        if prompt is None:
            raise TypeError("neither prompt nor prompt_embeds was given; give one of them")
        return prompt
    if prompt is not None:
        raise ValueError("both prompt and prompt_embeds were given; give one of them")
    if not isinstance(given, Tensor) or given.ndim != 3 or not len(given):
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"prompt_embeds must be a tensor (P, L, D), but is {shape}")
    return "" if len(given) == 1 else [""] * len(given)


def _check_embeds(model: Model, settings: Settings, given: Mapping[str, Tensor | None]) -> Embeds:
    """Embeddings given for the negative prompts and the prompts, on the model's device and in its dtype."""
    there: dict[str, Tensor] = {name: embeds for name, embeds in given.items() if embeds is not None}
    if "negative_prompt_embeds" in there and settings.negative_prompt is not None:
        raise ValueError("both negative_prompt and negative_prompt_embeds were given; give one of them")
    many = len(settings.prompts)
    for name, embeds in there.items():
        pooled = "pooled" in name
        letters, width = ("(P, D')", model.pooled_width) if pooled else ("(P, L, D)", model.text_width)
        if pooled and not model.is_xl:
            raise ValueError(f"{name} was given, but {model.name} takes no pooled embeddings; leave it out")
        if (
            not isinstance(embeds, Tensor)
            or embeds.ndim != 3 - pooled
            or len(embeds) != many
            or embeds.shape[-1] != width
        ):
            shape = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
            raise ValueError(
                f"{name} must be a tensor {letters} with P = {many} and {letters[-2:-1].strip() or 'D'} = {width}, "
                f"but is {shape}"
            )
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        pooled_name = name.replace("prompt", "pooled_prompt")
        if model.is_xl and (name in there) != (pooled_name in there):
            raise ValueError(f"{model.name} takes {name} and {pooled_name} together; give both")
    shapes = {tuple(there[name].shape) for name in ("prompt_embeds", "negative_prompt_embeds") if name in there}
    if len(shapes) > 1:
        raise ValueError(
            f"prompt_embeds {tuple(there['prompt_embeds'].shape)} and negative_prompt_embeds "
            f"{tuple(there['negative_prompt_embeds'].shape)} differ in shape; make them equally long"
        )
    return Embeds(**{name: embeds.detach().to(model.device, model.dtype) for name, embeds in there.items()})


def _told(embeds: Embeds) -> dict[str, Any]:
    """What the record says of embeddings: that they stood in for words, and their shape."""
    told: dict[str, Any] = {}
    for name in EMBEDS:
        one = getattr(embeds, name)
        if one is not None:
            told[name] = list(one.shape)
            if "pooled" not in name:
                told[name.removesuffix("_embeds")] = None
    return told


def _check_latents(latents: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents must be a tensor, but is a {type(latents).__name__}")
    if latents.shape != shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; expected {shape} for these prompts and this size")
    return latents.detach().to(dtype)
