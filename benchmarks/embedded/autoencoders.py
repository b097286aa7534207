"""What each term of its loss does to an autoencoder: `python -m benchmarks.embedded.autoencoders`.

Stable Diffusion's autoencoder learned to restore pictures, under a small pull of its latents towards N(0, 1), with a
discriminator that asks of every patch whether it is real (Rombach et al. 2022, arXiv:2112.10752; Esser et al. 2021,
arXiv:2012.09841). Here each of the three is added in turn and measured. The discriminator comes last, to a decoder that
can already restore, that of the embedded model; beside it stands the same decoder, trained on for as long without it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm

from sdkit import load
from sdkit.tiny import anatomy, train
from sdkit.tiny.discriminator import sharpness
from sdkit.tiny.fitting import Recipe

README = Path(__file__).parents[2] / "sdkit" / "tiny" / "README.md"
BETWEEN = "<!-- autoencoders -->", "<!-- /autoencoders -->"
BATCH, SIDE = 8, 64  # crops


def fit(vae: AutoencoderKL, pictures: Tensor, steps: int, *, prior: bool) -> AutoencoderKL:
    """Train from where it is, in place. The learning rate falls over the second half of the steps."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99))
    for step in tqdm(range(steps), leave=False):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, 2 * (steps - step) / steps, (step + 1) / 20)
        x = train.crops(pictures, step, BATCH, SIDE)
        posterior = vae.encode(x).latent_dist
        loss = train.reconstruction_loss(vae.decode(posterior.sample() if prior else posterior.mean).sample, x)
        if prior:
            loss = loss + train.prior_loss(posterior)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
    return vae


def on(vae: AutoencoderKL, pictures: Tensor, recipe: Recipe, share: float) -> AutoencoderKL:
    """A copy of it whose decoder was trained on, the discriminator pulling with `share`."""
    vae = copy.deepcopy(vae)
    with TemporaryDirectory() as folder:
        train.sharpen_decoder(vae, pictures, recipe, Path(folder), Accelerator(cpu=True), dict, share)
    return vae


def variants(steps: int, pictures: Tensor, recipe: Recipe) -> Iterator[tuple[str, AutoencoderKL]]:
    """The first two from the same start, with so many steps; then the embedded one, as it is and trained on."""
    torch.manual_seed(train.SEED)
    start = anatomy.autoencoder()
    yield f"reconstruction alone, {steps:,} steps", fit(copy.deepcopy(start), pictures, steps, prior=False)
    yield f"with the prior, {steps:,} steps", fit(start, pictures, steps, prior=True)
    vae = load(device="cpu").vae
    yield "the embedded one", vae
    yield f"its decoder, {recipe.steps:,} steps on", on(vae, pictures, recipe, 0.0)
    yield f"its decoder, {recipe.steps:,} steps on with the discriminator", on(vae, pictures, recipe, train.ADVERSARIAL)


@torch.no_grad()
def measure(vae: AutoencoderKL, pictures: Tensor) -> dict[str, float]:
    """Of pictures (n, 3, H, W) in [-1, 1]: how well they are restored, how sharp, and what their latents are like."""
    posterior = vae.encode(pictures).latent_dist
    z = posterior.mean
    restored = vae.decode(z).sample.clamp(-1, 1)
    spread = z.std((0, 2, 3), keepdim=True)
    generator = torch.Generator().manual_seed(0)
    shaken = vae.decode(z + 0.2 * spread * torch.randn(z.shape, generator=generator)).sample
    return {
        "PSNR, dB": train.psnr(restored, pictures),
        "sharpness of edges": sharpness(restored, pictures),
        "PSNR with latents shaken by 0.2, dB": train.psnr(shaken, pictures),
        "least spread of a latent channel": float(spread.min()),
        "greatest": float(spread.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded.autoencoders", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=800, help="of the first two (default: 800)")
    steps = parser.parse_args().steps
    pictures = train.pixels(range(2000))
    unseen = train.as_input(train.pixels(range(train.VALIDATION, train.VALIDATION + 64)))
    rows: list[str] = []
    for name, vae in variants(steps, pictures, train.SHARP):
        figures = measure(vae.eval(), unseen)
        if not rows:
            rows = [f"| | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
        rows.append(f"| {name} | {' | '.join(f'{value:.3g}' for value in figures.values())} |")
        print("\n".join(rows), flush=True)
    readme = README.read_text(encoding="utf-8")
    before, rest = readme.split(BETWEEN[0])
    table = "\n".join(rows)
    README.write_text(f"{before}{BETWEEN[0]}\n{table}\n{BETWEEN[1]}{rest.split(BETWEEN[1])[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
