"""Guidance: how far a step follows the words."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.inputs.checks import typed
from sdkit.noise import guide


@typed()
def guidance_interval(low: int, high: int) -> Hook:
    """Guide only at training timesteps low <= t <= high (Kynkäänniemi et al. 2024, arXiv:2404.07724).

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.guidance_interval(200, 800)])
    """
    if low > high:
        raise ValueError(f"low must not lie above high, but they are {low} and {high}; give the smaller one first")

    @on(Stage.NOISE)
    def guidance_interval(event: Event) -> None:
        if event.t is not None and not low <= event.t <= high and event.run.guided:
            _, cond = halves(event.run, event.value)
            # What guidance makes of two halves that agree is either.
            event.value = torch.cat([cond, event.value[len(cond) :]])

    return guidance_interval


@typed(percentile=(0, 1), limit=(0, math.inf))
def dynamic_threshold(percentile: float = 0.995, limit: float = 3.0) -> Hook:
    """Keep each x0 within `limit`: where more than 1 - percentile of its values lie beyond, they are cut at that
    percentile and all is scaled down (Saharia et al. 2022, arXiv:2205.11487, section 2.3, there with limit 1 on
    pixels).

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, guidance_scale=12, hooks=[sdkit.hooks.dynamic_threshold()])
    """

    @on(Stage.DENOISED)
    def dynamic_threshold(event: Event) -> None:
        x0 = event.value
        reach = torch.quantile(x0.abs().flatten(1).float(), percentile, dim=1).clamp(min=limit).view(-1, 1, 1, 1)
        event.value = (x0.clamp(-reach, reach) * (limit / reach)).to(x0.dtype)

    return dynamic_threshold


@typed(momentum=(-1, 1), norm=(0, math.inf))
def apg(eta: float = 0.0, norm: float = 15.0, momentum: float = -0.5) -> Hook:
    """Adaptive projected guidance: of what guidance adds to x0, the part along the conditional x0, which saturates, is
    multiplied by `eta` (Sadat et al. 2024, arXiv:2410.02416, section 4 and algorithm 1).

    It replaces what guidance gave, at the run's own guidance scale: put it before hooks that add to it.

    Args:
        norm: r, how long the update of a picture may be; infinity leaves it.
        momentum: beta, how much of the updates of steps before is added; negative takes it away.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.apg()])
    """

    @on(Stage.GUIDED)
    def apg(event: Event) -> None:
        run = event.run
        if not run.guided:
            return
        uncond, cond = halves(run, run.x0_of(run.seen[Stage.NOISE]))  # (B, C, h, w) each
        kept = run.keep(apg, lambda: {"sum": torch.zeros_like(cond)})
        delta = kept["sum"] = cond - uncond + momentum * kept["sum"]
        delta = delta * (norm / length(delta)).clamp(max=1)
        along = cond / length(cond)
        parallel = (delta * along).sum((1, 2, 3), keepdim=True) * along
        x0 = cond + (run.guidance_scale - 1) * (delta - parallel + eta * parallel)
        event.value = run.noise_of(x0)

    return apg


@typed(scale=(0, 1))
def cfg_plus_plus(scale: float = 0.6) -> Hook:
    """CFG++: x0 lies between the unconditional one (scale 0) and the conditional one (1), and the step noises it anew
    with the unconditional noise (Chung et al. 2024, arXiv:2406.08070, algorithm 2).

    It takes the place of the run's guidance scale, which needs only to be above 1. As in the paper with ddim and euler;
    not with heun, kdpm2, dpmpp_2s, dpmpp_sde and pndm, which refuse an edit of the latent within their steps.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, scheduler="ddim", hooks=[sdkit.hooks.cfg_plus_plus(0.6)])
    """

    @on(Stage.LATENT, Stage.GUIDED)
    def cfg_plus_plus(event: Event) -> None:
        run = event.run
        kept = run.keep(cfg_plus_plus, dict)  # by the step to come: what its noise lacks
        if event.stage is Stage.LATENT:
            if event.step in kept:
                event.value = event.value + event.sigma * kept.pop(event.step)
        elif run.guided and event.step is not None:
            uncond, cond = halves(run, run.seen[Stage.NOISE])
            event.value = guide(uncond, cond, scale)
            kept[event.step + 1] = run.eps_of(uncond) - run.eps_of(event.value)

    return cfg_plus_plus


@typed(zero_steps=(0, math.inf))
def cfg_zero(zero_steps: int = 0) -> Hook:
    """CFG-Zero*: guide from the multiple of the unconditional prediction that is nearest to the conditional one (Fan et
    al. 2025, arXiv:2503.18886).

    It replaces what guidance gave, at the run's own guidance scale: put it before hooks that add to it.

    Args:
        zero_steps: in so many of the first steps the model is taken to predict no noise (section 3.3): meant for models
            of flow matching, and 0, off, for those of noise.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.cfg_zero()])
    """

    @on(Stage.GUIDED)
    def cfg_zero(event: Event) -> None:
        run = event.run
        if event.step is not None and event.step < zero_steps:
            event.value = run.noise_of(run.seen[Stage.LATENT] / event.alpha)
        elif run.guided:
            uncond, cond = halves(run, run.seen[Stage.NOISE])
            nearest = (cond * uncond).sum((1, 2, 3), keepdim=True) / uncond.square().sum((1, 2, 3), keepdim=True)
            event.value = guide(nearest * uncond, cond, run.guidance_scale)

    return cfg_zero


@typed(scale=(0, math.inf), low=(0, 1), high=(0, 1), mix=(0, 1))
def cads(scale: float = 0.25, low: float = 0.6, high: float = 0.9, mix: float = 1.0) -> Hook:
    """Condition-annealed sampling: noise on the words while x is noisy makes pictures of one prompt more diverse (Sadat
    et al. 2023, arXiv:2310.17347). The noise follows from the seed of each picture.

    Args:
        scale: s, the noise's standard deviation; 0 is off.
        low: tau 1: at timesteps below this share of all the words are as they are; between it and `high` they come in.
        mix: psi, how much of the words' mean and spread is restored.

    Example:
        >>> sdkit.text_to_image("a star", seed=7, num_images_per_prompt=4, hooks=[sdkit.hooks.cads(0.25)])
    """
    if low >= high:
        raise ValueError(f"low must lie below high, but they are {low} and {high}; give the smaller one first")

    @on(Stage.CONTEXT)
    def cads(event: Event) -> None:
        run = event.run
        share = (event.t or 0) / run.scheduler.config.num_train_timesteps
        gamma = min(max((high - share) / (high - low), 0), 1)
        if event.layer not in (None, "pooled") or not scale or gamma == 1:
            return
        seeds = run.record["seed"] or range(run.shape[0])
        generators = run.keep(cads, lambda: [torch.Generator().manual_seed(seed + 1) for seed in seeds])
        first = run.shape[0] if run.guided else 0  # the unconditional half stays
        rows = list(event.value)
        for row, generator in enumerate(generators, start=first):
            y = rows[row]
            noised = gamma**0.5 * y + scale * (1 - gamma) ** 0.5 * torch.randn(y.shape, generator=generator).to(y)
            rescaled = (noised - noised.mean()) / noised.std() * y.std() + y.mean()
            rows[row] = mix * rescaled + (1 - mix) * noised
        event.value = torch.stack(rows)

    return cads


def from_guider(guider: Any) -> Hook:
    """A guider of diffusers, such as `diffusers.AdaptiveProjectedGuidance(7.5)`, as a hook: its formula makes one
    prediction of the two halves, at its own guidance scale; that of the run needs only to be above 1.

    It replaces what guidance gave: put it before hooks that add to it. The guider itself stays as it is.

    Raises:
        TypeError: it is no guider, or one that asks the model for more than the two halves.

    Example:
        >>> from diffusers import AdaptiveProjectedGuidance
        >>> guider = sdkit.hooks.from_guider(AdaptiveProjectedGuidance(guidance_scale=7.5))
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[guider])
    """
    wanted = list(inspect.signature(getattr(guider, "forward", lambda: None)).parameters)
    if wanted != ["pred_cond", "pred_uncond"] or hasattr(guider, "auto_guidance_config"):
        raise TypeError(
            f"a {type(guider).__name__} does not make guidance of pred_cond and pred_uncond alone; give a guider that "
            "does, or use hooks.pag, hooks.seg or hooks.autoguidance, which weaken the model"
        )

    @on(Stage.GUIDED)
    def from_guider(event: Event) -> None:
        run = event.run
        if run.guided and event.step is not None:
            own = run.keep(from_guider, lambda: copy.deepcopy(guider))
            own.set_state(event.step, len(run.visits), run.visits[event.step].tensor)
            own.prepare_inputs({})  # where one that has momentum begins it anew
            uncond, cond = halves(run, run.seen[Stage.NOISE])
            event.value = own.forward(cond, uncond).pred

    return from_guider


def halves(run: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows that a run has for its U-Net, (2B or more, ...), those without and those with the prompts, (B, ...) each;
    without guidance, or where a hook has left B rows, the same twice."""
    pictures = run.shape[0]
    first = pictures if run.guided and len(rows) > pictures else 0
    return rows[:pictures], rows[first : first + pictures]


def length(rows: Tensor) -> Tensor:
    """The Euclidean norm of each row (B, ...), (B, 1, 1, 1); never quite 0, so that one may divide by it."""
    lengths: Tensor = rows.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
    return lengths
