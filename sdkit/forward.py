"""The forward process, from a picture to noise: x_t = alpha * x0 + sigma * noise, at once or by every step on the way
(Ho et al. 2020, arXiv:2006.11239, eqs. 2 and 4), as a generator that shows its stages, recorded by a `Trace`."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sdkit import schedulers
from sdkit.events import Event, Hook, Stage, run, tap
from sdkit.latents import as_latents
from sdkit.loading import load
from sdkit.model import Model
from sdkit.noise import snr
from sdkit.pictures import to_pixels
from sdkit.runs import signed, surroundings
from sdkit.schedulers import NoiseSchedule
from sdkit.settings import Settings, pick
from sdkit.trace import Trace

SPACES = ("latent", "pixel")


@dataclass(eq=False)
class Forward:
    """Everything that one run of the forward process is made from, checked and complete."""

    model: Model
    pixels: Tensor  # (B, 3, H, W) in [-1, 1]
    schedule: NoiseSchedule
    timesteps: list[int]  # rising
    generator: list[torch.Generator]  # one for each picture
    record: dict[str, Any]  # plain JSON values: all that makes this run but hooks
    stepped: dict[int, Tensor] = field(default_factory=dict)  # stays empty: nothing is predicted here

    @property
    def in_pixels(self) -> bool:
        return bool(self.record["space"] == "pixel")


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
    """
    owner = load(model)
    pixels = to_pixels(picture)
    pick("space", space, SPACES)
    asked = Settings([""] * len(pixels), seed=seed)
    seeds = asked.seeds_from(secrets.randbelow(2**32) if asked.seed is None else asked.seed)
    stepper = schedulers.fresh(scheduler, owner.scheduler, None)
    schedule = schedulers.noise_schedule(stepper)
    chosen = _timesteps(timesteps, len(schedule.betas))
    record = {
        "process": "forward",
        "space": space,
        "step_by_step": step_by_step,
        "height": pixels.shape[-2],
        "width": pixels.shape[-1],
        "seed": seeds,
        "image": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
        "levels": [_level(schedule, t) for t in chosen],
        "scheduler": {"class": type(stepper).__name__, **schedulers.plain(stepper.config)},
        "edited_by": [],
        **surroundings(owner),
    }
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    request, trace = Forward(owner, pixels, schedule, chosen, generators, record), Trace()
    run(signed(request, _step_by_step(request) if step_by_step else _at_once(request)), [*hooks, trace])
    return trace


def _level(schedule: NoiseSchedule, t: int) -> dict[str, float]:
    alpha, sigma = schedule.alphas[t].item(), schedule.sigmas[t].item()
    return {"t": t, "alpha": alpha, "sigma": sigma, "snr": float(snr(alpha, sigma))}


def _at_once(request: Forward) -> Generator[Event, None, None]:
    """q(x_t | x0) for each level, all with the same noise."""
    x0 = yield from _clean(request)  # (B, C, h, w)
    noise = yield from tap(Stage.NOISE, _draw(request, x0))
    for step, level in enumerate(request.record["levels"]):
        yield from _show(request, level["alpha"] * x0 + level["sigma"] * noise, step, level["t"])


def _step_by_step(request: Forward) -> Generator[Event, None, None]:
    """q(x_t | x_(t-1)) = N(sqrt(1 - beta_t) x_(t-1), beta_t), step by step through every t up to the last level."""
    x = yield from _clean(request)  # (B, C, h, w)
    for step, (before, t) in enumerate(pairwise([-1, *request.timesteps])):
        added, kept = torch.zeros_like(x), 1.0  # the noise since the level before, and what that left of its variance
        for beta in request.schedule.betas[before + 1 : t + 1].tolist():
            added = (1 - beta) ** 0.5 * added + beta**0.5 * _draw(request, x)
            kept *= 1 - beta
        noise = yield from tap(Stage.NOISE, added / (1 - kept) ** 0.5, step=step, t=t)  # of unit variance
        x = yield from _show(request, kept**0.5 * x + (1 - kept) ** 0.5 * noise, step, t)


def _clean(request: Forward) -> Generator[Event, None, Tensor]:
    """x0 (B, C, h, w): the mean that the encoder gives the pictures, or the pictures themselves."""
    model = request.model
    pixels = yield from tap(Stage.PIXELS, request.pixels.to(model.device, model.dtype))
    if request.in_pixels:
        return pixels
    posterior = yield from tap(Stage.POSTERIOR, model.encode(pixels))
    return as_latents(model, posterior).mean


def _show(request: Forward, x: Tensor, step: int, t: int) -> Generator[Event, None, Tensor]:
    x = yield from tap(Stage.LATENT, x, step=step, t=t)
    yield from tap(Stage.IMAGE, x if request.in_pixels else request.model.decode(x), step=step, t=t)
    return x


def _draw(request: Forward, like: Tensor) -> Tensor:
    noise: Tensor = randn_tensor(like.shape, generator=request.generator, device=like.device, dtype=like.dtype)
    return noise


def _timesteps(given: int | Sequence[int], known: int) -> list[int]:
    """Rising training timesteps below `known`: those given, or so many of them evenly spaced."""
    if isinstance(given, int) and not isinstance(given, bool):
        if not 1 <= given <= known:
            raise ValueError(f"timesteps must be a number from 1 to {known} or a list of timesteps, but is {given}")
        return [round(t) for t in torch.linspace(0 if given > 1 else known - 1, known - 1, given).tolist()]
    chosen = list(given) if isinstance(given, Sequence) and all(type(t) is int for t in given) else []
    if not chosen or any(after <= before for before, after in pairwise([-1, *chosen, known])):
        raise ValueError(f"timesteps must be a number, or rising timesteps from 0 to {known - 1}, but are {given!r}")
    return chosen
