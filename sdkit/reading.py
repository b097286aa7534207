"""What drawing needs to know of a `Trace`: how noisy each step is, which colours its latents stand for, which step is
which. Everything here reads a trace and needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from sdkit import schedulers
from sdkit.events import Stage
from sdkit.trace import Record, Trace

RIDGE = 1e-3  # share of the samples that pulls the colour map to zero where the run says nothing


class Heat(Protocol):
    """What `AttentionMaps` offers to drawing."""

    @property
    def words(self) -> list[str]: ...  # of the prompt, in order

    @property
    def steps(self) -> list[int]: ...

    def heat(self, word: str, *, step: int | None = None, picture: int = 0) -> Tensor: ...  # (H, W) in [0, 1]


@dataclass(frozen=True)
class Level:
    """How noisy a latent is: x = alpha * x0 + sigma * eps."""

    step: int
    t: int  # training timestep
    alpha: float
    sigma: float

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio of variances, for a signal of unit variance; infinite without noise."""
        return (self.alpha / self.sigma) ** 2 if self.sigma else float("inf")

    @property
    def noise(self) -> float:
        """The noise's share of the variance, in [0, 1]."""
        return self.sigma**2 / (self.alpha**2 + self.sigma**2)

    @property
    def scale(self) -> float:
        """Standard deviation of x for an x0 of unit variance: 1 in the variance-preserving form."""
        return float((self.alpha**2 + self.sigma**2) ** 0.5)


def levels(trace: Trace) -> dict[int, Level]:
    """The noise level of every recorded step, from the run's own scheduler, or from what a forward walk says."""
    times = {record.step: record.t for record in trace if record.step is not None and record.t is not None}
    told = trace.settings.get("levels")
    if told is not None:
        return {at: Level(at, told[at]["t"], told[at]["alpha"], told[at]["sigma"]) for at in times if at is not None}
    if "scheduler" not in trace.settings:
        return {}
    exact = _as_visited(trace.settings)
    schedule = schedulers.noise_schedule(trace.settings["scheduler"])
    found = {}
    for step, t in times.items():
        if step is None:
            continue
        alpha, sigma = exact.get(step, (float(schedule.alphas[t]), float(schedule.sigmas[t])))
        found[step] = Level(step, t, alpha, sigma)
    return found


def _as_visited(settings: dict[str, Any]) -> dict[int, tuple[float, float]]:
    """(alpha, sigma) of each step as the run's scheduler had them.

    Those of second order move half a step on between two visits and know it only while they run: they are left to
    the schedule, which says the same up to the rounding of t, but for the form of the sample.
    """
    if "start" not in settings or "process" in settings:
        return {}
    stepper = schedulers.rebuilt(settings["scheduler"])
    every = schedulers.visits(
        stepper,
        settings["num_inference_steps"],
        torch.device("cpu"),
        settings.get("strength"),
        timesteps=settings.get("timesteps"),
        sigmas=settings.get("sigmas"),
    )
    if stepper.order == 1:
        pairs = [schedulers.alpha_sigma(stepper, visit) for visit in every]
        return {step: (float(alpha), float(sigma)) for step, (alpha, sigma) in enumerate(pairs)}
    schedule = schedulers.noise_schedule(stepper)
    scaled = float(schedulers.alpha_sigma(stepper, every[0])[0]) == 1  # a sample whose signal is not scaled
    return {
        step: (1.0, float(schedule.sigmas[visit.t] / schedule.alphas[visit.t]))
        if scaled
        else (float(schedule.alphas[visit.t]), float(schedule.sigmas[visit.t]))
        for step, visit in enumerate(every)
    }


@dataclass(frozen=True, eq=False)
class Colours:
    """A linear map from latents to colours, which stands in for the decoder where only a small picture is wanted."""

    weight: Tensor  # (C, 3)
    bias: Tensor  # (3,)
    true: bool = True  # False: no picture was recorded, so the colours only tell values apart

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as colours (B, 3, h, w) in [0, 1]."""
        rgb = torch.einsum("bchw,cd->bdhw", latents.float(), self.weight) + self.bias[:, None, None]
        return rgb.clamp(-1, 1) / 2 + 0.5


def colours(*traces: Trace) -> Colours:
    """The map that fits the traces best: least squares of the picture that each ends with, averaged down to the size
    of the latents, on the latents that it was decoded from. Of a forward walk it is the least noisy picture, of an
    inversion the one that it starts from.

    256 points of a picture are plenty for the five numbers that each colour takes. Without a picture (the run was
    interrupted, or IMAGE was not kept) the colours are the first three principal components of the latents instead.

    Raises:
        ValueError: there are no latents.
    """
    latents = [{record.step: record for record in trace[Stage.LATENT] or trace[Stage.DENOISED]} for trace in traces]
    if not all(latents):
        raise ValueError("the trace holds no latents to draw; record the stages 'latent', 'denoised' and 'image'")
    pairs = [pair for trace, known in zip(traces, latents, strict=True) if (pair := _cleanest(trace, known))]
    if not pairs:
        return _false_colours([record.value.float() for known in latents for record in list(known.values())[-4:]])
    x = torch.cat([_rows(z) for z, _ in pairs]).double()  # (N, C)
    y = torch.cat([_rows(adaptive_avg_pool2d(p, (z.shape[-2], z.shape[-1]))) for z, p in pairs]).double()  # (N, 3)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)  # (N, C + 1)
    pull = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    pull[-1, -1] = 0
    solution = torch.linalg.solve(x.T @ x + pull, x.T @ y).float()  # (C + 1, 3)
    return Colours(solution[:-1], solution[-1])


def _cleanest(trace: Trace, latents: dict[int | None, Record]) -> tuple[Tensor, Tensor] | None:
    """The latents (B, C, h, w) with the least noise of which a picture (B, 3, H, W) was recorded, and that picture."""
    images = [image for image in trace[Stage.IMAGE] if image.step in latents]
    if not images and trace.settings.get("process") == "inversion" and trace[Stage.PIXELS]:
        first = next(iter(latents.values()))  # next to no noise is in it yet
        return first.value.float(), trace[Stage.PIXELS][0].value.float().clamp(-1, 1)
    if not images:
        return None
    image = min(images, key=lambda record: -1 if record.t is None else record.t)
    return latents[image.step].value.float(), image.value.float().clamp(-1, 1)


def _false_colours(latents: list[Tensor]) -> Colours:
    x = torch.cat([_rows(z) for z in latents])  # (N, C)
    mean, spread = x.mean(dim=0), x.std(dim=0).max().clamp(min=1e-6)
    basis = torch.linalg.svd(x - mean, full_matrices=False).Vh[:3].T  # (C, 3)
    basis = torch.nn.functional.pad(basis, (0, 3 - basis.shape[1])) / (2 * spread)
    return Colours(basis, -(mean @ basis), true=False)


def _rows(maps: Tensor) -> Tensor:
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])  # (B * h * w, C)


def standard(record: Record, known: dict[int, Level], picture: int = 0) -> Tensor:
    """x_t (C, h, w) at the spread that colours are made for: in the form of Euler and its kin it is up to 14 times as
    wide."""
    value = record.value[picture].float()
    level = known.get(record.step) if record.step is not None else None
    return value if level is None else value / level.scale


def halves(record: Record, guidance: bool, picture: int = 0) -> tuple[Tensor, Tensor] | None:
    """The unconditional and the conditional prediction (C, h, w) of a record of NOISE; None without guidance."""
    if not guidance:
        return None
    uncond, cond = record.value.float().chunk(2)
    return uncond[picture], cond[picture]


def guided(trace: Trace) -> bool:
    """Whether the run was guided: then predictions come in two halves."""
    predicted, seen = trace[Stage.NOISE], trace[Stage.LATENT] or trace[Stage.GUIDED]
    return bool(predicted and seen) and len(predicted[0].value) == 2 * len(seen[0].value)


def heats(maps: Heat, steps: Sequence[int], *, words: Sequence[str] = (), picture: int = 0) -> dict[str, Tensor]:
    """The heat of each word at each of these steps, (N, H, W) in [0, 1]: at the nearest step that has some.

    Words that the maps do not hold (those of another picture, or not chosen) are left out. Maps that only kept the sum
    of all steps give that for every step.
    """
    kept = list(maps.steps) if getattr(maps, "each_step", True) else []
    found = {}
    for word in dict.fromkeys(words or maps.words):
        try:
            if kept:
                nearest = [min(kept, key=lambda one: abs(one - step)) for step in steps]
                planes = {step: maps.heat(word, step=step, picture=picture) for step in dict.fromkeys(nearest)}
                found[word] = torch.stack([planes[step].float().cpu() for step in nearest])
            elif maps.steps:
                found[word] = maps.heat(word, picture=picture).float().cpu().expand(len(steps), -1, -1)
        except ValueError:
            continue
    return found


def by_step(trace: Trace, stage: Stage) -> dict[int, Record]:
    """The records of a stage by their step."""
    return {record.step: record for record in trace[stage] if record.step is not None}


def pictures(trace: Trace) -> int:
    """How many pictures the run made at once."""
    for stage in (Stage.LATENT, Stage.DENOISED, Stage.IMAGE):
        if records := trace[stage]:
            return len(records[0].value)
    return 0


def check_picture(trace: Trace, picture: int) -> int:
    """The number of a picture of the trace.

    Raises:
        ValueError: there is no such picture.
    """
    many = pictures(trace)
    if not 0 <= picture < many:
        raise ValueError(f"the trace holds {many} picture{'s'[: many != 1]}, counted from 0, but picture is {picture}")
    return picture


def spread_out(items: Sequence[Any], many: int) -> list[Any]:
    """At most so many of them, evenly spaced, the first and the last among them."""
    if len(items) <= many:
        return list(items)
    if many == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (many - 1))] for i in range(many)]


def prompt_of(trace: Trace, picture: int = 0) -> str:
    """The words of one picture, "" where there were none."""
    told = trace.prompt
    if isinstance(told, list):
        return str(told[min(picture // trace.settings.get("num_images_per_prompt", 1), len(told) - 1)])
    return told or ""
