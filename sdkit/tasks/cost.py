"""What a picture costs, part by part, and what a step would cost on pixels instead of latents: the reason why latent
diffusion exists (Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sdkit.door import Shown
from sdkit.inputs.checks import typed
from sdkit.model.loading import load
from sdkit.model.model import Model

REPEATS = 3  # of each measured call, after one to warm up; the median counts


@dataclass(frozen=True)
class Part:
    """One component of the model, and what one picture asks of it."""

    name: str
    parameters: int
    bytes: int  # that the parameters take
    calls: int  # for one picture
    flops: int  # floating-point operations of one call, two for each multiplication with its addition
    seconds: float  # of one call, measured


@dataclass(frozen=True)
class Step:
    """One step of the U-Net on one kind of picture: with guidance both halves."""

    shape: tuple[int, int, int]  # (C, h, w)
    flops: int
    seconds: float
    measured: bool  # otherwise `seconds` is estimated: as many times more as there are operations


@dataclass(frozen=True)
class Cost(Shown):
    """What a picture costs, from `cost`. Printed, it is a table."""

    model: str
    device: str
    parts: list[Part]
    latent: Step
    pixel: Step

    @property
    def flops(self) -> int:
        """Floating-point operations of one picture."""
        return sum(part.calls * part.flops for part in self.parts)

    @property
    def seconds(self) -> float:
        """Time of one picture: each part's measured call, as often as it is made."""
        return sum(part.calls * part.seconds for part in self.parts)

    def __repr__(self) -> str:
        size = f"{self.flops / 1e9:.1f} GFLOP in {self.seconds:.2f} s"
        return f"<Cost of a picture of {self.model} on {self.device}: {size}>"

    def __str__(self) -> str:
        lines = [
            f"{self.model} on {self.device}, one picture",
            f"{'part':16} {'parameters':>13} {'MB':>8} {'calls':>5} {'GFLOP a call':>13} {'share':>6} "
            f"{'ms a call':>10} {'share':>6}",
        ]
        for part in self.parts:
            lines.append(
                f"{part.name:16} {part.parameters:13,} {part.bytes / 1e6:8.1f} {part.calls:5} "
                f"{part.flops / 1e9:13.3f} {part.calls * part.flops / self.flops:6.1%} "
                f"{part.seconds * 1e3:10.2f} {part.calls * part.seconds / self.seconds:6.1%}"
            )
        parameters, size = sum(p.parameters for p in self.parts), sum(p.bytes for p in self.parts)
        lines.append(
            f"{'all':16} {parameters:13,} {size / 1e6:8.1f} {'':5} {self.flops / 1e9:13.1f} {'':6} "
            f"{self.seconds * 1e3:10.0f}  for the picture"
        )
        lines.append(f"\n{'one step on':16} {'shape':>13} {'numbers':>10} {'GFLOP':>13} {'seconds':>10}")
        for name, step in (("latents", self.latent), ("pixels", self.pixel)):
            c, h, w = step.shape
            time_of_it = f"{step.seconds:10.4g}" + ("" if step.measured else "  estimated from the operations")
            lines.append(f"{name:16} {f'{c}x{h}x{w}':>13} {c * h * w:10,} {step.flops / 1e9:13.3f} {time_of_it}")
        more, longer = self.pixel.flops / self.latent.flops, self.pixel.seconds / self.latent.seconds
        longer_too = f" and {longer:.0f} times the time" if self.pixel.measured else ""
        lines.append(f"on pixels {more:.0f} times the operations{longer_too}")
        return "\n".join(lines)


@typed(height=(8, 16384), width=(8, 16384), measure_up_to=(0, math.inf))
def cost(
    model: Any = None, *, height: int | None = None, width: int | None = None, measure_up_to: float = 1e11
) -> Cost:
    """Count the arithmetic and measure the time of one picture, part by part, and of a step on pixels.

    The operations are counted on copies without memory, so that no size costs anything; the time is measured on the
    model as it is. The step on pixels asks the very same U-Net about an input as large as the picture.

    Args:
        model: what `load` takes; the embedded model by default. Steps and guidance are its own.
        height, width: of the picture in pixels; by default the model's own.
        measure_up_to: floating-point operations of a step on pixels up to which it is timed; beyond, its time is
            estimated from them, as for the embedded model, where it takes about ten seconds on a CPU.

    Returns:
        Parameters, operations and time of each part, and of a step on latents and on pixels. Printed, it is a table.

    Example:
        >>> [part.name for part in sdkit.cost(measure_up_to=0).parts]
        ['text encoder', 'U-Net', 'decoder']
    """
    model = load(model)
    for name, side in (("height", height), ("width", width)):
        if side is not None and side % 8:
            raise ValueError(f"{name} {side} is not a multiple of 8; try {round(side / 8) * 8}")
    high, wide = height or model.size[0], width or model.size[1]
    rows = 2 if model.guidance_scale > 1 else 1  # guidance asks twice, in one call
    small = model.latent_shape(rows, high, wide)  # (2B, C, h, w)
    large, length = (*small[:2], high, wide), model.tokenizer.model_max_length
    encoders = {
        name.replace("_", " "): getattr(model.pipeline, name)
        for name in ("text_encoder", "text_encoder_2")
        if getattr(model.pipeline, name, None) is not None
    }
    parts = [_part(name, encoder, rows, text_call(encoder), model) for name, encoder in encoders.items()]
    parts.append(_part("U-Net", model.unet, model.num_inference_steps, unet_call(model.unet, small, length), model))
    parts.append(_part("decoder", model.vae, 1, decoder_call((1, *small[1:])), model))
    latent = Step(small[1:], parts[-2].flops, parts[-2].seconds, True)
    on_pixels = unet_call(model.unet, large, length)
    flops = count(model.unet, on_pixels)
    seconds = latent.seconds * flops / latent.flops
    measured = flops <= measure_up_to
    if measured:
        seconds = _seconds(model.unet, on_pixels, model.device, repeats=1)
    return Cost(model.name, model.device.type, parts, latent, Step(large[1:], flops, seconds, measured))


Call = Callable[[Any, torch.device, torch.dtype], Any]  # a component asked once, on inputs of its device and dtype


def unet_call(unet: Any, shape: tuple[int, ...], length: int) -> Call:
    """One prediction for x of this shape (2B, C, h, w) under so many tokens."""
    config, rows = unet.config, shape[0]

    def call(unet: Any, device: torch.device, dtype: torch.dtype) -> Any:
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        extra = {}
        if config.addition_embed_type == "text_time":  # SDXL: pooled text and six numbers on size and crop
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            extra = {"text_embeds": torch.zeros(rows, pooled, **new), "time_ids": torch.zeros(rows, 6, **new)}
        text = torch.zeros(rows, length, config.cross_attention_dim, **new)
        x, t = torch.zeros(shape, **new), torch.full((), 500, device=device)
        return unet(x, t, encoder_hidden_states=text, added_cond_kwargs=extra or None, return_dict=False)

    return call


def text_call(encoder: Any) -> Call:
    """One window of tokens read."""
    length, last = encoder.config.max_position_embeddings, encoder.config.vocab_size - 1

    def call(encoder: Any, device: torch.device, _dtype: torch.dtype) -> Any:
        return encoder(torch.full((1, length), last, device=device))

    return call


def decoder_call(shape: tuple[int, ...]) -> Call:
    """One picture decoded from latents (1, C, h, w)."""

    def call(vae: Any, device: torch.device, dtype: torch.dtype) -> Any:
        return vae.decode(torch.zeros(shape, device=device, dtype=dtype), return_dict=False)

    return call


@torch.no_grad()
def count(component: Any, call: Call) -> int:
    """Floating-point operations of one call, counted on a copy of the component that holds no numbers."""
    meta = torch.device("meta")
    with meta:
        kind = type(component)
        copy = kind.from_config(component.config) if hasattr(kind, "from_config") else kind(component.config)
    with FlopCounterMode(display=False) as counter:
        call(copy.eval(), meta, torch.float32)
    return int(counter.get_total_flops())


@torch.no_grad()
def _seconds(component: Any, call: Call, device: torch.device, repeats: int = REPEATS) -> float:
    """Median time of a call, on the component itself; with several repeats, after one more to warm up."""
    times = []
    dtype = next(component.parameters()).dtype
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        call(component, device, dtype)
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[-repeats:])


def _part(name: str, component: Any, calls: int, call: Call, model: Model) -> Part:
    owned = component.parameters() if name != "decoder" else _decoding(component)
    weights = list(owned)
    return Part(
        name=name,
        parameters=sum(weight.numel() for weight in weights),
        bytes=sum(weight.nbytes for weight in weights),
        calls=calls,
        flops=count(component, call),
        seconds=_seconds(component, call, model.device),
    )


def _decoding(vae: Any) -> list[Tensor]:
    """The parameters of an autoencoder that decoding uses."""
    return [*vae.decoder.parameters(), *(vae.post_quant_conv.parameters() if vae.post_quant_conv is not None else [])]
