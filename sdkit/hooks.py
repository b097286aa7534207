"""Ready-made hooks, each a dozen lines, which are also the examples of how to write your own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.pictures import to_pil


def guidance_interval(low: int, high: int) -> Hook:
    """Guide only at training timesteps low <= t <= high (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

    @on(Stage.NOISE)
    def guidance_interval(event: Event) -> None:
        if event.t is not None and not low <= event.t <= high and event.origin.guided:
            _, cond = event.value.chunk(2)
            event.value = torch.cat([cond, cond])  # what guidance makes of two halves that agree is either

    return guidance_interval


def dynamic_threshold(percentile: float = 0.995, limit: float = 3.0) -> Hook:
    """Keep each x0 within `limit`: where more than 1 - percentile of its values lie beyond, they are cut at that
    percentile and all is scaled down (Saharia et al. 2022, arXiv:2205.11487, section 2.3, there with limit 1 on
    pixels)."""

    @on(Stage.DENOISED)
    def dynamic_threshold(event: Event) -> None:
        x0 = event.value
        reach = torch.quantile(x0.abs().flatten(1).float(), percentile, dim=1).clamp(min=limit).view(-1, 1, 1, 1)
        event.value = (x0.clamp(-reach, reach) * (limit / reach)).to(x0.dtype)

    return dynamic_threshold


def inject_noise(strength: float, *, seed: int, steps: range) -> Hook:
    """Add noise of standard deviation `strength` to the latents before some steps."""
    generator = torch.Generator().manual_seed(seed)

    @on(Stage.LATENT)
    def inject_noise(event: Event) -> None:
        if event.step in steps:
            noise = torch.randn(event.value.shape, generator=generator)
            event.value = event.value + strength * noise.to(event.value)

    return inject_noise


def blend(mask: Tensor, latents: Tensor) -> Hook:
    """Let the run paint only where the mask (h, w) is 1: elsewhere each x0 is `latents` (C, h, w) or (B, C, h, w)."""

    @on(Stage.DENOISED)
    def blend(event: Event) -> None:
        event.value = torch.lerp(latents.to(event.value), event.value, mask.to(event.value))

    return blend


def steer(loss: Callable[[Tensor], Tensor], scale: float) -> Hook:
    """Move each x0 (B, C, h, w) down the gradient of a loss on it, `scale` times its length of one unit.

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


def preview(show: Callable[[int, list[Image.Image]], Any], every: int = 1) -> Hook:
    """Decode the x0 of each n-th step and call `show(step, pictures)`."""

    @on(Stage.DENOISED)
    def preview(event: Event) -> None:
        if event.step is not None and event.step % every == 0:
            show(event.step, to_pil(event.origin.model.decode(event.value)))

    return preview


def stop_after(step: int) -> Hook:
    """End the run with what this step believes in: its x0 is the clean latent, and is decoded."""

    @on(Stage.DENOISED)
    def stop_after(event: Event) -> None:
        event.origin.stop = event.step == step

    return stop_after


def from_diffusers(callback: Callable[..., dict[str, Any]]) -> Hook:
    """A function that was written as diffusers' `callback_on_step_end`, as a hook.

    It is called after every step with the pipeline, the step, the timestep and {"latents": ...}, and may return others.

    Raises:
        ValueError: it returned something else than latents, which diffusers would have taken over.
    """
    last: list[Event] = []

    @on(Stage.LATENT)
    def from_diffusers(event: Event) -> None:
        if last:
            before = last.pop()
            returned = callback(event.origin.model.pipeline, before.step, before.t, {"latents": event.value})
            if others := set(returned) - {"latents"}:
                raise ValueError(
                    f"the callback returned {', '.join(sorted(others))}; a hook of sdkit takes latents alone"
                )
            event.value = returned.get("latents", event.value)
        if event.step is not None:
            last.append(event)

    return from_diffusers
