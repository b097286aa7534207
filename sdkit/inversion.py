"""DDIM told backwards: from a picture to the very noise from which the model would draw it (Song et al. 2021,
arXiv:2010.02502, section 4.3), each step solved by fixed-point iteration (Pan et al. 2023, arXiv:2309.04907)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

from torch import Tensor

from sdkit import schedulers
from sdkit.events import Event, Hook, Stage, run, tap
from sdkit.latents import as_latents
from sdkit.listening import listen
from sdkit.loading import load
from sdkit.noise import x0_from
from sdkit.preparation import pictures_for, prepare
from sdkit.process import conditioned
from sdkit.runs import Run, signed
from sdkit.settings import Settings
from sdkit.trace import Trace

ENOUGH = 1e-5  # a guess that moves by less, as a share of its norm, is not refined further
Level = tuple[Tensor, Tensor]  # alpha and sigma


def invert(
    image: Any,
    prompt: str | Sequence[str] = "",
    *,
    model: Any = None,
    num_inference_steps: int = 50,
    refinements: int = 10,
    height: int | None = None,
    width: int | None = None,
    hooks: Iterable[Hook] = (),
) -> Trace:
    """Find the noise from which DDIM would draw these pictures under these words at guidance 1, as a `Trace`.

    It records TOKENS, TEXT, PIXELS and POSTERIOR, then for each step, from the least noisy timestep t up, NOISE (what
    the U-Net predicts there), DENOISED and LATENT (x_t); `trace.latents` is the last x_t, the noise. The way back is

        sdkit.text_to_image(prompt, latents=trace.latents, guidance_scale=1, scheduler="ddim", num_inference_steps=50)

    with the same number of steps. An edit keeps the more of the picture the later the words change on that way: record
    it with a `Trace` of its own, and `branch` it half-way, say, with another prompt and guidance_scale=3.

    Args:
        image: a picture or a list of such, as for `image_to_image`. Its latents are the posterior's mean.
        prompt: what the picture shows; "" leaves it to the U-Net.
        model: what `load` takes; the embedded model by default.
        refinements: the way back asks the U-Net about the noisier end of each step, which is not known here. It is
            guessed from the cleaner end, then at most so many times anew from the guess before, each for one more call
            of the U-Net, until the guess moves by less than 1e-5 of its norm. 0 is plain DDIM inversion.
            `trace.settings["residuals"]` says how far the last guess moved in each step.
        height, width: to fit the picture to, multiples of 8.
        hooks: called with every `Event`; assigning `event.value` edits what follows.

    Raises:
        ValueError: the model's DDIM clips what the model predicts, so that its steps cannot be undone.
    """
    if isinstance(refinements, bool) or not isinstance(refinements, int) or refinements < 0:
        raise ValueError(f"refinements must be a whole number from 0 up, but is {refinements!r}")
    settings = Settings(
        prompt, num_inference_steps=num_inference_steps, guidance_scale=1.0, height=height, width=width, seed=0
    )
    owner, trace = load(model), Trace()
    request = prepare(settings, owner, "ddim", pictures=pictures_for(owner, settings, image=image))
    schedulers.alpha_sigma_after(request.scheduler, request.visits[0])  # said before the first step if it cannot be
    request.record.update(process="inversion", refinements=refinements, residuals=[])
    run(signed(request, _inverse(request, refinements)), [*hooks, trace])
    return trace


def _inverse(request: Run, refinements: int) -> Generator[Event, None, Tensor]:
    """Pictures to noise (B, C, h, w): for each step back that DDIM would take, the x that it would have come from."""
    model, scheduler = request.model, request.scheduler
    condition = conditioned(request, *(yield from listen(request)))
    x = yield from _clean(request)  # (B, C, h, w)
    for step, visit in enumerate(reversed(request.visits)):
        level, after = schedulers.alpha_sigma(scheduler, visit), schedulers.alpha_sigma_after(scheduler, visit)
        kind, t = scheduler.config.prediction_type, visit.t
        found = x
        for _ in range(refinements + 1):
            guess = found
            noise = model.predict(guess, visit.tensor, condition)  # (B, C, h, w)
            found = _noisier(x, after, x0_from(noise, guess, *level, kind), guess, level)
            residual = float((found - guess).norm() / found.norm())
            if residual < ENOUGH:
                break
        told = yield from tap(Stage.NOISE, noise, step=step, t=t)
        x0 = yield from tap(Stage.DENOISED, x0_from(told, guess, *level, kind).to(x.dtype), step=step, t=t)
        x = _noisier(x, after, x0, guess, level)
        request.record["residuals"].append(residual)
        x = yield from tap(Stage.LATENT, x, step=step, t=t)
    return x


def _noisier(x: Tensor, after: Level, x0: Tensor, guess: Tensor, level: Level) -> Tensor:
    """The sample at `level` from which DDIM's step leads to x at the level `after`, if of `guess` there the model
    believes x0: x = alpha_after * x0 + sigma_after * eps, with the eps that x0 leaves of the guess."""
    (alpha, sigma), (alpha_after, sigma_after) = level, after
    eps = (guess - alpha * x0) / sigma
    return ((alpha / alpha_after) * (x - sigma_after * eps) + sigma * eps).to(x.dtype)


def _clean(request: Run) -> Generator[Event, None, Tensor]:
    """The mean (B, C, h, w) that the encoder gives the pictures, each as often as there are prompts for it."""
    model = request.model
    assert request.pictures.pixels is not None  # `invert` was given a picture
    pixels = yield from tap(Stage.PIXELS, request.pictures.pixels.to(model.device, model.dtype))
    posterior = yield from tap(Stage.POSTERIOR, model.encode(pixels))
    return as_latents(model, posterior).mean.repeat_interleave(request.shape[0] // len(pixels), dim=0)
