"""Concepts: prompts beside the run's own, which are asked in the same call of the U-Net and added or taken away."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.hooks.guidance import halves
from sdkit.inputs.checks import typed


@typed()
def compose(*prompts: str, weights: Sequence[float]) -> Hook:
    """Compose prompts with the run's own: eps + sum of w (eps of each - eps without words). A negative weight negates
    (Liu et al. 2022, arXiv:2206.01714).

    Args:
        weights: one for each prompt, compared with the run's guidance scale, which is the weight of its own.

    Raises:
        ValueError: the run has no guidance.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.compose("a blue background", weights=[3.0])])
    """
    if len(weights) != len(prompts) or not prompts:
        raise ValueError(f"weights must be one for each prompt, but there are {len(weights)} for {len(prompts)}")

    @on(Stage.CONTEXT, Stage.GUIDED)
    def compose(event: Event) -> None:
        if not any(weights):
            return
        if event.stage is Stage.CONTEXT:
            _hear_too(event, compose, prompts)
        else:
            uncond, _ = halves(event.run, event.run.seen[Stage.NOISE])
            for weight, concept in zip(weights, _heard(event, compose), strict=True):
                event.value = event.value + weight * (concept - uncond)

    return compose


@typed(threshold=(0, 1), warmup=(0, math.inf))
def sega(
    *prompts: str,
    scale: float = 5.0,
    threshold: float = 0.9,
    warmup: int = 10,
    momentum: float = 0.1,
    beta: float = 0.4,
) -> Hook:
    """Semantic guidance: along concepts, only where these change the prediction most (Brack et al. 2023,
    arXiv:2301.12247).

    Args:
        scale: s_e; negative leads away from the concepts.
        threshold: lambda: the share of each channel that is left alone.
        warmup: delta, the steps before it begins, in which momentum is gathered.
        momentum: s_m, how much of it is added; `beta` is how much of it is kept at each step.

    Raises:
        ValueError: the run has no guidance.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.sega("a blue background", warmup=2)])
    """

    @on(Stage.CONTEXT, Stage.GUIDED)
    def sega(event: Event) -> None:
        run = event.run
        if event.stage is Stage.CONTEXT and scale:
            _hear_too(event, sega, prompts)
        elif scale:
            uncond, _ = halves(run, run.seen[Stage.NOISE])
            edits = [_strongest(scale * (concept - uncond), threshold) for concept in _heard(event, sega)]
            kept = run.keep((sega, "momentum"), lambda: {"nu": torch.zeros_like(uncond)})
            edit = torch.stack(edits).sum(0) + momentum * kept["nu"]  # (B, C, h, w)
            kept["nu"] = beta * kept["nu"] + (1 - beta) * edit
            if event.step is not None and event.step >= warmup:
                event.value = event.value + edit

    return sega


def _strongest(psi: Tensor, threshold: float) -> Tensor:
    """What is at least as strong as that share of its channel, and 0 elsewhere."""
    least = torch.quantile(psi.abs().flatten(2).float(), threshold, dim=2)[..., None, None]
    return torch.where(psi.abs() >= least, psi, 0)


def _hear_too(event: Event, hook: Hook, prompts: Sequence[str]) -> None:
    """Have the U-Net asked for these prompts too, at CONTEXT, whose every value they are added to."""
    run, value = event.run, event.value
    if not prompts:
        raise ValueError("there is no concept to hear; give at least one prompt")
    if not run.guided:
        raise ValueError("concepts are compared with what is predicted without words; give guidance_scale above 1")
    encoded = run.keep(
        (hook, "encoded"),
        lambda: [
            run.model.encode_text(run.model.tokenize([one], length=value.shape[1]), run.settings.clip_skip)
            for one in prompts
        ],
    )
    first = run.keep(hook, lambda: {"rows": len(prompts) * run.shape[0]})
    if event.layer is None:
        first["row"] = len(value)
        event.value = torch.cat([value, *(text.expand(run.shape[0], -1, -1) for text, _ in encoded)])
    elif event.layer == "pooled":
        rows = torch.cat([pooled.expand(run.shape[0], -1) for _, pooled in encoded])
        event.value = torch.cat([value[: first["row"]], rows, value[first["row"] + len(rows) :]])


def _heard(event: Event, hook: Hook) -> Sequence[Tensor]:
    """What the U-Net predicts for each of them, (B, C, h, w)."""
    first, noise = event.run.keep(hook, dict), event.run.seen[Stage.NOISE]
    found: Sequence[Tensor] = noise[first["row"] : first["row"] + first["rows"]].split(event.run.shape[0])
    return found
