"""Guidance: how far a step follows the words."""

from __future__ import annotations

import torch

from sdkit.events import Event, Hook, Stage, on


def guidance_interval(low: int, high: int) -> Hook:
    """Guide only at training timesteps low <= t <= high (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

    @on(Stage.NOISE)
    def guidance_interval(event: Event) -> None:
        if event.t is not None and not low <= event.t <= high and event.run.guided:
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
