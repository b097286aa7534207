"""What a run is given beside its settings, in the form in which it works with it: pictures, embeddings, generators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from sdkit.inputs.arguments import Settings
from sdkit.model.model import Model
from sdkit.pictures import crop_to_mask, hash_of, to_mask, to_pixels, to_rgb

Generators = list[torch.Generator] | torch.Generator | None


@dataclass(frozen=True, eq=False)
class History:
    """The first steps of an earlier run, to be stepped through again without the U-Net."""

    latents: list[Tensor]  # x of each step, (B, C, h, w), as its prediction saw it
    predictions: list[Tensor]  # the prediction that the scheduler was given, (B, C, h, w)


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures that a run was given, checked."""

    pixels: Tensor | None = None  # (N, 3, H, W) in [-1, 1] to start from, or latents (N, 4, h, w) of them; B = N * n
    mask: Tensor | None = None  # (M, 1, H, W), 1 where to paint anew; M is 1 or N
    masked: Tensor | None = None  # (N, C, h, w) latents of what is left of the pictures, instead of encoding it
    lay_back: Callable[[Any], Any] | None = None  # a part that was cut out around the mask, into its whole
    control: list[Tensor] = field(default_factory=list)  # for each ControlNet (M, 3, H, W) in [0, 1]
    ip_adapter_image: Any = None  # as diffusers takes it: PIL, or a list for several IP-Adapters
    ip_adapter_image_embeds: list[Tensor] | None = None

    def hashes(self) -> dict[str, Any]:
        """What a record has of them: a hash of each picture, and the shapes of embeddings."""
        embeds = self.ip_adapter_image_embeds
        return {
            "image": hash_of(self.pixels),
            "mask_image": hash_of(self.mask),
            "masked_image_latents": hash_of(self.masked),
            "control_image": hash_of(self.control or None),
            "ip_adapter_image": hash_of(self.ip_adapter_image),
            "ip_adapter_image_embeds": embeds and [list(one.shape) for one in embeds],
        }


@dataclass(frozen=True, eq=False)
class Embeds:
    """Text embeddings that were given instead of words."""

    negative_prompt_embeds: Tensor | None = None  # (P, L, D)
    prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None  # (P, D'), of SDXL
    pooled_prompt_embeds: Tensor | None = None

    def shapes(self) -> dict[str, Any]:
        """What a record has of them: their shapes, and no words where they stand for them."""
        record: dict[str, Any] = {}
        for name in EMBEDS:
            one = getattr(self, name)
            if one is not None:
                record[name] = list(one.shape)
                if "pooled" not in name:
                    record[name.removesuffix("_embeds")] = None
        return record


EMBEDS = tuple(one.name for one in fields(Embeds))


def pictures_for(
    model: Model,
    settings: Settings,
    *,
    image: Any = None,
    mask_image: Any = None,
    masked_image_latents: Tensor | None = None,
    control_image: Any = None,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: list[Tensor] | None = None,
) -> Pictures:
    """All pictures that a run is given, in the form in which it works with them."""
    size: tuple[Any, Any] = (settings.height, settings.width)
    pixels = mask = lay_back = None
    if settings.padding_mask_crop is not None:
        if mask_image is None or any(isinstance(one, list | tuple | Tensor) for one in (image, mask_image)):
            raise ValueError("padding_mask_crop cuts one picture around one mask_image: PIL, a path or an array each")
        size = (size[0] or model.size[0], size[1] or model.size[1])
        pixels, mask, lay_back = crop_to_mask(image, mask_image, *size, settings.padding_mask_crop)
    elif image is not None:
        pixels = to_pixels(image, *size, latent_channels=model.vae.config.latent_channels)
        scale = 1 if pixels.shape[1] == 3 else model.pipeline.vae_scale_factor
        size = pixels.shape[-2] * scale, pixels.shape[-1] * scale
    if mask_image is not None and mask is None:
        if pixels is None:
            raise ValueError("mask_image was given without image; it says where to paint a picture anew")
        mask = to_mask(mask_image, *size)
        if len(mask) not in (1, len(pixels)):
            raise ValueError(f"{len(mask)} masks were given for {len(pixels)} pictures; give one, or one each")
    return Pictures(
        pixels,
        mask,
        _masked(model, masked_image_latents, pixels, mask),
        lay_back,
        _control_pictures(model, control_image, size),
        _ip_adapter_pictures(model, ip_adapter_image, ip_adapter_image_embeds),
        ip_adapter_image_embeds,
    )


def _masked(model: Model, masked: Any, pixels: Tensor | None, mask: Tensor | None) -> Tensor | None:
    if masked is None:
        return None
    if not model.paints or mask is None or pixels is None:
        raise ValueError("masked_image_latents is for a picture with mask_image and a U-Net with 9 channels")
    scale = model.pipeline.vae_scale_factor if pixels.shape[1] == 3 else 1
    sides = (pixels.shape[-2] // scale, pixels.shape[-1] // scale)
    shape = (len(pixels), model.vae.config.latent_channels, *sides)
    if not isinstance(masked, Tensor) or masked.shape != shape:
        given = tuple(masked.shape) if isinstance(masked, Tensor) else type(masked).__name__
        raise ValueError(f"masked_image_latents must be a tensor {shape} for this picture, but is {given}")
    return masked.detach()


def for_each_net(value: float | Sequence[float], nets: int) -> list[float]:
    """One number for all ControlNets, or one each, as a list."""
    return [value] * nets if isinstance(value, int | float) else list(value)


def check_control(settings: Settings, model: Model) -> None:
    """Whether scales, starts and ends fit the ControlNets.

    Raises:
        ValueError: there are more or fewer of them, or a net would start after its end.
    """
    nets, each = len(model.controlnets), {}
    for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"):
        each[name] = for_each_net(getattr(settings, name), nets)
        if len(each[name]) != nets:
            raise ValueError(
                f"{name} has {len(each[name])} values for {nets} ControlNets; give one for all, or one each"
            )
    for start, end in zip(each["control_guidance_start"], each["control_guidance_end"], strict=True):
        if start >= end:
            raise ValueError(f"control_guidance_start {start:g} must lie below control_guidance_end {end:g}")


def plain_kwargs(values: Any) -> dict[str, Any] | None:
    """What a record has of `cross_attention_kwargs`: numbers as they are, of tensors a hash.

    Raises:
        TypeError: they are no dictionary of names.
    """
    if values is None:
        return None
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise TypeError(f"cross_attention_kwargs must be a dictionary of names, but is {values!r:.80}")
    return {name: _plain(name, one) for name, one in values.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(name, one) for one in value]
    if isinstance(value, Tensor):
        return hash_of(value)
    if value is not None and not isinstance(value, int | float | str):
        raise TypeError(
            f"cross_attention_kwargs holds {name!r} of type {type(value).__name__}; give numbers or tensors"
        )
    return value


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


def prompts_for(prompt: str | Sequence[str] | None, embeds: Mapping[str, Tensor | None]) -> str | Sequence[str]:
    """The prompt, or one empty one for each of the embeddings that stand in for it."""
    text = embeds["prompt_embeds"]
    if text is None:
        if prompt is None:
            raise TypeError("neither prompt nor prompt_embeds was given; give one of them")
        return prompt
    if prompt is not None:
        raise ValueError("both prompt and prompt_embeds were given; give one of them")
    if not isinstance(text, Tensor) or text.ndim != 3 or not len(text):
        shape = tuple(text.shape) if isinstance(text, Tensor) else type(text).__name__
        raise ValueError(f"prompt_embeds must be a tensor (P, L, D), but is {shape}")
    return "" if len(text) == 1 else [""] * len(text)


def embeds_for(model: Model, settings: Settings, embeds: Mapping[str, Tensor | None]) -> Embeds:
    """Embeddings instead of the negative prompts or the prompts, on the model's device and in its dtype."""
    known: dict[str, Tensor] = {name: one for name, one in embeds.items() if one is not None}
    if "negative_prompt_embeds" in known and settings.negative_prompt is not None:
        raise ValueError("both negative_prompt and negative_prompt_embeds were given; give one of them")
    many = len(settings.prompts)
    for name, one in known.items():
        pooled = "pooled" in name
        letters, width = ("(P, D')", model.pooled_width) if pooled else ("(P, L, D)", model.text_width)
        if pooled and not model.is_xl:
            raise ValueError(f"{name} was given, but {model.name} takes no pooled embeddings; leave it out")
        if not isinstance(one, Tensor) or one.ndim != 3 - pooled or len(one) != many or one.shape[-1] != width:
            shape = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
            raise ValueError(
                f"{name} must be a tensor {letters} with P = {many} and {letters[-2:-1].strip() or 'D'} = {width}, "
                f"but is {shape}"
            )
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        pooled_name = name.replace("prompt", "pooled_prompt")
        if model.is_xl and (name in known) != (pooled_name in known):
            raise ValueError(f"{model.name} takes {name} and {pooled_name} together; give both")
    shapes = {tuple(known[name].shape) for name in ("prompt_embeds", "negative_prompt_embeds") if name in known}
    if len(shapes) > 1:
        raise ValueError(
            f"prompt_embeds {tuple(known['prompt_embeds'].shape)} and negative_prompt_embeds "
            f"{tuple(known['negative_prompt_embeds'].shape)} differ in shape; make them equally long"
        )
    return Embeds(**{name: one.detach().to(model.device, model.dtype) for name, one in known.items()})
