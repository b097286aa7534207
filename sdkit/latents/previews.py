"""Latents as small pictures without the decoder: a linear map from the channels of a latent to red, green and blue,
fitted by least squares to what the model's own decoder makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdkit.door import Shown
from sdkit.inputs.checks import told, typed
from sdkit.latents.autoencoder import Latents, encode
from sdkit.measure import ColourMap, fit_colours, psnr, shrunk
from sdkit.model.loading import load
from sdkit.model.model import Model
from sdkit.pictures import to_pil

LESSONS, SIDE = 24, 128  # random images to learn from, and their pixels a side


@dataclass(frozen=True, eq=False)
class LatentToRGB(Shown):
    """A linear map from latents to colours. Called with latents, it shows them as small pictures."""

    weight: Tensor  # (3, C)
    bias: Tensor  # (3,)
    r2: float  # share of the variance of unseen decoded pictures, averaged over each latent's pixels, that it explains
    psnr: float  # dB on the same

    def __repr__(self) -> str:
        channels = self.weight.shape[1]
        return f"<LatentToRGB of {channels} channels: R2 {self.r2:.2f}, {self.psnr:.1f} dB on unseen pictures>"

    @typed()
    def pixels(self, latents: Latents | Tensor) -> Tensor:
        """Latents (B, C, h, w) as colours (B, 3, h, w) in [-1, 1]."""
        z = (latents.tensor if isinstance(latents, Latents) else latents).detach().cpu()
        if z.ndim != 4 or z.shape[1] != self.weight.shape[1]:
            raise ValueError(f"latents must be (B, {self.weight.shape[1]}, h, w) for this map, but are {told(z)}")
        return 2 * ColourMap(self.weight.T, self.bias)(z) - 1

    @typed(scale=(1, 64))
    def __call__(self, latents: Latents | Tensor, scale: int = 8) -> list[Image.Image]:
        """Small pictures, one for each of the batch, enlarged `scale` times and smoothed."""
        colours = self.pixels(latents)
        return to_pil(F.interpolate(colours, scale_factor=scale, mode="bilinear") if scale > 1 else colours)


# By the hash of a model's weights. That of the embedded model is here, fitted to drawings, the only pictures it knows.
_fitted = {
    "c30153d8fe4e5398": LatentToRGB(
        torch.tensor(
            [
                [0.34381, 0.08579, 0.01844, 0.006],
                [0.1144, 0.29486, 0.0357, 0.00267],
                [0.01631, 0.04952, 0.35707, -0.00118],
            ]
        ),
        torch.tensor([0.51999, 0.49095, 0.47492]),
        r2=0.80396,
        psnr=19.166,
    )
}


def latent_to_rgb(model: Any = None) -> LatentToRGB:
    """The map for a model, fitted once for its weights: seconds on a CPU, and from then on it is at hand.

    It learns from random images with the spectrum of photographs (amplitude 1/f; Field 1987,
    https://doi.org/10.1364/JOSAA.4.002379), encoded and decoded by the model itself, and is tested on others of them.
    That of the embedded model comes with it and has learned from drawings.

    Args:
        model: what `load` takes; the embedded model by default.

    Returns:
        The map from latents (B, C, h, w) to small pictures, with its R2 and PSNR on pictures that it has not seen.

    Example:
        >>> rgb = sdkit.latent_to_rgb()
        >>> rgb(trace.at(3)[Stage.DENOISED].value)[0].size
        (128, 128)
    """
    model = load(model)
    key = model.fingerprint()
    if key not in _fitted:
        _fitted[key] = _fit(model, _pictures(LESSONS, SIDE))
    return _fitted[key]


def _fit(model: Model, pictures: Tensor) -> LatentToRGB:
    """Least squares from latents to what the decoder makes of them, averaged over the pixels of each latent. Of the
    pictures (n, 3, H, W), in [-1, 1], the first third is kept back to test."""
    latents = [encode(part, model=model).tensor for part in torch.split(pictures, 8)]
    decoded = torch.cat([model.decode(z).cpu().float().clamp(-1, 1) for z in latents])
    z, test = torch.cat(latents).cpu().float(), len(pictures) // 3
    colours = fit_colours([z[test:]], [decoded[test:]])
    small, shown = shrunk(decoded[:test], z), 2 * colours(z[:test]) - 1
    spread = (small - small.mean((0, 2, 3), keepdim=True)).square().sum()
    r2 = 1 - (shown - small).square().sum() / spread
    return LatentToRGB(colours.weight.T, colours.bias, r2.item(), psnr(shown.flatten()[None], small.flatten()[None])[0])


def _pictures(count: int, side: int) -> Tensor:
    """Random images (count, 3, side, side) in [-1, 1] of amplitude 1/f, always the same."""
    white = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    waves = (torch.fft.fftfreq(side)[:, None] ** 2 + torch.fft.fftfreq(side)[None] ** 2).sqrt()
    waves[0, 0] = 1 / side  # the mean of a picture varies as much as its slowest wave
    smooth = torch.fft.ifft2(torch.fft.fft2(white) / waves).real
    pictures: Tensor = (smooth / smooth.flatten(1).std(1).view(-1, 1, 1, 1)).tanh()
    return pictures
