"""The heart: the reverse process, from words and noise to a picture, as a generator that shows each of its stages."""

from __future__ import annotations

import copy
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Event, Stage
from sdkit.model import schedulers
from sdkit.model.condition import Condition
from sdkit.noise import prediction_from, x0_from
from sdkit.process.condition import condition, embed
from sdkit.process.context import heard
from sdkit.process.materials import History
from sdkit.process.run import Run
from sdkit.process.start import Painting, keep_around, start


def reverse(run: Run) -> Generator[Event, None, tuple[Tensor, Tensor]]:
    """Words and noise, or a noised picture, to pictures: the clean latents (B, C, h, w) and the decoded (B, 3, H, W).

    With alpha and sigma from the noise schedule, x = alpha * x0 + sigma * eps, and step by step: predict, guide, see
    the x0 that follows, step back to a less noisy x (Ho et al. 2020, arXiv:2006.11239). Bit-identical to diffusers'
    pipelines of Stable Diffusion 1, 2 and XL for words, pictures and inpainting, as long as nobody edits.
    """
    untouched = copy.deepcopy(run.scheduler)  # for a hook that sends the run to another step
    text, pooled = yield from embed(run)  # (2B, L, D), (2B, P)
    x, painting = yield from start(run)  # (B, C, h, w)
    run.write(condition=condition(run, text, pooled, painting))
    base = run.condition
    assert base is not None
    step = 0
    while True:
        if run.stopped or step == len(run.visits):
            run.write(step=None)
            x = yield from run.show(Stage.LATENT, x)
            if run.stopped or run.target is None:
                break
        elif run.history is not None and step < len(run.history.latents):
            run.note_level(step, run.visits[step])
            x = keep_around(run, painting, _again(run, run.history, step, x), step)
        else:
            x = yield from _visit(run, step, x, base, painting)
        step, x = (step + 1, x) if run.target is None else _arrive(run, untouched)
    run.check_finite()
    image = yield from run.show(Stage.IMAGE, run.decode(x))
    run.check_finite()
    return x, image


def _visit(
    run: Run, step: int, x: Tensor, base: Condition, painting: Painting | None
) -> Generator[Event, None, Tensor]:
    """One step: x, and x one step less noisy."""
    scheduler, visit = run.scheduler, run.visits[step]
    run.note_level(step, visit)
    before, x = x, (yield from run.show(Stage.LATENT, x, step=step))
    if run.stopped or run.target is not None:
        if run.stopped:
            run.record["stopped_after"] = step - 1
        return x
    if x is not before and not run.left_alone:
        schedulers.accept_edit(scheduler, step, visit)
    conditions, painting = yield from heard(run, base, painting, step)
    scaled = scheduler.scale_model_input(x, visit.tensor)
    noise = run.call_unet(scaled, step, conditions)  # (2B, C, h, w)
    noise = yield from run.show(Stage.NOISE, noise, step=step)
    guided = yield from run.show(Stage.GUIDED, run.guide(noise), step=step)  # (B, C, h, w)
    kind = scheduler.config.prediction_type
    alpha, sigma = schedulers.alpha_sigma(scheduler, visit)
    predicted = schedulers.clip(scheduler, x0_from(guided, x, alpha, sigma, kind)).to(x.dtype)
    x0 = yield from run.show(Stage.DENOISED, predicted, step=step)
    if x0 is not predicted:  # give the scheduler the prediction that the edited x0 stands for
        guided = run.stepped[step] = prediction_from(x0, x, alpha, sigma, kind).to(guided.dtype)
    if run.stopped:
        run.record["stopped_after"] = step
        return x0
    if run.target is not None:
        return x
    x = schedulers.step_back(scheduler, guided, visit.tensor, x, eta=run.settings.eta, generator=run.generator)
    return keep_around(run, painting, x, step)


def _arrive(run: Run, untouched: Any) -> tuple[int, Tensor]:
    """Where a hook has sent the run, which its scheduler begins anew."""
    assert run.target is not None  # whoever calls it has looked
    step, x = run.target
    run.write(scheduler=schedulers.beginning_at(untouched, run.visits[step]), target=None)
    return step, x


def _again(run: Run, history: History, step: int, x: Tensor) -> Tensor:
    """A recorded step: the scheduler lives through it as it did, its memory and its random draws included."""
    scheduler, visit = run.scheduler, run.visits[step]
    seen, prediction = history.latents[step].to(x), history.predictions[step].to(x)
    if step > 0 and not torch.equal(seen, x):
        schedulers.accept_edit(scheduler, step, visit)
    scheduler.scale_model_input(seen, visit.tensor)
    return schedulers.step_back(
        scheduler, prediction, visit.tensor, seen, eta=run.settings.eta, generator=run.generator
    )
