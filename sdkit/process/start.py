"""Where the reverse process begins: at noise, or at pictures, encoded and noised up to the first timestep."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sdkit.events import Event, Stage
from sdkit.process.condition import distinct, repeat
from sdkit.process.run import Run


@dataclass(frozen=True, eq=False)
class Painting:
    """What inpainting keeps beside x."""

    x0: Tensor | None  # (B, C, h, w) latents of the picture
    noise: Tensor  # (B, C, h, w)
    mask: Tensor  # (B, 1, h, w), 1 where to paint anew
    masked: Tensor | None  # (B, C, h, w) latents of the picture without what is under the mask

    def for_unet(self, times: int) -> Tensor | None:
        """Mask and masked latents (times * B, 1 + C, h, w) for a U-Net that sees them."""
        return None if self.masked is None else torch.cat([torch.cat([self.mask, self.masked], dim=1)] * times)


def start(run: Run) -> Generator[Event, None, tuple[Tensor, Painting | None]]:
    """x before the first step, (B, C, h, w), and what inpainting keeps.

    Inpainting draws in the order in which diffusers does: the picture's latents, the noise, the latents of what is left
    of it around the mask.
    """
    model, settings, pixels, mask = run.model, run.settings, run.pictures.pixels, run.pictures.mask
    if pixels is None:
        unit = run.latents.to(run.device) if run.latents is not None else noise_like(run, run.shape)
        return unit * run.scheduler.init_noise_sigma, None
    x0: Tensor | None = None
    if pixels.shape[1] == 3:
        pixels = repeat(pixels, run.shape[0] // len(pixels)).to(run.device, model.dtype)
        pixels = yield from run.show(Stage.PIXELS, pixels)
    else:
        x0 = repeat(pixels, run.shape[0] // len(pixels)).to(run.device, model.dtype)
    if mask is not None:
        mask = repeat(mask, run.shape[0] // len(mask)).to(run.device, model.dtype)
        mask = yield from run.show(Stage.MASK, mask)
    goes_on = settings.denoising_start is not None  # from where another run has stopped
    all_noise = mask is not None and settings.strength == 1 and not goes_on
    if x0 is None and not (all_noise and model.paints):
        x0 = yield from _encode(run, pixels)
    if mask is None and goes_on and x0 is not None:
        return x0, None
    noise = noise_like(run, run.shape)
    if all_noise or x0 is None:
        x = noise * run.scheduler.init_noise_sigma
    else:
        first = run.visits[0].tensor.repeat(run.shape[0])  # (B,)
        x = x0 if goes_on else run.scheduler.add_noise(x0, noise, first)
    if mask is None:
        return x, None
    masked = None
    if run.pictures.masked is not None:
        masked = repeat(run.pictures.masked, run.shape[0] // _pictures(run)).to(run.device, model.dtype)
    elif model.paints:
        masked = yield from _encode(run, pixels * (mask < 0.5), layer="masked")
    elif (
        pixels.shape[1] == 3 and model.samples
    ):  # diffusers encodes it for such a U-Net too, for nothing but what that draws
        shape = (_pictures(run), 2 * run.shape[1], *run.shape[2:])
        _sample(run, torch.zeros(shape, device=run.device, dtype=model.encodes_in))
    small = torch.nn.functional.interpolate(mask, size=run.shape[2:])  # nearest
    return x, Painting(x0, noise, small, masked)


def keep_around(run: Run, painting: Painting | None, x: Tensor, step: int) -> Tensor:
    """For a U-Net that does not see the mask: the picture, noised as x is, wherever the mask is 0."""
    if painting is None or painting.x0 is None or run.model.paints:
        return x
    around = painting.x0
    if step + 1 < len(run.visits):
        around = run.scheduler.add_noise(around, painting.noise, run.visits[step + 1].tensor.reshape(1))
    kept: Tensor = (1 - painting.mask) * around + painting.mask * x
    return kept


def encoded_mean(run: Run) -> Generator[Event, None, Tensor]:
    """The mean (B, C, h, w) that the encoder gives the pictures, each as often as there are pictures to make of it."""
    model, pixels = run.model, run.pictures.pixels
    assert pixels is not None  # whoever asks was given a picture
    pixels = yield from run.show(Stage.PIXELS, pixels.to(run.device, model.dtype))
    if run.record.get("space") == "pixel":
        return pixels
    posterior = yield from run.show(Stage.POSTERIOR, model.encode(pixels))
    return model.moments(posterior)[0].repeat_interleave(run.shape[0] // len(pixels), dim=0)


def _encode(run: Run, pixels: Tensor, layer: str | None = None) -> Generator[Event, None, Tensor]:
    """Pictures (B, 3, H, W) to latents drawn from the encoder's posterior, (B, C, h, w), as the U-Net knows them.

    As diffusers does: one by one where each picture has its own generator, but those of one picture share one draw when
    they inpaint or share a generator.
    """
    model, pictures, each = run.model, run.shape[0], run.shape[0] // _pictures(run)
    single = not isinstance(run.generator, list)
    shared = single or run.pictures.mask is not None
    rows = next(distinct(pixels, 1, each))[1] if shared else pixels
    posterior = torch.cat([model.encode(part) for part in ([rows] if single else torch.split(rows, 1))])
    posterior = yield from run.show(Stage.POSTERIOR, repeat(posterior, pictures // len(posterior)), layer=layer)
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
    if not run.model.samples:
        return posterior.chunk(2, dim=1)[0]
    latents: Tensor = DiagonalGaussianDistribution(posterior).sample(generator)
    return latents


def _pictures(run: Run) -> int:
    """N, how many pictures the run starts from."""
    assert run.pictures.pixels is not None
    return len(run.pictures.pixels)


def noise_like(run: Run, shape: tuple[int, ...]) -> Tensor:
    """Noise of unit variance from the run's generators, where its model computes."""
    noise: Tensor = randn_tensor(shape, generator=run.generator, device=run.device, dtype=run.model.dtype)
    return noise
