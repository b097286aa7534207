"""The forward process, from a picture to noise: x_t = alpha * x0 + sigma * noise, at once or by every step on the way
(Ho et al. 2020, arXiv:2006.11239, eqs. 2 and 4), as a generator that shows its stages."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from sdkit.events import Event, Stage
from sdkit.model.schedulers import NoiseSchedule
from sdkit.noise import NoiseLevel
from sdkit.process.run import Run
from sdkit.process.start import encoded_mean, noise_like


def level_at(schedule: NoiseSchedule, t: int) -> NoiseLevel:
    """How noisy x_t is at a training timestep."""
    return NoiseLevel(t, schedule.alphas[t].item(), schedule.sigmas[t].item())


def at_once(run: Run, schedule: NoiseSchedule) -> Generator[Event, None, None]:
    """q(x_t | x0) for each timestep, all with the same noise."""
    x0 = yield from encoded_mean(run)  # (B, C, h, w)
    noise = yield from run.show(Stage.NOISE, noise_like(run, x0.shape))
    for step, visit in enumerate(run.visits):
        level = run.levels[step] = level_at(schedule, visit.t)
        yield from _show(run, level.alpha * x0 + level.sigma * noise, step)


def step_by_step(run: Run, schedule: NoiseSchedule) -> Generator[Event, None, None]:
    """q(x_t | x_(t-1)) = N(sqrt(1 - beta_t) x_(t-1), beta_t), step by step through every t up to the last one."""
    x = yield from encoded_mean(run)  # (B, C, h, w)
    before = -1
    for step, visit in enumerate(run.visits):
        run.levels[step] = level_at(schedule, visit.t)
        added, kept = torch.zeros_like(x), 1.0  # the noise since the level before, and what that left of its variance
        for beta in schedule.betas[before + 1 : visit.t + 1].tolist():
            added = (1 - beta) ** 0.5 * added + beta**0.5 * noise_like(run, x.shape)
            kept *= 1 - beta
        noise = yield from run.show(Stage.NOISE, added / (1 - kept) ** 0.5, step=step)  # of unit variance
        x = yield from _show(run, kept**0.5 * x + (1 - kept) ** 0.5 * noise, step)
        before = visit.t


def _show(run: Run, x: Tensor, step: int) -> Generator[Event, None, Tensor]:
    x = yield from run.show(Stage.LATENT, x, step=step)
    run.check_finite()
    yield from run.show(Stage.IMAGE, x if run.record["space"] == "pixel" else run.model.decode(x), step=step)
    return x
