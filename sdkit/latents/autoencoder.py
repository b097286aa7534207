"""The autoencoder by itself: pictures to latents and back, what is lost on the way, and how small a latent is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdkit.door import Shown
from sdkit.inputs.checks import told, typed
from sdkit.inputs.seeds import seed_each
from sdkit.measure import psnr, ssim
from sdkit.model.latents import in_tiles
from sdkit.model.loading import load
from sdkit.model.model import Model
from sdkit.pictures import to_pil, to_pixels
from sdkit.process.run import generators


@dataclass(frozen=True, eq=False)
class Latents(Shown):
    """The encoder's output for pictures: for every value a normal distribution, scaled as the U-Net knows latents."""

    mean: Tensor  # (B, C, h, w)
    std: Tensor  # (B, C, h, w)

    def __post_init__(self) -> None:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if not isinstance(value, Tensor) or value.ndim != 4 or value.shape != self.mean.shape:
                raise TypeError(f"{name} must be a Tensor (B, C, h, w), as large as the other, but is {told(value)}")

    @property
    def tensor(self) -> Tensor:
        """The mean (B, C, h, w), which is what `decode` takes."""
        return self.mean

    @typed()
    def sample(self, seed: int | Sequence[int] = 0) -> Tensor:
        """Latents (B, C, h, w) drawn from the distribution: mean + std * noise.

        Args:
            seed: one for each picture, or a single one that the pictures count up from, as everywhere.

        Example:
            >>> sdkit.encode(picture).sample(seed=7).shape
            torch.Size([1, 4, 16, 16])
        """
        each = generators(seed_each(seed, len(self.mean)))
        noise = torch.stack([torch.randn(self.mean.shape[1:], generator=one) for one in each])
        return self.mean + self.std * noise.to(self.mean)

    def __len__(self) -> int:
        return len(self.mean)

    def __repr__(self) -> str:
        return f"<Latents {tuple(self.mean.shape)}: mean {self.mean.mean():.3f}, std {self.mean.std():.3f}>"


@typed()
def encode(picture: Any, *, model: Any = None, tiled: bool = False) -> Latents:
    """Encode pictures.

    Args:
        picture: PIL, a path, an array or a tensor, or a list of such of one size; see `sdkit.pictures.to_pixels`.
        model: what `load` takes; the embedded model by default.
        tiled: in overlapping tiles of the size that the autoencoder was trained on, blended where they meet, which
            bounds the memory that a large picture takes. Each tile is normalised by itself, so the values differ a
            little from those of the whole.

    Returns:
        Mean and standard deviation of the latents, (B, C, h, w) each, scaled as the U-Net knows them.

    Raises:
        ValueError, TypeError, FileNotFoundError: `picture` is none; the message says why.

    Example:
        >>> sdkit.encode(picture).mean.shape
        torch.Size([1, 4, 16, 16])
    """
    model = load(model)
    with in_tiles(model.vae, tiled):
        return Latents(*model.moments(model.encode(to_pixels(picture).to(model.device, model.dtype))))


@typed(latents=None)
def decode(latents: Latents | Tensor, *, model: Any = None, tiled: bool = False) -> list[Image.Image]:
    """Decode latents, one picture for each of the batch.

    Args:
        latents: what `encode` returned, or a tensor (B, C, h, w), as the U-Net knows them.
        model: what `load` takes; the embedded model by default.
        tiled: in overlapping tiles, as for `encode`.

    Returns:
        B pictures in RGB, each (8h, 8w) pixels in Stable Diffusion.

    Raises:
        ValueError: the shape is not that of latents of this model, or the picture comes out as NaN.

    Example:
        >>> sdkit.decode(sdkit.encode(picture))[0].size
        (128, 128)
    """
    model = load(model)
    with in_tiles(model.vae, tiled):
        return to_pil(model.decode(check_latents(model, latents)))


def check_latents(model: Model, latents: Latents | Tensor) -> Tensor:
    """Latents as a tensor (B, C, h, w) where the model computes, in its dtype."""
    z, channels = latents.tensor if isinstance(latents, Latents) else latents, model.vae.config.latent_channels
    if not isinstance(z, Tensor):
        raise TypeError(f"latents must be Latents or a tensor, but are a {type(z).__name__}")
    if z.ndim != 4 or z.shape[1] != channels or not z.is_floating_point():
        raise ValueError(
            f"latents of this model are floats (B, {channels}, h, w), but these are {z.dtype} {tuple(z.shape)}"
        )
    return z.detach().to(model.device, model.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# There and back


@dataclass(frozen=True, eq=False)
class RoundTrip(Shown):
    """Pictures, what came back of them, and what the way through the latents cost."""

    originals: list[Image.Image]  # as they were encoded
    images: list[Image.Image]  # as they came back
    differences: list[Image.Image]  # gray where nothing changed, brighter and darker by four times the change
    latents: Latents
    psnr: list[float]  # dB, one a picture
    ssim: list[float]  # structural similarity, 1 where nothing changed

    @property
    def pixel_values(self) -> int:
        """Numbers that one picture takes, 3 * H * W, and bytes, at 8 bits a number."""
        width, height = self.originals[0].size
        return 3 * width * height

    @property
    def latent_values(self) -> int:
        """Numbers that its latents take: C * h * w."""
        return self.latents.mean[0].numel()

    @property
    def latent_bytes(self) -> int:
        """In the dtype that the latents came in."""
        return self.latents.mean[0].nbytes

    def __repr__(self) -> str:
        many = f"{len(self.images)} picture{'s' * (len(self.images) > 1)}"
        return f"<RoundTrip of {many}: PSNR {min(self.psnr):.2f} dB, SSIM {min(self.ssim):.4f} at the worst>"

    def __str__(self) -> str:
        lines = [f"{'picture':>7} {'PSNR':>9} {'SSIM':>7}"]
        lines += [f"{i:7} {p:6.2f} dB {s:7.4f}" for i, (p, s) in enumerate(zip(self.psnr, self.ssim, strict=True))]
        (width, height), (c, h, w) = self.originals[0].size, self.latents.mean.shape[1:]
        lines += [
            f"picture {height} x {width} x 3 = {self.pixel_values:,} numbers, {self.pixel_values:,} bytes at 8 bits",
            f"latents {h} x {w} x {c} = {self.latent_values:,} numbers, {self.latent_bytes:,} bytes in "
            f"{str(self.latents.mean.dtype).removeprefix('torch.')}",
            f"that is {self.pixel_values / self.latent_values:.1f} times fewer numbers and "
            f"{self.pixel_values / self.latent_bytes:.1f} times fewer bytes",
        ]
        return "\n".join(lines)


@typed()
def round_trip(picture: Any, *, model: Any = None, tiled: bool = False) -> RoundTrip:
    """Encode pictures, decode the means, and measure what was lost. Takes the arguments of `encode`.

    Returns:
        The pictures before and after, and one PSNR in dB and one SSIM, up to 1, for each. Printed, it is a table.

    Example:
        >>> print(sdkit.round_trip(picture))
    """
    model, pixels = load(model), to_pixels(picture)  # (B, 3, H, W)
    latents = encode(pixels, model=model, tiled=tiled)
    with in_tiles(model.vae, tiled):
        back = model.decode(latents.tensor).float().cpu().clamp(-1, 1)
    return RoundTrip(
        originals=to_pil(pixels),
        images=to_pil(back),
        differences=to_pil((2 * (back - pixels)).clamp(-1, 1)),
        latents=latents,
        psnr=psnr(pixels, back),
        ssim=ssim(pixels, back),
    )
