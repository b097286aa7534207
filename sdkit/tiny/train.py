"""Train the embedded model from nothing: `python -m sdkit.tiny.train --out runs/tiny`.

Three stages, each on top of the one before and frozen after: the autoencoder learns to pack drawings, the text encoder
learns to name the parts of a caption, the U-Net learns to denoise latents under captions (latent diffusion, Rombach et
al. 2022, arXiv:2112.10752). A run that was interrupted goes on where its last checkpoint stands.
"""

from __future__ import annotations

import argparse
import copy
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from sdkit.tiny import anatomy, drawing, grammar
from sdkit.tiny.fitting import Recipe, fit

SEED = 20_26
VALIDATION = 10_000_000  # seeds from here on are never trained on
PAIRS = 0.15  # share of pictures with two things
CAPTION_DROPOUT = (
    0.1  # share of captions emptied, for classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598)
)


AUTOENCODER = Recipe(steps=2600, batch=8, learning_rate=1.5e-3)  # on crops
AUTOENCODER_WHOLE = Recipe(steps=800, batch=4, learning_rate=5e-4, decay=1.0, warmup=20)  # then on whole pictures
TEXT = Recipe(steps=600, batch=128, learning_rate=1e-3, warmup=50)
UNET = Recipe(steps=6500, batch=16, learning_rate=6e-4)
PICTURES = 8_000  # that the autoencoder sees
LATENTS = 24_000  # pictures that the U-Net sees, kept as latents


# ---------------------------------------------------------------------------------------------------------------------
# Data: every picture is a function of its seed


def scene(seed: int) -> grammar.Scene:
    rng = random.Random(seed)
    return grammar.random_scene(rng, things=2 if rng.random() < PAIRS else 1)


def pixels(seeds: range) -> Tensor:
    """Drawings as (n, 3, 128, 128) uint8."""
    pictures = [np.asarray(drawing.draw_scene(scene(seed), seed).image) for seed in seeds]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def as_input(picture: Tensor) -> Tensor:
    return picture.float() / 127.5 - 1  # in [-1, 1]


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures in [-1, 1], each rounded to 8 bits as a file would be."""
    a, b = (((x.clamp(-1, 1) + 1) * 127.5).round() for x in (a, b))
    error = (a - b).square().mean((1, 2, 3)).clamp(min=1e-3)
    return float((10 * torch.log10(255**2 / error)).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Stage 1: the autoencoder


def train_autoencoder(out: Path, accelerator: Accelerator) -> AutoencoderKL:
    folder = out / "weights" / "vae"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder).to(accelerator.device)
    vae = anatomy.autoencoder().to(accelerator.device)
    pictures = pixels(range(PICTURES))
    unseen = as_input(pixels(range(VALIDATION, VALIDATION + 64))).to(accelerator.device)

    def loss_of(step: int, batch: int, side: int) -> Tensor:
        rng = np.random.default_rng((SEED, side, step))
        crops = []
        for i in rng.integers(len(pictures), size=batch):
            y, x = rng.integers(0, 128 - side + 1, size=2)
            crops.append(pictures[i, :, y : y + side, x : x + side])
        x = as_input(torch.stack(crops)).to(accelerator.device)  # (B, 3, side, side)
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample()).sample - x
        loss: Tensor = error.abs().mean() + 4 * error.square().mean() + 1e-5 * posterior.kl().mean() / (side / 8) ** 2
        return loss

    @torch.no_grad()
    def validate() -> dict[str, float]:
        return {"psnr": psnr(vae(unseen).sample, unseen)}

    crops, whole = AUTOENCODER, AUTOENCODER_WHOLE
    fit("autoencoder", vae, lambda step: loss_of(step, crops.batch, 64), crops, out, accelerator, validate, every=250)
    fit(
        "autoencoder-whole",
        vae,
        lambda step: loss_of(step, whole.batch, 128),
        whole,
        out,
        accelerator,
        validate,
        every=200,
    )
    with torch.no_grad():
        posteriors = [
            vae.encode(as_input(part).to(accelerator.device)).latent_dist for part in torch.split(pictures[:1024], 32)
        ]
    means = torch.cat([p.mean for p in posteriors])
    variance = torch.cat([p.var for p in posteriors]).mean((0, 2, 3)) + means.var((0, 2, 3))
    anatomy.standardise_latents(vae, means.mean((0, 2, 3)), variance.sqrt())
    accelerator.print("autoencoder: standardised,", validate())
    vae.save_pretrained(folder)
    return vae


# ---------------------------------------------------------------------------------------------------------------------
# Stage 2: the text encoder


def train_text_encoder(out: Path, accelerator: Accelerator) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Teach it to name the parts of a caption at its last token, before any picture is seen; the U-Net learns to listen
    to the frozen result, as Stable Diffusion's did to CLIP. Its captions know no held-out pair either."""
    folder = out / "weights" / "text_encoder"
    tokenizer = anatomy.tokenizer(out / "weights" / "tokenizer")
    if folder.exists():
        return tokenizer, CLIPTextModel.from_pretrained(folder).to(accelerator.device)
    encoder = anatomy.text_encoder(tokenizer).to(accelerator.device)
    heads = nn.Linear(anatomy.TEXT_WIDTH, sum(grammar.CLASSES)).to(accelerator.device)
    pupil = nn.ModuleDict({"encoder": encoder, "heads": heads})

    def guess(rng: random.Random, batch: int) -> tuple[Tensor, Tensor]:
        said = []
        for _ in range(batch):
            complete = grammar.random_scene(rng, things=rng.choice((1, 2)))
            said.append(grammar.leave_out(complete, rng))
        ids = tokenize(tokenizer, [grammar.caption_of(scene, rng) for scene in said]).to(accelerator.device)
        # medium is never said
        truth = [grammar.answers(mute_medium(scene)) for scene in said]
        return heads(encoder(ids).pooler_output), torch.tensor(truth, device=accelerator.device)  # (B, classes), (B, 9)

    def loss_of(step: int) -> Tensor:
        logits, truth = guess(random.Random(SEED * step), TEXT.batch)
        parts = zip(torch.split(logits, grammar.CLASSES, dim=1), truth.T, strict=True)
        return torch.stack([F.cross_entropy(part, answer) for part, answer in parts]).mean()

    @torch.no_grad()
    def validate() -> dict[str, float]:
        logits, truth = guess(random.Random(VALIDATION), 512)
        right = [
            part.argmax(1) == answer
            for part, answer in zip(torch.split(logits, grammar.CLASSES, dim=1), truth.T, strict=True)
        ]
        return {"all parts right": float(torch.stack(right).all(0).float().mean())}

    fit("text", pupil, loss_of, TEXT, out, accelerator, validate, every=100)
    encoder.eval().save_pretrained(folder)
    return tokenizer, encoder


def mute_medium(scene: grammar.Scene) -> grammar.Scene:
    """The scene as heard: no caption says "medium"."""
    things = tuple(replace(t, size=None) if t.size == "medium" else t for t in scene.things)
    return replace(scene, things=things)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    padded = tokenizer(
        captions, padding="max_length", max_length=anatomy.MAX_LENGTH, truncation=True, return_tensors="pt"
    )
    ids: Tensor = padded.input_ids
    return ids  # (B, 32)


# ---------------------------------------------------------------------------------------------------------------------
# Stage 3: the U-Net


def cached_latents(out: Path, accelerator: Accelerator, vae: AutoencoderKL, shard: int = 2000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of all training pictures, each (LATENTS, 4, 16, 16)."""
    folder = out / "latents"
    folder.mkdir(exist_ok=True)
    means, stds = [], []
    for start in range(0, LATENTS, shard):
        file = folder / f"{start:06d}.safetensors"
        if not file.exists():
            with torch.no_grad():
                parts = torch.split(pixels(range(start, start + shard)), 50)
                found = [vae.encode(as_input(part).to(accelerator.device)).latent_dist for part in parts]
            mean, std = (
                torch.cat([getattr(p, key) for p in found]).half().cpu().contiguous() for key in ("mean", "std")
            )
            save_file({"mean": mean, "std": std}, file)
            accelerator.print(f"latents: {start + shard} of {LATENTS}", flush=True)
        tensors = load_file(file)
        means.append(tensors["mean"])
        stds.append(tensors["std"])
    return torch.cat(means), torch.cat(stds)


def train_unet(
    out: Path, accelerator: Accelerator, vae: AutoencoderKL, tokenizer: CLIPTokenizer, encoder: CLIPTextModel
) -> UNet2DConditionModel:
    folder = out / "weights" / "unet"
    if folder.exists():
        return UNet2DConditionModel.from_pretrained(folder).to(accelerator.device)
    unet = anatomy.unet().to(accelerator.device)
    schedule = anatomy.scheduler()
    mean, std = cached_latents(out, accelerator, vae)

    @torch.no_grad()
    def hear(captions: list[str]) -> Tensor:
        text: Tensor = encoder(tokenize(tokenizer, captions).to(accelerator.device)).last_hidden_state
        return text  # (B, 32, D)

    def loss_at(x0: Tensor, t: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        x = schedule.add_noise(x0, noise, t)  # (B, 4, 16, 16)
        target = schedule.get_velocity(x0, noise, t)
        return F.mse_loss(unet(x, t, hear(captions)).sample, target)

    def loss_of(step: int) -> Tensor:
        rng, generator = random.Random(SEED * step), torch.Generator().manual_seed(SEED + step)
        seeds = [rng.randrange(len(mean)) for _ in range(UNET.batch)]
        captions = [grammar.caption_of(grammar.leave_out(scene(seed), rng), rng) for seed in seeds]
        captions = ["" if rng.random() < CAPTION_DROPOUT else caption for caption in captions]
        x0 = mean[seeds].float() + std[seeds].float() * torch.randn(mean[seeds].shape, generator=generator)
        # One draw from each of B equal parts, evener than B free ones; the power leans towards the middle of the
        # schedule, where shapes are decided: two thirds of the draws fall into its middle half.
        strata = (torch.arange(UNET.batch) + torch.rand(UNET.batch, generator=generator)) / UNET.batch * 2 - 1
        share = 0.5 + 0.5 * strata.sign() * strata.abs() ** 1.6  # in (0, 1)
        t = (share * schedule.config.num_train_timesteps).long().to(accelerator.device)
        return loss_at(x0.to(accelerator.device), t, captions, generator)

    unseen = range(VALIDATION, VALIDATION + 64)
    with torch.no_grad():
        parts = torch.split(pixels(unseen), 32)
        x0_unseen = torch.cat([vae.encode(as_input(part).to(accelerator.device)).latent_dist.mean for part in parts])
    captions = [grammar.caption_of(scene(seed), random.Random(seed)) for seed in unseen]

    @torch.no_grad()
    def validate() -> dict[str, float]:
        """Long before pictures do, these show whether the words are heard: a wrong prompt should cost more."""
        row = {}
        for name, said in (
            ("right", captions),
            ("empty", [""] * len(captions)),
            ("wrong", captions[1:] + captions[:1]),
        ):
            t = torch.full((len(captions),), 800, device=accelerator.device)
            row[f"{name} at 800"] = float(loss_at(x0_unseen, t, said, torch.Generator().manual_seed(0)))
        sheet(anatomy.pipeline(vae, encoder, tokenizer, unet)).save(out / "unet.png")
        save(out / "model", vae, encoder, tokenizer, unet)
        return row

    fit("unet", unet, loss_of, UNET, out, accelerator, validate, every=1000)
    unet.eval().save_pretrained(folder)
    return unet


SHEET = (
    "a red star on a blue background",
    "a yellow cat",
    "a green tree on the left",
    "a small blue fish on a white background",
    "a large orange house on a gray background",
    "a pink flower at the top on a green background",
    "a black boat on a yellow background",
    "a purple mushroom",
    "a red heart on the right on a white background",
    "a green circle left of a red square",
    "a red fish",
    "a purple star",
)


def sheet(pipeline: StableDiffusionPipeline) -> Image.Image:
    """Two rows of pictures for a look at how far it is; the last two captions are held-out pairs."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    pictures = pipeline(
        list(SHEET), num_inference_steps=20, guidance_scale=5.0, height=128, width=128, generator=generator
    ).images
    page = Image.new("RGB", (6 * 132, 2 * 132), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture, (i % 6 * 132 + 2, i // 6 * 132 + 2))
    return page


def save(
    folder: Path, vae: AutoencoderKL, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> None:
    """The whole model in half precision, as it is shipped; what is being trained stays as it is."""
    parts = [copy.deepcopy(part).half() for part in (vae, encoder, unet)]
    for part in (parts[0], parts[2]):
        part.register_to_config(_name_or_path="")  # not the folder of whoever trained it
    anatomy.pipeline(parts[0], parts[1], tokenizer, parts[2]).save_pretrained(folder)
    anatomy.tokenizer(folder / "tokenizer")  # its vocabulary also in the two files that older transformers read


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sdkit.tiny.train", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder for weights, logs and checkpoints")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    set_seed(SEED)
    accelerator = Accelerator()
    vae = train_autoencoder(out, accelerator)
    tokenizer, encoder = train_text_encoder(out, accelerator)
    unet = train_unet(out, accelerator, vae, tokenizer, encoder)
    save(out / "model", vae, encoder, tokenizer, unet)
    accelerator.print(f"the finished model, in half precision, lies in {out / 'model'}")


if __name__ == "__main__":
    main()
