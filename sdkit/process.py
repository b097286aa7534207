"""The heart: the reverse process, from words and noise to a picture, as a generator that shows each of its stages."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
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

Generators = list[torch.Generator] | torch.Generator | None


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that one run of the reverse process is made from, checked and complete."""

    model: Model
    prompts: list[str]
    negative_prompts: list[str]
    height: int
    width: int
    guidance_scale: float
    guidance_rescale: float
    eta: float
    num_images_per_prompt: int
    generator: Generators  # one for each picture, as many as `pictures`
    latents: Tensor | None  # (B, C, h, w) start noise of unit variance, drawn from the generators if None
    pixels: Tensor | None  # (B, 3, H, W) in [-1, 1], the pictures to start from if not from noise alone
    scheduler: Any  # a fresh one
    visits: list[Visit]  # the timesteps that it was set to

    @property
    def pictures(self) -> int:
        return len(self.prompts) * self.num_images_per_prompt

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
    text = yield from _listen(run)  # (2B, L, D)
    x = yield from _start(run)  # (B, C, h, w)
    kind = scheduler.config.prediction_type
    for step, visit in enumerate(run.visits):
        t = visit.t
        held, x = x, (yield from tap(Stage.LATENT, x, step=step, t=t))
        if x is not held and schedulers.ignores_sample(scheduler, step):
            raise ValueError(
                f"stage 'latent', step {step}: {type(scheduler).__name__} goes on from a sample of its own here and "
                "would not hear the edit; edit the first visit of each timestep, or use another scheduler"
            )
        noise = model.predict(scheduler.scale_model_input(x, visit.tensor), visit.tensor, text)  # (2B, C, h, w)
        noise = yield from tap(Stage.NOISE, noise, step=step, t=t)
        if run.guided:
            uncond, cond = noise.chunk(2)
            noise = guide(uncond, cond, run.guidance_scale, run.guidance_rescale)
        guided = yield from tap(Stage.GUIDED, noise, step=step, t=t)  # (B, C, h, w)
        alpha, sigma = schedulers.alpha_sigma(scheduler, visit)
        believed = schedulers.clip(scheduler, x0_from(guided, x, alpha, sigma, kind)).to(x.dtype)
        x0 = yield from tap(Stage.DENOISED, believed, step=step, t=t)
        if x0 is not believed:  # step along the prediction that the edited x0 stands for
            guided = prediction_from(x0, x, alpha, sigma, kind).to(guided.dtype)
        x = schedulers.step_back(scheduler, guided, visit.tensor, x, eta=run.eta, generator=run.generator)
    x = yield from tap(Stage.LATENT, x)
    image = yield from tap(Stage.IMAGE, model.decode(x))
    return x, image


def _listen(run: Run) -> Generator[Event, None, Tensor]:
    """Prompts to token ids to text embeddings, the negative ones first."""
    model, each = run.model, run.num_images_per_prompt
    halves = [run.negative_prompts, run.prompts] if run.guided else [run.prompts]
    ids = torch.cat([model.tokenize(prompts).repeat_interleave(each, 0) for prompts in halves])
    ids = yield from tap(Stage.TOKENS, ids)  # (2B, L)
    texts = []
    for half in ids.chunk(len(halves)):
        unique = half[::each]
        same = torch.equal(unique.repeat_interleave(each, 0), half)
        # Encoded once a prompt, as diffusers does: another batch size may round differently.
        texts.append(model.encode_text(unique).repeat_interleave(each, 0) if same else model.encode_text(half))
    return (yield from tap(Stage.TEXT, torch.cat(texts)))


def _start(run: Run) -> Generator[Event, None, Tensor]:
    """x before the first step, (B, C, h, w): noise, or the encoded pictures noised up to the first timestep.

    Noise comes from CPU generators, so that a seed means the same on every device.
    """
    model, scheduler = run.model, run.scheduler
    if run.pixels is None:
        shape = model.latent_shape(run.pictures, run.height, run.width)
        noise = run.latents.to(model.device) if run.latents is not None else _noise(run, shape)
        x: Tensor = noise * scheduler.init_noise_sigma
        return x
    x0 = yield from _encode(run, run.pixels)
    first = run.visits[0].tensor.repeat(len(x0))  # (B,)
    start: Tensor = scheduler.add_noise(x0, _noise(run, x0.shape), first)
    return start


def _encode(run: Run, pixels: Tensor) -> Generator[Event, None, Tensor]:
    """Pictures to latents drawn from the encoder's posterior, (B, C, h, w), scaled as the U-Net knows them."""
    model = run.model
    pixels = yield from tap(Stage.PIXELS, pixels.to(model.device, model.dtype))
    # One by one where each picture has its own generator, as diffusers does: a batch may round differently.
    parts = torch.split(pixels, 1) if isinstance(run.generator, list) else [pixels]
    posterior = yield from tap(Stage.POSTERIOR, torch.cat([model.encode(part) for part in parts]))
    latents: Tensor = DiagonalGaussianDistribution(posterior).sample(run.generator)
    scaled: Tensor = latents * model.vae.config.scaling_factor
    return scaled


def _noise(run: Run, shape: tuple[int, ...]) -> Tensor:
    noise: Tensor = randn_tensor(shape, generator=run.generator, device=run.model.device, dtype=run.model.dtype)
    return noise
