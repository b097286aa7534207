"""A picture on its way to noise: `diffuse`, the forward process as a `Trace`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch

from sdkit.events import Hook, checked, run
from sdkit.inputs.arguments import Settings
from sdkit.inputs.checks import pick, told, typed
from sdkit.inputs.seeds import seed_each
from sdkit.model import schedulers
from sdkit.model.loading import load
from sdkit.model.schedulers import Visit
from sdkit.pictures import hash_of, to_pixels
from sdkit.process.forward import at_once, level_at
from sdkit.process.forward import step_by_step as by_every_step
from sdkit.process.materials import Pictures
from sdkit.process.run import Run, begin, generators, surroundings
from sdkit.trace.trace import Trace

SPACES = ("latent", "pixel")


@typed(timesteps=None)
def diffuse(
    picture: Any,
    timesteps: int | Sequence[int] = 8,
    *,
    space: str = "latent",
    step_by_step: bool = False,
    model: Any = None,
    scheduler: Any = None,
    seed: int | Sequence[int] | None = None,
    hooks: Iterable[Hook] = (),
) -> Trace:
    """Noise pictures, and see each noise level: a `Trace` of the forward process.

    It records PIXELS, POSTERIOR and NOISE (of unit variance, mixed in at every level), then for the i-th level LATENT
    (x_t, step i) and IMAGE (its decoded picture). `trace.settings["levels"]` has the t, alpha, sigma and snr of each.

    Args:
        picture: a picture or a list of such, as `encode` takes them. Its latents are the posterior's mean.
        timesteps: so many, evenly spaced from the first training timestep to the last, or a rising list of them.
        space: "latent", or "pixel" to noise the picture itself, to compare; LATENT and IMAGE are then the same.
        step_by_step: add the noise of every single training step in turn, x_t from x_(t-1), instead of at once. That
            has the same distribution; NOISE is then what the steps since the level before have added up to.
        model: what `load` takes; the embedded model by default.
        scheduler: whose noise schedule to follow; by default the model's own.
        seed: one, or one a picture, as in `text_to_image`.
        hooks: called with every `Event`; assigning `event.value` edits what follows.

    Returns:
        The trace, from the level with the least noise to that with the most.

    Example:
        >>> forward = sdkit.diffuse(picture, [0, 500, 999], seed=7)
        >>> [record.t for record in forward[Stage.LATENT]]
        [0, 500, 999]
    """
    model, pixels = load(model), to_pixels(picture)  # (B, 3, H, W)
    pick("space", space, SPACES)
    seeds = seed_each(seed, len(pixels))
    stepper = schedulers.fresh(scheduler, model.scheduler, None)
    schedule = schedulers.noise_schedule(stepper)
    times = _timesteps(timesteps, len(schedule.betas))
    levels = [level_at(schedule, t) for t in times]
    height, width = pixels.shape[-2:]
    record = {
        "process": "forward",
        "space": space,
        "step_by_step": step_by_step,
        "height": height,
        "width": width,
        "seed": seeds,
        "image": hash_of(pixels),
        "levels": [{"t": one.t, "alpha": one.alpha, "sigma": one.sigma, "snr": one.snr} for one in levels],
        "scheduler": schedulers.plain(stepper),
        "edited_by": [],
        **surroundings(model, device := model.device),
    }
    trace = Trace()
    forward = Run(
        model=model,
        device=device,
        settings=Settings([""] * len(pixels), height=height, width=width, seed=seeds),
        scheduler=stepper,
        visits=[Visit(i, t, torch.tensor(t)) for i, t in enumerate(times)],
        shape=tuple(pixels.shape) if space == "pixel" else model.latent_shape(len(pixels), height, width),
        generator=generators(seeds),
        record=record,
        hooks=(*checked(hooks), trace),
        process="forward",
        pictures=Pictures(pixels),
    )
    run(begin(forward, (by_every_step if step_by_step else at_once)(forward, schedule)))
    return trace


def _timesteps(timesteps: int | Sequence[int], known: int) -> list[int]:
    """Rising training timesteps below `known`: those asked for, or so many of them evenly spaced."""
    if isinstance(timesteps, int) and not isinstance(timesteps, bool):
        if not 1 <= timesteps <= known:
            raise ValueError(f"timesteps must be a number from 1 to {known} or a list of timesteps, but is {timesteps}")
        return [round(t) for t in torch.linspace(0 if timesteps > 1 else known - 1, known - 1, timesteps).tolist()]
    every = (
        list(timesteps)
        if isinstance(timesteps, list | tuple | range) and all(type(t) is int for t in timesteps)
        else []
    )
    if not every or any(after <= before for before, after in pairwise([-1, *every, known])):
        raise ValueError(
            f"timesteps must be a number, or rising timesteps from 0 to {known - 1}, but are {told(timesteps)}"
        )
    return every
