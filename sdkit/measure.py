"""How far pictures are apart, and which colours latents stand for: measures on plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
    distance = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-(distance**2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, side, side)
    a, b = ((x.double().clamp(-1, 1) + 1) / 2 for x in (a, b))  # in [0, 1]
    mean_a, mean_b, aa, bb, ab = (F.conv2d(x, window, groups=3) for x in (a, b, a * a, b * b, a * b))
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2))
    values: list[float] = similarity.flatten(1).mean(1).tolist()
    return values


@dataclass(frozen=True, eq=False)
class ColourMap:
    """A linear map from latents to colours, which stands in for the decoder where a small picture will do."""

    weight: Tensor  # (C, 3) to colours in [-1, 1]
    bias: Tensor  # (3,)
    true: bool = True  # False: it was not fitted to pictures, so the colours only tell values apart

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as colours (B, 3, h, w) in [0, 1]."""
        rgb = torch.einsum("bchw,cd->bdhw", latents.float(), self.weight) + self.bias[:, None, None]
        return rgb.clamp(-1, 1) / 2 + 0.5


def fit_colours(latents: Sequence[Tensor], pictures: Sequence[Tensor], ridge: float = 0.0) -> ColourMap:
    """The map that fits best by least squares: latents (B, C, h, w) to their pictures (B, 3, H, W) in [-1, 1], averaged
    over the pixels of each latent.

    Args:
        ridge: share of the number of samples that pulls the weights to zero where the latents do not vary.
    """
    x = torch.cat([rows_of(z) for z in latents]).double()  # (N, C)
    y = torch.cat([rows_of(shrunk(p, z)) for z, p in zip(latents, pictures, strict=True)]).double()  # (N, 3)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)  # (N, C + 1)
    pull = ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    pull[-1, -1] = 0
    solution = torch.linalg.solve(x.T @ x + pull, x.T @ y).float()  # (C + 1, 3)
    return ColourMap(solution[:-1], solution[-1])


def false_colours(latents: Sequence[Tensor]) -> ColourMap:
    """The first three principal components of latents (B, C, h, w) as red, green and blue, for want of pictures."""
    x = torch.cat([rows_of(z) for z in latents])  # (N, C)
    mean, spread = x.mean(dim=0), x.std(dim=0).max().clamp(min=1e-6)
    basis = torch.linalg.svd(x - mean, full_matrices=False).Vh[:3].T  # (C, 3)
    basis = F.pad(basis, (0, 3 - basis.shape[1])) / (2 * spread)
    return ColourMap(basis, -(mean @ basis), true=False)


def shrunk(pictures: Tensor, latents: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) averaged over the pixels of each latent, (B, 3, h, w)."""
    return F.adaptive_avg_pool2d(pictures, (latents.shape[-2], latents.shape[-1]))


def rows_of(values: Tensor) -> Tensor:
    """Values (B, C, h, w) as one row a place, (B * h * w, C)."""
    return values.movedim(1, -1).reshape(-1, values.shape[1])
