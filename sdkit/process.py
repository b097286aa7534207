"""The heart: the reverse process, from words and noise to a picture, as a generator that shows each of its stages."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sdkit import schedulers
from sdkit.attention import Inside
from sdkit.events import Event, Stage, tap
from sdkit.listening import distinct, listen, repeat
from sdkit.model import Condition, Control
from sdkit.noise import guide, prediction_from, x0_from
from sdkit.runs import History, Run


@dataclass(frozen=True, eq=False)
class Painting:
    """What inpainting keeps beside x."""

    x0: Tensor | None  # (B, C, h, w) latents of the picture
    noise: Tensor  # (B, C, h, w)
    mask: Tensor  # (B, 1, h, w), 1 where to paint anew
    masked: Tensor | None  # (B, C, h, w) latents of the picture without what is under the mask


def reverse(run: Run) -> Generator[Event, None, tuple[Tensor, Tensor]]:
    """Words and noise, or a noised picture, to pictures: the clean latents (B, C, h, w) and the decoded (B, 3, H, W).

    With alpha and sigma from the noise schedule, x = alpha * x0 + sigma * eps, and step by step: predict, guide, see
    the x0 that follows, step back to a less noisy x (Ho et al. 2020, arXiv:2006.11239). Bit-identical to diffusers'
    pipelines of Stable Diffusion 1, 2 and XL for words, pictures and inpainting, as long as nobody edits.
    """
    model, scheduler, visits = run.model, run.scheduler, run.visits
    text, pooled = yield from listen(run)  # (2B, L, D), (2B, P)
    x, painting = yield from _start(run)  # (B, C, h, w)
    condition = conditioned(run, text, pooled, painting)
    kind = scheduler.config.prediction_type
    inside = Inside(model.unet, run.hooks, run)
    for step, visit in enumerate(visits):
        t = visit.t
        if run.history is not None and step < len(run.history.latents):
            x = _keep_around(run, painting, _again(run, run.history, step, x), step)
            continue
        held, x = x, (yield from tap(Stage.LATENT, x, step=step, t=t))
        if x is not held:
            schedulers.accept_edit(scheduler, step, visit)
        seen = scheduler.scale_model_input(x, visit.tensor)
        with inside.at(step, t):
            noise = model.predict(seen, visit.tensor, condition, (step, len(visits)))  # (2B, C, h, w)
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
        x = _keep_around(run, painting, x, step)
    x = yield from tap(Stage.LATENT, x)
    image = yield from tap(Stage.IMAGE, model.decode(x))
    return x, image


def conditioned(run: Run, text: Tensor, pooled: Tensor | None, painting: Painting | None = None) -> Condition:
    """All that the U-Net is told beside x and t."""
    model, pictures = run.model, run.shape[0]
    twice = 2 if run.guided else 1
    time_ids = image_embeds = painted = None
    if pooled is not None:
        negative, positive = model.time_ids(run.settings, from_picture=run.pictures.pixels is not None)
        time_ids = torch.cat([negative.repeat(pictures, 1), positive.repeat(pictures, 1)][-twice:])
    given = run.pictures.ip_adapter_image, run.pictures.ip_adapter_image_embeds
    if any(one is not None for one in given):
        image_embeds = model.pipeline.prepare_ip_adapter_image_embeds(*given, model.device, pictures, run.guided)
    if painting is not None and painting.masked is not None:
        painted = torch.cat([torch.cat([painting.mask, painting.masked], dim=1)] * twice)
    guidance = model.embed_guidance(run.guidance_scale, pictures) if model.takes_guidance else None
    return Condition(text, pooled, time_ids, image_embeds, guidance, painted, _control(run))


def _control(run: Run) -> Control | None:
    if not run.pictures.control:
        return None
    settings, nets = run.settings, run.model.controlnets
    guess_mode = settings.guess_mode or nets[0].config.global_pool_conditions
    twice = run.guided and not guess_mode
    pictures = []
    for net, given in zip(nets, run.pictures.control, strict=True):
        rows = given.repeat_interleave(run.shape[0] // len(given), dim=0).to(run.model.device, net.dtype)
        pictures.append(torch.cat([rows] * 2) if twice else rows)
    values = (settings.controlnet_conditioning_scale, settings.control_guidance_start, settings.control_guidance_end)
    scale, start, end = ([v] * len(nets) if isinstance(v, int | float) else list(v) for v in values)
    return Control(pictures, scale, start, end, guess_mode)


def _keep_around(run: Run, painting: Painting | None, x: Tensor, step: int) -> Tensor:
    """For a U-Net that does not see the mask: the given picture, noised as x is, wherever the mask is 0."""
    if painting is None or painting.x0 is None or run.model.paints:
        return x
    around = painting.x0
    if step + 1 < len(run.visits):
        around = run.scheduler.add_noise(around, painting.noise, run.visits[step + 1].tensor.reshape(1))
    kept: Tensor = (1 - painting.mask) * around + painting.mask * x
    return kept


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


def _start(run: Run) -> Generator[Event, None, tuple[Tensor, Painting | None]]:
    """x before the first step, (B, C, h, w): noise, or the encoded pictures noised up to the first timestep.

    Noise comes from CPU generators, so that a seed means the same on every device. Inpainting draws in the order in
    which diffusers does: the picture's latents, the noise, the latents of what is left of it around the mask.
    """
    model, settings, given = run.model, run.settings, run.pictures
    if given.pixels is None:
        start = run.latents.to(model.device) if run.latents is not None else _noise(run)
        return start * run.scheduler.init_noise_sigma, None
    pixels, mask = given.pixels, given.mask
    x0: Tensor | None = None
    if pixels.shape[1] == 3:
        pixels = repeat(pixels, run.shape[0] // len(pixels)).to(model.device, model.dtype)
        pixels = yield from tap(Stage.PIXELS, pixels)
    else:
        x0 = repeat(pixels, run.shape[0] // len(pixels)).to(model.device, model.dtype)
    if mask is not None:
        mask = yield from tap(Stage.MASK, repeat(mask, run.shape[0] // len(mask)).to(model.device, model.dtype))
    goes_on = settings.denoising_start is not None  # from where another run has stopped
    all_noise = mask is not None and settings.strength == 1 and not goes_on
    if x0 is None and not (all_noise and model.paints):
        x0 = yield from _encode(run, pixels)
    if mask is None and goes_on and x0 is not None:
        return x0, None
    noise = _noise(run)
    if all_noise or x0 is None:
        start = noise * run.scheduler.init_noise_sigma
    else:
        first = run.visits[0].tensor.repeat(run.shape[0])  # (B,)
        start = x0 if goes_on else run.scheduler.add_noise(x0, noise, first)
    if mask is None:
        return start, None
    masked = None
    if model.paints:
        masked = yield from _encode(run, pixels * (mask < 0.5), layer="masked")
    elif pixels.shape[1] == 3:  # diffusers encodes it for such a U-Net too, for nothing but what that draws
        shape = (_given(run), 2 * run.shape[1], *run.shape[2:])
        _sample(run, torch.zeros(shape, device=model.device, dtype=model.encodes_in))
    small = torch.nn.functional.interpolate(mask, size=run.shape[2:])  # nearest
    return start, Painting(x0, noise, small, masked)


def _encode(run: Run, pixels: Tensor, layer: str | None = None) -> Generator[Event, None, Tensor]:
    """Pictures (B, 3, H, W) to latents drawn from the encoder's posterior, (B, C, h, w), as the U-Net knows them.

    As diffusers does: one by one where each picture has its own generator, but those of one given picture share one
    draw when they inpaint or share a generator.
    """
    model, pictures, each = run.model, run.shape[0], run.shape[0] // _given(run)
    single = not isinstance(run.generator, list)
    shared = single or run.pictures.mask is not None
    rows = next(distinct(pixels, 1, each))[1] if shared else pixels
    posterior = torch.cat([model.encode(part) for part in ([rows] if single else torch.split(rows, 1))])
    posterior = yield from tap(Stage.POSTERIOR, repeat(posterior, pictures // len(posterior)), layer=layer)
    if shared:
        posterior = next(distinct(posterior, 1, each))[1]
    latents = _sample(run, posterior).to(model.dtype)
    scaled: Tensor = repeat(latents, pictures // len(latents)) * model.vae.config.scaling_factor
    # Inpainting repeats them by `repeat` in diffusers, which changes the memory layout, in which convolutions round.
    return scaled if run.pictures.mask is None else scaled.contiguous()


def _sample(run: Run, posterior: Tensor) -> Tensor:
    """Latents (b, C, h, w) drawn from b posteriors, b a divisor of B, with the generators of those pictures."""
    generator = run.generator
    if isinstance(generator, list):
        generator = generator[:: run.shape[0] // len(posterior)]
    latents: Tensor = DiagonalGaussianDistribution(posterior).sample(generator)
    return latents


def _given(run: Run) -> int:
    """N, how many pictures the run was given."""
    assert run.pictures.pixels is not None
    return len(run.pictures.pixels)


def _noise(run: Run) -> Tensor:
    noise: Tensor = randn_tensor(run.shape, generator=run.generator, device=run.model.device, dtype=run.model.dtype)
    return noise
