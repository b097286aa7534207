"""Trajectories: the way of the latents from noise to picture is changed or cut short."""

from __future__ import annotations

import math
from collections.abc import Container
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.inputs.checks import told, typed
from sdkit.inputs.seeds import check_seed


@typed()
def inject_noise(strength: float, *, seed: int, steps: Container[int]) -> Hook:
    """Add noise of standard deviation `strength` to the latents before some steps.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.inject_noise(0.2, seed=1, steps=range(10))])
    """
    check_seed(seed)

    @on(Stage.LATENT, steps=steps)
    def inject_noise(event: Event) -> None:
        generator = event.run.keep(inject_noise, lambda: torch.Generator().manual_seed(seed))
        noise = torch.randn(event.value.shape, generator=generator)
        event.value = event.value + strength * noise.to(event.value)

    return inject_noise


@typed()
def blend(mask: Tensor, latents: Tensor) -> Hook:
    """Let the run paint only where the mask (h, w) is 1: elsewhere each x0 is `latents` (C, h, w) or (B, C, h, w).

    Example:
        >>> latents = sdkit.encode(picture).mean
        >>> sdkit.text_to_image("a blue fish on a blue background", seed=1, hooks=[sdkit.hooks.blend(mask, latents)])
    """

    @on(Stage.DENOISED)
    def blend(event: Event) -> None:
        for name, value in (("mask", mask), ("latents", latents)):
            if not _spreads(value.shape, event.value.shape):
                raise ValueError(f"{name} must fit latents {tuple(event.value.shape)}, but is {told(value)}")
        event.value = torch.lerp(latents.to(event.value), event.value, mask.to(event.value))

    return blend


@typed(step=(0, math.inf))
def stop_after(step: int) -> Hook:
    """End the run with this step: its x0 is the clean latent, and is decoded.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.stop_after(12)])
    """

    @on(Stage.DENOISED)
    def stop_after(event: Event) -> None:
        if step >= len(event.run.visits):
            raise ValueError(f"step must be one of the run, 0 to {len(event.run.visits) - 1}, but is {step}")
        if event.step == step:
            event.run.stop()

    return stop_after


@typed(jump=(1, math.inf), times=(1, math.inf))
def repaint(mask: Tensor, latents: Tensor, *, seed: int, jump: int = 5, times: int = 3) -> Hook:
    """RePaint: where the mask (h, w) is 0, x is `latents` (C, h, w) noised to each step's level, and every `jump` steps
    the run goes back as far, so that both sides agree, until each such part has been gone through `times` times
    (Lugmayr et al. 2022, arXiv:2201.09865, equation 8 and algorithm 1).

    Example:
        >>> paint = sdkit.hooks.repaint(mask, sdkit.encode(picture).mean, seed=1)
        >>> sdkit.text_to_image("a green star on a blue background", seed=1, hooks=[paint])
    """
    check_seed(seed)

    @on(Stage.LATENT)
    def repaint(event: Any) -> None:
        run, x = event.run, event.value
        generator = run.keep("repaint generator", lambda: torch.Generator().manual_seed(seed))
        gone = run.keep("repaint", dict[int, int])
        alpha, sigma = (1.0, 0.0) if event.step is None else (event.alpha, event.sigma)
        noise = torch.randn(x.shape, generator=generator).to(x)
        event.value = x = torch.lerp(alpha * latents.to(x) + sigma * noise, x, mask.to(x))
        at = len(run.visits) if event.step is None else event.step
        if at and at % jump == 0 and gone.setdefault(at, 1) < times:
            gone[at] += 1
            run.go_to(at - jump, run.renoised(x, at - jump, torch.randn(x.shape, generator=generator)))

    return repaint


@typed(first=(0, math.inf), times=(1, math.inf))
def restart(first: int, last: int, *, seed: int, times: int = 3) -> Hook:
    """Restart sampling: between two steps the run goes `times` times, each time from noise that is added anew, which
    contracts the errors made before (Xu et al. 2023, arXiv:2306.14878, algorithm 1).

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.restart(5, 10, seed=1)])
    """
    check_seed(seed)
    if last <= first:
        raise ValueError(f"last must lie after first, but they are {last} and {first}")

    @on(Stage.LATENT, steps=[last])
    def restart(event: Any) -> None:
        gone = event.run.keep(restart, lambda: [torch.Generator().manual_seed(seed)])
        if len(gone) < times:
            gone.append(gone[0])
            noise = torch.randn(event.value.shape, generator=gone[0])
            event.run.go_to(first, event.run.renoised(event.value, first, noise))

    return restart


@typed(stride=(1, math.inf))
def multidiffusion(window: int | None = None, stride: int = 8) -> Hook:
    """MultiDiffusion: a picture larger than the model was trained on, of overlapping windows that are predicted by
    themselves and averaged (Bar-Tal et al. 2023, arXiv:2302.08113). Give `width` or `height` beside it.

    Args:
        window: side in latent pixels; by default that of the model.
        stride: from one window to the next, in latent pixels.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, width=192, hooks=[sdkit.hooks.multidiffusion(stride=4)])
    """

    @on(Stage.CONTEXT)
    def multidiffusion(event: Any) -> None:
        run = event.run
        if event.layer is not None:
            return
        x = run.seen[Stage.LATENT]
        sizes = [min(window or run.model.latent_shape(1, *run.model.size)[i + 2], x.shape[i + 2]) for i in (0, 1)]
        starts = [
            sorted({*range(0, side - size, stride), side - size}) for side, size in zip(x.shape[2:], sizes, strict=True)
        ]
        total = count = 0.0
        for top, left in product(*starts):
            rows, columns = slice(top, top + sizes[0]), slice(left, left + sizes[1])
            part = run.predict(x=x[..., rows, columns])
            if isinstance(total, float):
                total, count = (x.new_zeros(len(part), x.shape[1], *x.shape[2:]) for _ in range(2))
            total[..., rows, columns] += part
            count[..., rows, columns] += 1
        run.give("", total / count)

    return multidiffusion


def _spreads(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether a value of this shape is one for each, or for all, of the values of another."""
    return len(shape) <= len(to) and all(one in (1, many) for one, many in zip(shape[::-1], to[::-1], strict=False))
