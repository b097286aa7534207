"""The heart: the reverse process, from words and noise to a picture, as a generator that shows each of its stages."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sdkit import schedulers
from sdkit.events import Event, Stage, tap
from sdkit.model import Model
from sdkit.noise import guide, prediction_from, x0_from
from sdkit.schedulers import Visit
from sdkit.settings import Settings

Generators = list[torch.Generator] | torch.Generator | None


@dataclass(frozen=True, eq=False)
class History:
    """The first steps of an earlier run, to be stepped through again without the U-Net."""

    latents: list[Tensor]  # x of each step, (B, C, h, w), as its prediction saw it
    predictions: list[Tensor]  # what was stepped along, (B, C, h, w)


@dataclass(eq=False)
class Run:
    """Everything that one run of the reverse process is made from, checked and complete."""

    model: Model
    settings: Settings  # complete
    guidance_scale: float
    shape: tuple[int, int, int, int]  # (B, C, h, w) of the latents
    generator: Generators  # one for each picture, or one for all
    latents: Tensor | None  # (B, C, h, w) start noise of unit variance, drawn from the generators if None
    pixels: Tensor | None  # (N, 3, H, W) in [-1, 1], N pictures to start from if not from noise alone; B = N * n
    negative_prompt_embeds: Tensor | None  # (P, L, D), what stands in for the words of either half
    prompt_embeds: Tensor | None
    scheduler: Any  # a fresh one
    visits: list[Visit]  # the timesteps that it was set to
    record: dict[str, Any]  # plain JSON values: all that makes this run but hooks
    history: History | None = None  # of a branch
    stepped: dict[int, Tensor] = field(default_factory=dict)  # what was stepped along where an x0 was edited, by step
    stop: bool = False  # set by a hook: end with the x0 of this step

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1


def reverse(run: Run) -> Generator[Event, None, tuple[Tensor, Tensor]]:
    """Words and noise, or a noised picture, to pictures: the clean latents (B, C, h, w) and the decoded (B, 3, H, W).

    With alpha and sigma from the noise schedule, x = alpha * x0 + sigma * eps, and step by step: predict, guide, see
    the x0 that follows, step back to a less noisy x (Ho et al. 2020, arXiv:2006.11239). Bit-identical to diffusers'
    `StableDiffusionPipeline`, and `StableDiffusionImg2ImgPipeline`, as long as nobody edits.
    """
    model, scheduler = run.model, run.scheduler
    text = yield from listen(run)  # (2B, L, D)
    x = yield from _start(run)  # (B, C, h, w)
    kind = scheduler.config.prediction_type
    for step, visit in enumerate(run.visits):
        t = visit.t
        if run.history is not None and step < len(run.history.latents):
            x = _again(run, run.history, step, x)
            continue
        held, x = x, (yield from tap(Stage.LATENT, x, step=step, t=t))
        if x is not held:
            schedulers.accept_edit(scheduler, step, visit)
        noise = model.predict(scheduler.scale_model_input(x, visit.tensor), visit.tensor, text)  # (2B, C, h, w)
        noise = yield from tap(Stage.NOISE, noise, step=step, t=t)
        if run.guided:
            uncond, cond = noise.chunk(2)
            noise = guide(uncond, cond, run.guidance_scale, run.settings.guidance_rescale)
        guided = yield from tap(Stage.GUIDED, noise, step=step, t=t)  # (B, C, h, w)
        alpha, sigma = schedulers.alpha_sigma(scheduler, visit)
        believed = schedulers.clip(scheduler, x0_from(guided, x, alpha, sigma, kind)).to(x.dtype)
        x0 = yield from tap(Stage.DENOISED, believed, step=step, t=t)
        if x0 is not believed:  # step along the prediction that the edited x0 stands for
            guided = run.stepped[step] = prediction_from(x0, x, alpha, sigma, kind).to(guided.dtype)
        if run.stop:
            x = x0
            break
        x = schedulers.step_back(scheduler, guided, visit.tensor, x, eta=run.settings.eta, generator=run.generator)
    x = yield from tap(Stage.LATENT, x)
    image = yield from tap(Stage.IMAGE, model.decode(x))
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


def listen(run: Run) -> Generator[Event, None, Tensor]:
    """Prompts to token ids to text embeddings, the negative ones first.

    Embeddings that were given are no words: TOKENS then shows the other half alone, or does not come.
    """
    model, settings, each = run.model, run.settings, run.settings.num_images_per_prompt
    skips = (settings.clip_skip if settings.clip_skip_negative else None, settings.clip_skip)
    given = (run.negative_prompt_embeds, run.prompt_embeds)
    halves = list(zip((settings.negative_prompts, settings.prompts), skips, given, strict=True))[not run.guided :]
    words = [prompts for prompts, _, embeds in halves if embeds is None]
    heard: Iterator[tuple[Tensor, Tensor]] = iter(())
    if words:
        length = max((embeds.shape[1] for *_, embeds in halves if embeds is not None), default=0)
        ids = model.tokenize(list(chain(*words)), split=settings.long_prompt == "split", length=length)
        ids = yield from tap(Stage.TOKENS, _repeat(ids, each))  # (2B, L)
        heard = _distinct(ids, len(words), each)
    texts = []
    for _, clip_skip, embeds in halves:
        if embeds is None:  # encoded once a prompt, as diffusers does: another batch size may round differently
            half, rows = next(heard)
            embeds = model.encode_text(rows, clip_skip)
            texts.append(_repeat(embeds, len(half) // len(rows)))
        else:
            texts.append(_repeat(embeds, each))
    if len({text.shape for text in texts}) > 1:
        lengths = " and ".join(str(text.shape[1]) for text in texts)
        raise ValueError(
            f"the text embeddings are {lengths} tokens long; give negative_prompt_embeds of equal length too"
        )
    return (yield from tap(Stage.TEXT, torch.cat(texts)))


def _distinct(values: Tensor, parts: int, each: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of the parts of a batch: all its rows, and one of every `each` unless someone made them differ."""
    for part in values.chunk(parts):
        first = part[::each]
        yield part, first if torch.equal(_repeat(first, each), part) else part


def _repeat(values: Tensor, each: int) -> Tensor:
    """Every row `each` times in a row. By cat, which keeps the memory layout and so what convolutions round to."""
    return torch.cat([row for row in torch.split(values, 1) for _ in range(each)])


def _start(run: Run) -> Generator[Event, None, Tensor]:
    """x before the first step, (B, C, h, w): noise, or the encoded pictures noised up to the first timestep.

    Noise comes from CPU generators, so that a seed means the same on every device.
    """
    if run.pixels is None:
        noise = run.latents.to(run.model.device) if run.latents is not None else _noise(run)
        x: Tensor = noise * run.scheduler.init_noise_sigma
        return x
    x0 = yield from _encode(run, run.pixels)
    first = run.visits[0].tensor.repeat(len(x0))  # (B,)
    start: Tensor = run.scheduler.add_noise(x0, _noise(run), first)
    return start


def _encode(run: Run, pixels: Tensor) -> Generator[Event, None, Tensor]:
    """Pictures to latents drawn from the encoder's posterior, (B, C, h, w), scaled as the U-Net knows them."""
    model, each = run.model, run.shape[0] // len(pixels)
    pixels = yield from tap(Stage.PIXELS, _repeat(pixels, each).to(model.device, model.dtype))
    # As diffusers does: one by one where each picture has its own generator, otherwise each given picture once.
    single = not isinstance(run.generator, list)
    parts = [rows for _, rows in _distinct(pixels, 1, each)] if single else torch.split(pixels, 1)
    posterior = torch.cat([model.encode(part) for part in parts])
    posterior = yield from tap(Stage.POSTERIOR, _repeat(posterior, len(pixels) // len(posterior)))
    if single:
        (_, posterior), *_ = _distinct(posterior, 1, each)
    latents: Tensor = DiagonalGaussianDistribution(posterior).sample(run.generator)
    scaled: Tensor = _repeat(latents, len(pixels) // len(latents)) * model.vae.config.scaling_factor
    return scaled


def _noise(run: Run) -> Tensor:
    noise: Tensor = randn_tensor(run.shape, generator=run.generator, device=run.model.device, dtype=run.model.dtype)
    return noise
