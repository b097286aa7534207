"""Concepts: prompts beside the run's own, which are asked in the same call of the U-Net and added or taken away."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.hooks.guidance import halves
from sdkit.hooks.perturbed import smooth
from sdkit.inputs.checks import typed
from sdkit.unet.attention import grid


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


@typed(threshold=(0, 1), warmup=(0, math.inf))
def ledits(*prompts: str, scale: float = 5.0, threshold: float = 0.9, warmup: int = 0) -> Hook:
    """LEDITS++: along concepts, only where the concept is looked at and changes the prediction most (Brack et al. 2023,
    arXiv:2311.16711, section 3), beside `edit_friendly` with the noises of a picture, which keep the rest of it.

    The inversion is that of `edit_friendly` on ddim, as diffusers' pipeline has it with a `DDIMScheduler`.

    Args:
        scale: s_e; negative leads away from the concepts.
        threshold: lambda: the share of the picture that is left alone.
        warmup: the steps before it begins.

    Raises:
        ValueError: the run has no guidance.

    Example:
        >>> noises, run = [], {"seed": 7, "scheduler": "ddim"}
        >>> back = sdkit.hooks.edit_friendly(sdkit.encode(picture).mean, noises, seed=7)
        >>> same = sdkit.text_to_image("", hooks=[back], **run)
        >>> edited = sdkit.text_to_image("", hooks=[back, sdkit.hooks.ledits("a green star", threshold=0.7)], **run)
    """

    @on(Stage.CONTEXT, Stage.ATTENTION, Stage.GUIDED)
    def ledits(event: Event) -> None:
        if not scale:
            return
        run = event.run
        maps = run.keep((ledits, "maps"), dict[int, list[Tensor]])  # of this step, by their number of places
        if event.stage is Stage.CONTEXT:
            _hear_too(event, ledits, prompts)
            maps.clear()
        elif event.stage is Stage.ATTENTION:
            if not str(event.layer).startswith("mid_block"):
                maps.setdefault(event.value.shape[2], []).append(event.value)  # (R, heads, h*w, L)
        elif (event.step or 0) >= warmup:
            uncond, _ = halves(run, run.seen[Stage.NOISE])
            looked_at = _looked_at(event, ledits, maps, prompts)
            for concept, heat in zip(_heard(event, ledits), looked_at, strict=True):
                psi = scale * (concept - uncond)
                mask = F.interpolate(_most(smooth(heat, 3, 0.5**0.5), threshold), psi.shape[2:])
                if event.t is not None and event.t <= 800:  # before that the prediction tells no place
                    mask = mask * _most(psi.abs().sum(1, keepdim=True), threshold)
                event.value = event.value + mask * psi

    return ledits


def _most(values: Tensor, threshold: float) -> Tensor:
    """1 where values (B, 1, h, w) are at least that quantile of their picture, and 0 elsewhere."""
    return (values >= torch.quantile(values.flatten(1).float(), threshold, dim=1).view(-1, 1, 1, 1)).to(values)


def _looked_at(event: Event, hook: Hook, maps: dict[int, list[Tensor]], prompts: Sequence[str]) -> Sequence[Tensor]:
    """The attention (B, 1, h, w) that the words of each concept get, the mean over heads and layers of a quarter of the
    latents' side, or the nearest that there is."""
    run = event.run
    (pictures, _, h, w), first = run.shape, run.keep(hook, dict)["row"]
    nearest = min(maps, key=lambda places: abs(math.log(16 * places / (h * w))))
    heads = torch.split(torch.cat(maps[nearest], dim=1).mean(1)[first:], pictures)  # (B, h*w, L) of each concept
    counts = [len(run.model.tokenizer(one, add_special_tokens=False).input_ids) for one in prompts]
    return [
        one[..., 1 : 1 + count].sum(-1).view(pictures, 1, *grid(nearest, h, w))
        for one, count in zip(heads, counts, strict=False)  # rows of other hooks may follow
    ]


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
