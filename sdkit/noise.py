"""The mathematics of noising on plain numbers: x = alpha * x0 + sigma * eps.

(alpha, sigma) with alpha^2 + sigma^2 = 1 is the variance-preserving form of DDPM (Ho et al. 2020, arXiv:2006.11239);
alpha = 1 is the form of Karras et al. (2022, arXiv:2206.00364), in which Euler and its kin work. Every formula here
holds in both.
"""

from __future__ import annotations

from torch import Tensor

Scalar = Tensor | float


def x0_from(prediction: Tensor, x: Tensor, alpha: Scalar, sigma: Scalar, prediction_type: str) -> Tensor:
    """The clean sample that a prediction implies.

    Args:
        prediction: what the model said about `x`, same shape.
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
    """The inverse of `x0_from`: what the model would have had to say about `x` for this clean sample."""
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
