"""Gradients: x0, the noise or x is moved to where a loss is smaller."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.hooks.guidance import length
from sdkit.inputs.checks import told, typed

Loss = Callable[[Tensor], Tensor]


@typed()
def steer(loss: Loss, scale: float) -> Hook:
    """Move each x0 (B, C, h, w) down the gradient of a loss on it, `scale` times its length of one unit.

    Compare `scale` with the length of x0, about the root of the number of its values: 32 for 4x16x16, 128 for 4x64x64.
    An eighth of that at each step is strong.
    A loss on the picture decodes x0 first, with `model.vae.decode(x0 / model.vae.config.scaling_factor).sample`.

    Example:
        >>> goal = sdkit.encode(picture).mean
        >>> nearer = sdkit.hooks.steer(lambda x0: (x0 - goal).square().mean(), scale=4.0)
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[nearer])
    """

    @on(Stage.DENOISED)
    def steer(event: Event) -> None:
        with torch.enable_grad():
            x0 = event.value.detach().requires_grad_()
            gradient = down(loss(x0), x0)
        event.value = event.value - scale * gradient / length(gradient)

    return steer


@typed(scale=(0, math.inf))
def freedom(loss: Loss, scale: float, *, decoded: bool = False) -> Hook:
    """Guide by any loss on the x0 that is predicted: eps + s * gradient of the loss in x, taken through the U-Net
    (universal guidance, Bansal et al. 2023, arXiv:2302.07121; FreeDoM, Yu et al. 2023, arXiv:2303.09833).

    The gradient of each picture is made `scale` times as long as its eps, which FreeDoM does likewise: 0.1 is a
    little, 0.5 much. A loss of several pictures is their sum.

    Args:
        loss: of x0 (B, C, h, w), or where it is decoded of pictures (B, 3, H, W) in [-1, 1].

    Example:
        >>> bluer = sdkit.hooks.freedom(lambda pictures: -pictures[:, 2].mean(), 0.1, decoded=True)
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[bluer])
    """

    @on(Stage.GUIDED)
    def freedom(event: Event) -> None:
        if scale:
            gradient = _through_the_unet(event.run, loss, decoded)
            eps = event.run.eps_of(event.value)
            add_to_eps(event, scale * length(eps) / length(gradient) * gradient)

    return freedom


@typed(scale=(0, math.inf))
def dps(measure: Loss, seen: Tensor, scale: float = 1.0, *, decoded: bool = False) -> Hook:
    """Diffusion posterior sampling: solve seen = measure(x0) + noise, for instance to sharpen or to fill in. After each
    step x goes against the gradient of |seen - measure(x0)|, taken through the U-Net (Chung et al. 2022,
    arXiv:2209.14687, algorithm 1).

    Not with heun, kdpm2, dpmpp_2s, dpmpp_sde and pndm, which refuse an edit of the latent within their steps.

    Args:
        measure: what was done to x0 (B, C, h, w), or where it is decoded to pictures (B, 3, H, W) in [-1, 1].
        seen: what came of it.
        scale: zeta.

    Example:
        >>> upper = lambda x0: x0[..., :8, :]
        >>> seen = upper(sdkit.encode(picture).mean)
        >>> sdkit.text_to_image("a red star", seed=1, hooks=[sdkit.hooks.dps(upper, seen)])
    """

    def distance(x0: Tensor) -> Tensor:
        total: Tensor = length(seen.to(x0) - measure(x0)).sum()
        return total

    @on(Stage.LATENT, Stage.GUIDED)
    def dps(event: Event) -> None:
        run = event.run
        kept = run.keep(dps, dict)
        if event.stage is Stage.LATENT:
            if "gradient" in kept:
                event.value = event.value - scale * scale_of(event) * kept.pop("gradient")
        elif scale:
            kept["gradient"] = scale_of(event) * _through_the_unet(run, distance, decoded)

    return dps


def _through_the_unet(run: Any, loss: Loss, decoded: bool) -> Tensor:
    """The gradient in x (B, C, h, w) of a loss on the x0 that the U-Net and guidance make of it."""
    with torch.enable_grad():
        x = run.seen[Stage.LATENT].detach().requires_grad_()
        x0: Tensor = run.x0_of(run.guide(run.predict(x)), x)
        vae = run.model.vae
        seen: Tensor = vae.decode(x0 / vae.config.scaling_factor).sample if decoded else x0
        return down(loss(seen), x)


def down(loss: Tensor, x: Tensor) -> Tensor:
    """The gradient of a loss in x.

    Raises:
        ValueError: the loss is not one number, or has no gradient.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(f"loss must return one number as a tensor with a gradient, but returned {told(loss)}")
    gradient: Tensor = torch.autograd.grad(loss.sum(), x, materialize_grads=True)[0]
    return gradient


def add_to_eps(event: Event, change: Tensor) -> None:
    """Change the noise that a prediction stands for, whatever its type is."""
    run, level = event.run, event.run.levels[event.step]
    event.value = run.noise_of(run.x0_of(event.value) - level.sigma / level.alpha * change)


def scale_of(event: Event) -> float:
    """The standard deviation of x, by which a gradient in it is smaller than in an x of unit variance."""
    return 1.0 if event.step is None else float(event.run.levels[event.step].scale)
