"""The autoencoder by itself: pictures to latents and back, what is lost on the way, and how small a latent is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdkit.loading import load
from sdkit.model import Model
from sdkit.pictures import to_pil, to_pixels


@dataclass(frozen=True, eq=False)
class Latents:
    """What the encoder makes of pictures: for every value a normal distribution, scaled as the U-Net knows latents."""

    mean: Tensor  # (B, C, h, w)
    std: Tensor  # (B, C, h, w)

    @property
    def tensor(self) -> Tensor:
        """The mean (B, C, h, w), which is what `decode` takes."""
        return self.mean

    def sample(self, seed: int | Sequence[int] = 0) -> Tensor:
        """Latents (B, C, h, w) drawn from the distribution: mean + std * noise.

        Args:
            seed: one for each picture, or a single one that the pictures count up from, as everywhere.
        """
        seeds = [seed + i for i in range(len(self.mean))] if isinstance(seed, int) else list(seed)
        if len(seeds) != len(self.mean):
            raise ValueError(
                f"{len(seeds)} seeds were given for {len(self.mean)} latents; give one each, or a single one"
            )
        generators = [torch.Generator().manual_seed(one) for one in seeds]
        noise = torch.stack([torch.randn(self.mean.shape[1:], generator=one) for one in generators])
        return self.mean + self.std * noise.to(self.mean)

    def __len__(self) -> int:
        return len(self.mean)

    def __repr__(self) -> str:
        return f"<Latents {tuple(self.mean.shape)}: mean {self.mean.mean():.3f}, std {self.mean.std():.3f}>"

    def _repr_html_(self) -> str:
        from sdkit.display import show_latents

        return show_latents(self)


def encode(picture: Any, *, model: Any = None, tiled: bool = False) -> Latents:
    """Encode pictures.

    Args:
        picture: PIL, a path, an array or a tensor, or a list of such of one size; see `sdkit.pictures.to_pixels`.
        model: what `load` takes; the embedded model by default.
        tiled: in overlapping tiles of the size that the autoencoder was trained on, blended where they meet, which
            bounds the memory that a large picture takes. Each tile is normalised by itself, so the values differ a
            little from those of the whole.

    Raises:
        ValueError, TypeError, FileNotFoundError: `picture` is none; the message says why.
    """
    owner = load(model)
    with _tiles(owner, tiled):
        return as_latents(owner, owner.encode(to_pixels(picture).to(owner.device, owner.dtype)))


def as_latents(model: Model, posterior: Tensor) -> Latents:
    """Mean and log-variance (B, 2C, h, w) as the encoder gives them, as `Latents`."""
    mean, log_variance = posterior.chunk(2, dim=1)
    scale = model.vae.config.scaling_factor
    return Latents(mean * scale, (log_variance.clamp(-30, 20) / 2).exp() * scale)  # clamped as in diffusers


def decode(latents: Latents | Tensor, *, model: Any = None, tiled: bool = False) -> list[Image.Image]:
    """Decode latents, one picture for each of the batch.

    Args:
        latents: what `encode` returned, or a tensor (B, C, h, w), as the U-Net knows them.
        model: what `load` takes; the embedded model by default.
        tiled: in overlapping tiles, as for `encode`.

    Raises:
        ValueError: the shape is not that of latents of this model, or the picture comes out as NaN.
    """
    owner = load(model)
    with _tiles(owner, tiled):
        return to_pil(owner.decode(check_latents(owner, latents)))


def check_latents(model: Model, latents: Latents | Tensor) -> Tensor:
    """Latents as a tensor (B, C, h, w) where the model computes, in its dtype."""
    z, channels = latents.tensor if isinstance(latents, Latents) else latents, model.vae.config.latent_channels
    if not isinstance(z, Tensor):
        raise TypeError(f"latents must be Latents or a tensor, but are a {type(z).__name__}")
    if z.ndim != 4 or z.shape[1] != channels or not z.is_floating_point():
        raise ValueError(f"latents of this model are floats (B, {channels}, h, w), but were given as {tuple(z.shape)}")
    return z.detach().to(model.device, model.dtype)


@contextmanager
def _tiles(model: Model, tiled: bool) -> Iterator[None]:
    """The autoencoder works in tiles within this scope, or as a whole, whichever was asked for."""
    before, model.vae.use_tiling = model.vae.use_tiling, tiled or model.vae.use_tiling
    try:
        yield
    finally:
        model.vae.use_tiling = before


# ---------------------------------------------------------------------------------------------------------------------
# There and back


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """Pictures, what came back of them, and what the way through the latents cost."""

    originals: list[Image.Image]  # as they were encoded
    images: list[Image.Image]  # as they came back
    differences: list[Image.Image]  # gray where nothing changed, brighter and darker by four times the change
    latents: Latents
    psnr: list[float]  # dB, one a picture
    ssim: list[float]  # structural similarity, 1 where nothing changed

    @property
    def pixel_values(self) -> int:
        """Numbers that one picture takes: 3 * H * W."""
        width, height = self.originals[0].size
        return 3 * width * height

    @property
    def latent_values(self) -> int:
        """Numbers that its latents take: C * h * w."""
        return self.latents.mean[0].numel()

    @property
    def pixel_bytes(self) -> int:
        """At 8 bits a number."""
        return self.pixel_values

    @property
    def latent_bytes(self) -> int:
        """In the dtype that the latents came in."""
        return self.latents.mean[0].nbytes

    def __str__(self) -> str:
        lines = [f"{'picture':>7} {'PSNR':>9} {'SSIM':>7}"]
        lines += [f"{i:7} {p:6.2f} dB {s:7.4f}" for i, (p, s) in enumerate(zip(self.psnr, self.ssim, strict=True))]
        (width, height), (c, h, w) = self.originals[0].size, self.latents.mean.shape[1:]
        lines += [
            f"picture {height} x {width} x 3 = {self.pixel_values:,} numbers, {self.pixel_bytes:,} bytes at 8 bits",
            f"latents {h} x {w} x {c} = {self.latent_values:,} numbers, {self.latent_bytes:,} bytes in "
            f"{str(self.latents.mean.dtype).removeprefix('torch.')}",
            f"that is {self.pixel_values / self.latent_values:.1f} times fewer numbers and "
            f"{self.pixel_bytes / self.latent_bytes:.1f} times fewer bytes",
        ]
        return "\n".join(lines)


def round_trip(picture: Any, *, model: Any = None, tiled: bool = False) -> RoundTrip:
    """Encode pictures, decode the means, and measure what was lost. Takes the arguments of `encode`.

    Example:
        >>> print(sdkit.round_trip("photo.png"))
    """
    owner, pixels = load(model), to_pixels(picture)  # (B, 3, H, W)
    latents = encode(pixels, model=owner, tiled=tiled)
    with _tiles(owner, tiled):
        back = owner.decode(latents.tensor).float().cpu().clamp(-1, 1)
    return RoundTrip(
        originals=to_pil(pixels),
        images=to_pil(back),
        differences=to_pil((2 * (back - pixels)).clamp(-1, 1)),
        latents=latents,
        psnr=psnr(pixels, back),
        ssim=ssim(pixels, back),
    )


def psnr(a: Tensor, b: Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB of pictures (B, 3, H, W) in [-1, 1], each for itself; infinite where equal."""
    error = (a.double().clamp(-1, 1) - b.double().clamp(-1, 1)).square().flatten(1).mean(1)
    values: list[float] = (10 * torch.log10(4 / error)).tolist()  # of a range of 2
    return values


def ssim(a: Tensor, b: Tensor) -> list[float]:
    """Structural similarity of pictures (B, 3, H, W) in [-1, 1], each for itself: the mean over colours and places of
    (2 m_a m_b + c1) (2 cov + c2) / ((m_a^2 + m_b^2 + c1) (var_a + var_b + c2)) in a Gaussian window of 11 pixels and
    standard deviation 1.5 (Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity"). Pictures of fewer than 11 pixels get a window of their own size."""
    side = min(11, *a.shape[-2:])
    reach = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-(reach**2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, side, side)
    a, b = ((x.double().clamp(-1, 1) + 1) / 2 for x in (a, b))  # in [0, 1]
    mean_a, mean_b, aa, bb, ab = (F.conv2d(x, window, groups=3) for x in (a, b, a * a, b * b, a * b))
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    likeness = likeness / ((mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2))
    values: list[float] = likeness.flatten(1).mean(1).tolist()
    return values
