"""The autoencoder: pictures to the distribution of their latents, and latents to pictures, without overflow.

Precision and tiling are switched on the autoencoder itself, which runs in other threads may be using: so it works for
one of them at a time.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

_ONE_AT_A_TIME = threading.RLock()


@torch.no_grad()
def encode(vae: Any, pixels: Tensor, precision: torch.dtype) -> Tensor:
    """Mean and log-variance (B, 2C, h, w) of what the encoder makes of pictures (B, 3, H, W) in [-1, 1]."""
    with _ONE_AT_A_TIME, _in_precision(precision, vae):
        output = vae.encode(pixels.to(precision))
    if hasattr(output, "latents"):  # of a tiny autoencoder: the latents themselves, of no variance
        return torch.cat([output.latents, torch.full_like(output.latents, -30.0)], dim=1)
    posterior: Tensor = output.latent_dist.parameters
    return posterior


def moments(vae: Any, posterior: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C, h, w) of a posterior (B, 2C, h, w), scaled as the U-Net knows latents."""
    mean, log_variance = posterior.chunk(2, dim=1)
    scale = vae.config.scaling_factor
    return mean * scale, (log_variance.clamp(-30, 20) / 2).exp() * scale  # clamped as in diffusers


@torch.no_grad()
def decode(vae: Any, latents: Tensor, *, overflows: bool, **kept: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) of latents (B, C, h, w), in float32 where the decoder `overflows` in half precision."""
    with _ONE_AT_A_TIME:
        if vae.dtype == torch.float16 and overflows:
            return _decode_in_float32(vae, latents)
        image: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False, **kept)[0]
        if vae.dtype == torch.float32 or bool(image.isfinite().all()):
            return image
        if not bool(latents.isfinite().all()):
            raise FloatingPointError(
                f"the U-Net's latents are not finite in {latents.dtype}; load the model in bfloat16 or float32"
            )
        warnings.warn(f"the decoder overflowed in {vae.dtype}; its picture was decoded again in float32", stacklevel=4)
        return _decode_in_float32(vae, latents)


def _decode_in_float32(vae: Any, latents: Tensor) -> Tensor:
    with _in_precision(torch.float32, vae):
        image: Tensor = vae.decode(latents.float() / vae.config.scaling_factor, return_dict=False)[0]
    return image


@contextmanager
def _meanwhile(change: Callable[[], Any], back: Callable[[], Any]) -> Iterator[None]:
    try:
        try:
            change()
            yield
        finally:
            back()
    finally:
        back()  # once more, for Ctrl-C in the line above


@contextmanager
def _in_precision(dtype: torch.dtype, vae: Any) -> Iterator[None]:
    """The autoencoder in another precision, and then as it was: half precision survives float32 and back."""
    before = vae.dtype
    if dtype == before:
        yield
        return
    with _meanwhile(lambda: vae.to(dtype=dtype), lambda: vae.to(dtype=before)):
        yield


@contextmanager
def in_tiles(vae: Any, tiled: bool) -> Iterator[None]:
    """The autoencoder works in tiles within this scope, or as a whole, whichever was asked for."""
    with _ONE_AT_A_TIME:
        before, tile = vae.use_tiling, partial(setattr, vae, "use_tiling")
        with _meanwhile(lambda: tile(tiled or before), lambda: tile(before)):
            yield
