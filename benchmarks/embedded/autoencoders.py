"""Three ways to train an autoencoder, side by side: `python -m benchmarks.embedded.autoencoders`.

Stable Diffusion's autoencoder learned to restore pictures, under a small pull of its latents towards N(0, 1), with a
discriminator that asks of every patch whether it is real (Rombach et al. 2022, arXiv:2112.10752; Esser et al. 2021,
arXiv:2012.09841). Here each of the three is added in turn, for the same number of steps, and measured.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm

from sdkit.tiny import anatomy, train

README = Path(__file__).parents[2] / "sdkit" / "tiny" / "README.md"
BETWEEN = "<!-- autoencoders -->", "<!-- /autoencoders -->"
BATCH, SIDE = 8, 64  # crops
ADVERSARIAL = 0.5  # share of the reconstruction's pull on the last layer that the discriminator gets


def discriminator(channels: int = 32) -> nn.Sequential:
    """Patches of a picture (B, 3, H, W) to logits (B, 1, H / 8, W / 8): positive where it takes them for real."""
    widths, layers = (channels, 2 * channels, 4 * channels), list[nn.Module]()
    for a, b in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.GroupNorm(8, b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))


def fit(
    vae: AutoencoderKL, pictures: Tensor, steps: range, *, prior: bool, critic: nn.Sequential | None = None
) -> AutoencoderKL:
    """Train on, in place. The learning rate falls over the second half of `steps`."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99))
    judge = torch.optim.AdamW(critic.parameters(), lr=1e-3, betas=(0.5, 0.9)) if critic else None
    last = vae.decoder.conv_out.weight
    for step in tqdm(steps, leave=False):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, 2 * (steps.stop - step) / len(steps), (step + 1) / 20)
        x = train.crops(pictures, step, BATCH, SIDE)
        posterior = vae.encode(x).latent_dist
        restored = vae.decode(posterior.sample() if prior else posterior.mean).sample
        loss = train.reconstruction_loss(restored, x)
        if critic is not None and judge is not None:
            # As strong, at the decoder's last layer, as a set share of the reconstruction (Esser et al., equation 7).
            fooled = -critic(restored).mean()
            pull, push = (torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (loss, fooled))
            loss = loss + ADVERSARIAL * (pull / (push + 1e-6)).detach() * fooled
        if prior:
            loss = loss + train.prior_loss(posterior)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if critic is not None and judge is not None:
            hinge = F.relu(1 - critic(x)).mean() + F.relu(1 + critic(restored.detach())).mean()
            judge.zero_grad()
            hinge.backward()  # type: ignore[no-untyped-call]
            judge.step()
    return vae


def variants(steps: int, pictures: Tensor) -> Iterator[tuple[str, AutoencoderKL]]:
    """The three, each from the same start and of the same length; the last two part only in their last quarter."""
    torch.manual_seed(train.SEED)
    start, critic, late = anatomy.autoencoder(), discriminator(), steps - steps // 4
    yield "reconstruction alone", fit(copy.deepcopy(start), pictures, range(steps), prior=False)
    early = fit(start, pictures, range(late), prior=True)
    yield "with the prior", fit(copy.deepcopy(early), pictures, range(late, steps), prior=True)
    yield "and the discriminator, late", fit(early, pictures, range(late, steps), prior=True, critic=critic)


@torch.no_grad()
def measure(vae: AutoencoderKL, pictures: Tensor) -> dict[str, float]:
    """Of pictures (n, 3, H, W) in [-1, 1]: how well they are restored, how sharp, and what their latents are like."""
    posterior = vae.encode(pictures).latent_dist
    z = posterior.mean
    restored = vae.decode(z).sample.clamp(-1, 1)
    spread = z.std((0, 2, 3), keepdim=True)
    generator = torch.Generator().manual_seed(0)
    shaken = vae.decode(z + 0.2 * spread * torch.randn(z.shape, generator=generator)).sample
    edges = _steepness(pictures) > 0.3
    return {
        "PSNR, dB": train.psnr(restored, pictures),
        "sharpness of edges": float(_steepness(restored)[edges].mean() / _steepness(pictures)[edges].mean()),
        "PSNR with latents shaken by 0.2, dB": train.psnr(shaken, pictures),
        "least spread of a latent channel": float(spread.min()),
        "greatest": float(spread.max()),
    }


def _steepness(x: Tensor) -> Tensor:
    """Length of the brightness gradient, (n, H - 1, W - 1)."""
    y = x.mean(1)
    return torch.hypot(y[:, 1:, :-1] - y[:, :-1, :-1], y[:, :-1, 1:] - y[:, :-1, :-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded.autoencoders", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=800, help="of each variant (default: 800)")
    steps = parser.parse_args().steps
    pictures = train.pixels(range(2000))
    unseen = train.as_input(train.pixels(range(train.VALIDATION, train.VALIDATION + 64)))
    rows: list[str] = []
    for name, vae in variants(steps, pictures):
        figures = measure(vae.eval(), unseen)
        if not rows:
            rows = [f"| {steps:,} steps | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
        rows.append(f"| {name} | {' | '.join(f'{value:.3g}' for value in figures.values())} |")
        print("\n".join(rows), flush=True)
    readme = README.read_text(encoding="utf-8")
    before, rest = readme.split(BETWEEN[0])
    table = "\n".join(rows)
    README.write_text(f"{before}{BETWEEN[0]}\n{table}\n{BETWEEN[1]}{rest.split(BETWEEN[1])[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
