"""Trajectories: the way of the latents from noise to picture is changed, cut short, or handed to a callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on


def inject_noise(strength: float, *, seed: int, steps: range) -> Hook:
    """Add noise of standard deviation `strength` to the latents before some steps."""

    @on(Stage.LATENT, steps=steps)
    def inject_noise(event: Event) -> None:
        generator = event.run.keep(inject_noise, lambda: torch.Generator().manual_seed(seed))
        noise = torch.randn(event.value.shape, generator=generator)
        event.value = event.value + strength * noise.to(event.value)

    return inject_noise


def blend(mask: Tensor, latents: Tensor) -> Hook:
    """Let the run paint only where the mask (h, w) is 1: elsewhere each x0 is `latents` (C, h, w) or (B, C, h, w)."""

    @on(Stage.DENOISED)
    def blend(event: Event) -> None:
        event.value = torch.lerp(latents.to(event.value), event.value, mask.to(event.value))

    return blend


def stop_after(step: int) -> Hook:
    """End the run with this step: its x0 is the clean latent, and is decoded."""

    @on(Stage.DENOISED)
    def stop_after(event: Event) -> None:
        if event.step == step:
            event.run.stop()

    return stop_after


def from_diffusers(callback: Callable[..., dict[str, Any]]) -> Hook:
    """A function that was written as diffusers' `callback_on_step_end`, as a hook.

    It is called after every step with the pipeline, the step, the timestep and {"latents": ...}, and may return others.

    Raises:
        ValueError: it returned something else than latents, which diffusers would have taken over.
    """

    @on(Stage.LATENT)
    def from_diffusers(event: Event) -> None:
        run = event.run
        if event.step == run.keep(from_diffusers, lambda: event.step):
            return  # no step has made the first latent
        ended = max(run.levels) if event.step is None else event.step - 1
        returned = callback(run.model.pipeline, ended, run.levels[ended].t, {"latents": event.value})
        if others := set(returned) - {"latents"}:
            raise ValueError(f"the callback returned {', '.join(sorted(others))}; a hook of sdkit takes latents alone")
        event.value = returned.get("latents", event.value)

    return from_diffusers
