"""The mathematics of noising on plain numbers: x = alpha * x0 + sigma * eps.

(alpha, sigma) with alpha^2 + sigma^2 = 1 is the variance-preserving form of DDPM (Ho et al. 2020, arXiv:2006.11239);
alpha = 1 is the form of Karras et al. (2022, arXiv:2206.00364), in which Euler and its kin work. Every formula here
holds in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Scalar = Tensor | float


@dataclass(frozen=True)
class NoiseLevel:
    """How noisy the sample of one step is: x = alpha * x0 + sigma * eps."""

    t: int  # training timestep
    alpha: float
    sigma: float

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio of variances, for a signal of unit variance; infinite without noise."""
        return float(snr(self.alpha, self.sigma)) if self.sigma else float("inf")

    @property
    def noise(self) -> float:
        """The noise's share of the variance, in [0, 1]."""
        return self.sigma**2 / (self.alpha**2 + self.sigma**2)

    @property
    def scale(self) -> float:
        """Standard deviation of x for an x0 of unit variance: 1 in the variance-preserving form."""
        return float((self.alpha**2 + self.sigma**2) ** 0.5)


def x0_from(prediction: Tensor, x: Tensor, alpha: Scalar, sigma: Scalar, prediction_type: str) -> Tensor:
    """The clean sample that a prediction implies.

    Args:
        prediction: what the model predicted for `x`, same shape.
        prediction_type: "epsilon" (the noise), "sample" (x0 itself) or "v_prediction"
            (v = alpha * eps - sigma * x0 at unit variance; Salimans and Ho 2022, arXiv:2202.00512).
    """
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        scale = (alpha**2 + sigma**2) ** 0.5  # 1 in the variance-preserving form
        return (alpha / scale) * (x / scale) - (sigma / scale) * prediction
    raise ValueError(_unknown(prediction_type))


def prediction_from(x0: Tensor, x: Tensor, alpha: Scalar, sigma: Scalar, prediction_type: str) -> Tensor:
    """The inverse of `x0_from`: what the model would have had to predict for `x`."""
    if prediction_type == "epsilon":
        return (x - alpha * x0) / sigma
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        scale = (alpha**2 + sigma**2) ** 0.5
        return ((alpha / scale) * (x / scale) - x0) * (scale / sigma)
    raise ValueError(_unknown(prediction_type))


def _unknown(prediction_type: str) -> str:
    return f"unknown prediction type {prediction_type!r}; expected 'epsilon', 'sample' or 'v_prediction'"


def guide(uncond: Tensor, cond: Tensor, guidance_scale: float, guidance_rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance, uncond + g * (cond - uncond): 1 is off (Ho and Salimans 2022, arXiv:2207.12598).

    `guidance_rescale` in [0, 1] mixes in the result rescaled to the spread of `cond` per picture, against
    overexposure (Lin et al. 2023, arXiv:2305.08891, section 3.4).
    """
    guided = uncond + guidance_scale * (cond - uncond)
    if guidance_rescale == 0.0:
        return guided
    every = list(range(1, cond.ndim))
    rescaled = guided * (cond.std(dim=every, keepdim=True) / guided.std(dim=every, keepdim=True))
    return guidance_rescale * rescaled + (1 - guidance_rescale) * guided


def snr(alpha: Scalar, sigma: Scalar) -> Scalar:
    """Signal-to-noise ratio of variances, alpha^2 / sigma^2, of a clean sample and noise of unit variance."""
    return (alpha / sigma) ** 2


def lerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point `weight` of the way on the straight line from `a` to `b`; at 0 and 1 the very ends."""
    if weight in (0, 1):
        return b if weight else a
    return (1 - weight) * a + weight * b


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point `weight` of the way along the great circle from `a` to `b`, each sample (B, ...) for itself; at 0 and 1
    the very ends.

    The direction turns evenly (Shoemake 1985, "Animating rotation with quaternion curves") and the norm goes evenly
    from one to the other. Noise of many dimensions lies on a sphere; the straight line cuts through it, where the
    samples are less noisy than the model expects. Where both point the same way or opposite ways there is no one great
    circle, and the straight line is taken.
    """
    if weight in (0, 1):
        return b if weight else a
    u, v = a.flatten(1), b.flatten(1)  # (B, n)
    u, v = u.to(torch.promote_types(u.dtype, torch.float32)), v.to(torch.promote_types(v.dtype, torch.float32))
    lengths = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)  # (B, 1)
    u, v = u / lengths[0].clamp(min=1e-12), v / lengths[1].clamp(min=1e-12)
    angle = (u * v).sum(1, keepdim=True).clamp(-1, 1).acos()
    turned = (((1 - weight) * angle).sin() * u + (weight * angle).sin() * v) / angle.sin().clamp(min=1e-12)
    point = turned * lerp(*lengths, weight)
    straight = lerp(a.flatten(1), b.flatten(1), weight).to(point.dtype)
    return torch.where(angle.sin() < 1e-3, straight, point).view_as(a).to(a.dtype)
