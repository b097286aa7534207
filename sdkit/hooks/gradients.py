"""Gradients: x0 is moved to where a loss is smaller."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on


def steer(loss: Callable[[Tensor], Tensor], scale: float) -> Hook:
    """Move each x0 (B, C, h, w) down the gradient of a loss on it, `scale` times its length of one unit.

    Compare `scale` with the length of x0, about the root of the number of its values: 32 for 4x16x16, 128 for 4x64x64.
    An eighth of that at each step is strong.
    A loss on the picture decodes x0 first, with `model.vae.decode(x0 / model.vae.config.scaling_factor).sample`.
    """

    @on(Stage.DENOISED)
    def steer(event: Event) -> None:
        with torch.enable_grad():
            x0 = event.value.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(x0), x0)
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        event.value = event.value - scale * gradient / length

    return steer
