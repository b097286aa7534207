"""The heart: the reverse process, from words and noise to a picture, as a generator that shows each of its stages."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from sdkit.events import Event, Stage
from sdkit.model import schedulers
from sdkit.noise import guide, prediction_from, x0_from
from sdkit.process.condition import condition, embed
from sdkit.process.materials import History
from sdkit.process.run import Run
from sdkit.process.start import keep_around, start


def reverse(run: Run) -> Generator[Event, None, tuple[Tensor, Tensor]]:
    """Words and noise, or a noised picture, to pictures: the clean latents (B, C, h, w) and the decoded (B, 3, H, W).

    With alpha and sigma from the noise schedule, x = alpha * x0 + sigma * eps, and step by step: predict, guide, see
    the x0 that follows, step back to a less noisy x (Ho et al. 2020, arXiv:2006.11239). Bit-identical to diffusers'
    pipelines of Stable Diffusion 1, 2 and XL for words, pictures and inpainting, as long as nobody edits.
    """
    model, scheduler = run.model, run.scheduler
    text, pooled = yield from embed(run)  # (2B, L, D), (2B, P)
    x, painting = yield from start(run)  # (B, C, h, w)
    mask, masked = (None, None) if painting is None else (painting.mask, painting.masked)
    conditions = condition(run, text, pooled, mask, masked)
    kind = scheduler.config.prediction_type
    for step, visit in enumerate(run.visits):
        run.note_level(step, visit)
        if run.history is not None and step < len(run.history.latents):
            x = keep_around(run, painting, _again(run, run.history, step, x), step)
            continue
        before, x = x, (yield from run.show(Stage.LATENT, x, step=step))
        if x is not before:
            schedulers.accept_edit(scheduler, step, visit)
        scaled = scheduler.scale_model_input(x, visit.tensor)
        noise = run.predict(scaled, step, conditions)  # (2B, C, h, w)
        noise = yield from run.show(Stage.NOISE, noise, step=step)
        if run.guided:
            uncond, cond = noise.chunk(2)
            noise = guide(uncond, cond, run.guidance_scale, run.settings.guidance_rescale)
        guided = yield from run.show(Stage.GUIDED, noise, step=step)  # (B, C, h, w)
        alpha, sigma = schedulers.alpha_sigma(scheduler, visit)
        predicted = schedulers.clip(scheduler, x0_from(guided, x, alpha, sigma, kind)).to(x.dtype)
        x0 = yield from run.show(Stage.DENOISED, predicted, step=step)
        if x0 is not predicted:  # give the scheduler the prediction that the edited x0 stands for
            guided = run.stepped[step] = prediction_from(x0, x, alpha, sigma, kind).to(guided.dtype)
        if run.stopped:
            x = x0
            run.record["stopped_after"] = step
            break
        x = schedulers.step_back(scheduler, guided, visit.tensor, x, eta=run.settings.eta, generator=run.generator)
        x = keep_around(run, painting, x, step)
    x = yield from run.show(Stage.LATENT, x)
    run.check_finite()
    image = yield from run.show(Stage.IMAGE, model.decode(x))
    run.check_finite()
    return x, image


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
