"""Latents as small pictures without the decoder: a linear map from the channels of a latent to red, green and blue,
fitted by least squares to what the model's own decoder makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdkit.latents import Latents, encode
from sdkit.loading import load
from sdkit.model import Model
from sdkit.pictures import to_pil

LESSONS, SIDE = 24, 128  # pictures to learn from, a third of them kept back to test, and their pixels a side

_fitted: dict[str, LatentToRGB] = {}  # by the hash of the model's weights


@dataclass(frozen=True, eq=False)
class LatentToRGB:
    """A linear map from latents to colours. Called with latents, it shows them as small pictures."""

    weight: Tensor  # (3, C)
    bias: Tensor  # (3,)
    r2: float  # share of the variance of unseen decoded pictures, averaged over each latent's pixels, that it explains
    psnr: float  # dB on the same

    def pixels(self, latents: Latents | Tensor) -> Tensor:
        """Latents (B, C, h, w) as colours (B, 3, h, w) in [-1, 1]."""
        z = (latents.tensor if isinstance(latents, Latents) else latents).detach().cpu().float()
        colours = torch.einsum("rc,bchw->brhw", self.weight, z) + self.bias.view(1, 3, 1, 1)
        return colours.clamp(-1, 1)

    def __call__(self, latents: Latents | Tensor, scale: int = 8) -> list[Image.Image]:
        """Small pictures, one for each of the batch, enlarged `scale` times and smoothed."""
        colours = self.pixels(latents)
        return to_pil(F.interpolate(colours, scale_factor=scale, mode="bilinear") if scale > 1 else colours)


def latent_to_rgb(model: Any = None) -> LatentToRGB:
    """The map for a model, fitted once for its weights: seconds on a CPU, and from then on it is at hand.

    It learns from smooth chance in all colours, with the spectrum of photographs (amplitude 1/f; Field 1987,
    https://doi.org/10.1364/JOSAA.4.002379), encoded and decoded by the model itself, and is tested on others of them.

    Args:
        model: what `load` takes; the embedded model by default.

    Example:
        >>> rgb = sdkit.latent_to_rgb()
        >>> rgb(trace.at(3)[Stage.DENOISED].value)[0].show()
    """
    owner = load(model)
    key = owner.fingerprint()
    if key not in _fitted:
        _fitted[key] = _fit(owner)
    return _fitted[key]


def _fit(model: Model) -> LatentToRGB:
    """Least squares from latents to what the decoder makes of them, averaged over the pixels of each latent."""
    given, wanted = [], []
    for pictures in torch.split(_pictures(LESSONS, SIDE), 8):
        z = encode(pictures, model=model).tensor
        image = model.decode(z).cpu().float().clamp(-1, 1)
        wanted.append(F.adaptive_avg_pool2d(image, (z.shape[-2], z.shape[-1])))
        given.append(z.cpu().float())
    x = _rows(torch.cat(given))  # (pictures * h * w, C)
    x, y = torch.cat([x, torch.ones(len(x), 1)], dim=1).double(), _rows(torch.cat(wanted)).double()
    test = len(x) // 3
    solution = torch.linalg.lstsq(x[test:], y[test:]).solution  # (C + 1, 3)
    error = (x[:test] @ solution).clamp(-1, 1) - y[:test]
    r2 = 1 - error.square().sum() / (y[:test] - y[:test].mean(0)).square().sum()
    psnr = 10 * torch.log10(4 / error.square().mean())  # of a range of 2
    weight, bias = solution[:-1].T.float(), solution[-1].float()
    return LatentToRGB(weight.contiguous(), bias, r2.item(), psnr.item())


def _rows(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1).flatten(0, 2)


def _pictures(count: int, side: int) -> Tensor:
    """Chance with the amplitude 1/f (count, 3, side, side), in [-1, 1], always the same."""
    white = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    waves = (torch.fft.fftfreq(side)[:, None] ** 2 + torch.fft.fftfreq(side)[None] ** 2).sqrt()
    waves[0, 0] = 1 / side  # the mean of a picture varies as much as its slowest wave
    smooth = torch.fft.ifft2(torch.fft.fft2(white) / waves).real
    pictures: Tensor = (smooth / smooth.flatten(1).std(1).view(-1, 1, 1, 1)).tanh()
    return pictures
