"""DDIM taken backwards: from a picture to the very noise from which the model would draw it (Song et al. 2021,
arXiv:2010.02502, section 4.3), each step solved by fixed-point iteration (Pan et al. 2023, arXiv:2309.04907)."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from sdkit.events import Event, Stage
from sdkit.model import schedulers
from sdkit.noise import x0_from
from sdkit.process.condition import condition, embed
from sdkit.process.run import Run
from sdkit.process.start import encoded_mean

ENOUGH = 1e-5  # a guess that moves by less, as a share of its norm, is not refined further
AlphaSigma = tuple[Tensor, Tensor]


def inverse(run: Run, refinements: int) -> Generator[Event, None, Tensor]:
    """Pictures to noise (B, C, h, w): for each step back that DDIM would take, the x that it would have come from.

    The inside of the U-Net is shown at every call, and so several times in a step: once for each refinement.
    """
    scheduler = run.scheduler
    conditions = condition(run, *(yield from embed(run)))
    run.write(condition=conditions)
    x = yield from encoded_mean(run)  # (B, C, h, w)
    kind = scheduler.config.prediction_type
    for step, visit in enumerate(run.visits):
        run.note_level(step, visit)
        level, after = schedulers.alpha_sigma(scheduler, visit), schedulers.alpha_sigma_after(scheduler, visit)
        noisier = x
        for _ in range(refinements + 1):
            guess = noisier
            noise = run.call_unet(guess, step, conditions)  # (B, C, h, w)
            noisier = _noisier(x, after, x0_from(noise, guess, *level, kind), guess, level)
            residual = float((noisier - guess).norm() / noisier.norm())
            if residual < ENOUGH:
                break
        noise = yield from run.show(Stage.NOISE, noise, step=step)
        x0 = yield from run.show(Stage.DENOISED, x0_from(noise, guess, *level, kind).to(x.dtype), step=step)
        x = _noisier(x, after, x0, guess, level)
        run.record["residuals"].append(residual)
        x = yield from run.show(Stage.LATENT, x, step=step)
    run.check_finite()
    return x


def _noisier(x: Tensor, after: AlphaSigma, x0: Tensor, guess: Tensor, level: AlphaSigma) -> Tensor:
    """The sample at `level` from which DDIM's step leads to x at the level `after`, if of `guess` there the model
    predicts x0: x = alpha_after * x0 + sigma_after * eps, with the eps that x0 leaves of the guess."""
    (alpha, sigma), (alpha_after, sigma_after) = level, after
    eps = (guess - alpha * x0) / sigma
    return ((alpha / alpha_after) * (x - sigma_after * eps) + sigma * eps).to(x.dtype)
