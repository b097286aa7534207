"""Train the embedded model from nothing: `python -m sdkit.tiny.train --out runs/tiny`.

Three stages, each on top of the one before: the autoencoder learns to pack drawings, the text encoder learns to name
the parts of a caption, and the U-Net learns to denoise latents under captions, with the text encoder going on beside it
(latent diffusion, Rombach et al. 2022, arXiv:2112.10752). A run that was interrupted goes on where its last checkpoint
stands. `--preset minutes` does the same on pictures of 64x64, small enough to watch. A discriminator that sharpens the
decoder is there to be looked at (`sharpen_decoder`), and part of neither: it made no cleaner pictures.

It is longer than other files because the three stages share their data and their presets.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import CLIPTextModel, CLIPTokenizer

from sdkit import measure
from sdkit.inputs.checks import pick
from sdkit.tiny import anatomy, discriminator, drawing, grammar
from sdkit.tiny.fitting import Recipe, fit

SEED = 20_26
VALIDATION = 10_000_000  # seeds from here on are never trained on
PAIRS = 0.5  # share of pictures with two things
CAPTION_DROPOUT = 0.1  # emptied, for classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598)
SHARP = Recipe(steps=180, batch=2, learning_rate=5e-5, ema=0.98, decay=0.4, warmup=20)  # of the decoder alone
ADVERSARIAL = 0.2  # how strongly the discriminator pulls at the decoder's last layer, as a share of the error's pull
SHAKEN = 0.1  # of the latents' spread: noise that the decoder learns to bear, since what a U-Net makes is never exact
WORDINGS = 8  # captions of each picture, which leave other things unsaid
WORD_WEIGHT = 0.1  # of the loss on where a noun's attention lies, beside the denoising loss


# ---------------------------------------------------------------------------------------------------------------------
# Data: every picture is a function of its seed


def scene(seed: int) -> grammar.Scene:
    rng = random.Random(seed)
    return grammar.random_scene(rng, things=2 if rng.random() < PAIRS else 1)


def large_scene(seed: int) -> grammar.Scene:
    """One large thing in the centre: little enough to be learned in minutes."""
    drawn = grammar.random_scene(random.Random(seed))
    return replace(drawn, things=(replace(drawn.things[0], size="large"),), place="centre")


@dataclass(frozen=True)
class Preset:
    """How large a model is and how long each of its parts is trained."""

    side: int  # pixels, height and width of the pictures
    autoencoder: tuple[int, ...]  # channels
    unet: tuple[int, ...]
    pictures: int  # that the autoencoder sees
    latents: int  # pictures that the U-Net sees, kept as latents
    scene: Callable[[int], grammar.Scene]  # what the picture with a seed shows
    crops: Recipe  # the autoencoder, first on crops of half the side
    whole: Recipe  # then on whole pictures
    text: Recipe
    denoiser: Recipe
    every: int  # steps between two looks at the U-Net


PRESETS = {
    "embedded": Preset(  # ten minutes on an H200; a day and more on two cores
        side=128,
        autoencoder=(16, 32, 64, 64),
        unet=(48, 96, 160),
        pictures=20_000,
        latents=120_000,
        scene=scene,
        crops=Recipe(steps=3000, batch=32, learning_rate=1.5e-3),
        whole=Recipe(steps=4000, batch=16, learning_rate=1e-3, decay=1.0, warmup=20),
        text=Recipe(steps=600, batch=128, learning_rate=1e-3, warmup=50),
        denoiser=Recipe(steps=3_916, batch=768, learning_rate=1e-3, ema=0.9993, warmup=500, decay=0.6),
        every=979,
    ),
    "minutes": Preset(
        side=64,
        autoencoder=(16, 32, 48),
        unet=(32, 64, 96),
        pictures=1_500,
        latents=6_000,
        scene=large_scene,
        crops=Recipe(steps=300, batch=8, learning_rate=1.5e-3, warmup=20),
        whole=Recipe(steps=200, batch=8, learning_rate=1e-3, decay=1.0, warmup=20),
        text=Recipe(steps=150, batch=64, learning_rate=1e-3, warmup=20),
        denoiser=Recipe(steps=2_400, batch=16, learning_rate=1e-3, warmup=100, decay=0.5),
        every=300,
    ),
}


def pixels(seeds: range, preset: Preset = PRESETS["embedded"]) -> Tensor:
    """Drawings as (n, 3, side, side) uint8."""
    return drawings(seeds, preset)[0]


def drawings(seeds: range, preset: Preset) -> tuple[Tensor, Tensor]:
    """Drawings (n, 3, side, side) uint8, and how far each latent pixel lies on the first and on the second thing,
    (n, 2, 16, 16) of 0..255."""
    pictures, masks = [], torch.zeros(len(seeds), 2, drawing.SIZE, drawing.SIZE)
    for i, seed in enumerate(seeds):
        drawn = drawing.draw_scene(preset.scene(seed), seed)
        pictures.append(np.asarray(drawn.image.reduce(drawing.SIZE // preset.side)))
        masks[i, : len(drawn.masks)] = torch.from_numpy(drawn.masks)
    coverage = (F.avg_pool2d(masks, drawing.SIZE // anatomy.LATENT_SIDE) * 255).round().byte()
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), coverage


def in_blocks(make: Callable[[range], Any], seeds: range, accelerator: Accelerator, size: int = 500) -> Iterable[Any]:
    """`make` of so many seeds after so many, in as many processes as there are cores where a GPU would wait for it."""
    blocks = [seeds[start : start + size] for start in range(0, len(seeds), size)]
    workers = os.cpu_count() or 1 if accelerator.device.type == "cuda" else 0
    return DataLoader(blocks, batch_size=None, collate_fn=make, num_workers=workers)  # type: ignore[arg-type]


def as_input(picture: Tensor) -> Tensor:
    return picture.float() / 127.5 - 1  # in [-1, 1]


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures in [-1, 1], each rounded to 8 bits as a file would be."""
    a, b = (((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1 for x in (a, b))
    return sum(measure.psnr(a, b)) / len(a)


# ---------------------------------------------------------------------------------------------------------------------
# Stage 1: the autoencoder


def train_autoencoder(out: Path, accelerator: Accelerator, preset: Preset) -> AutoencoderKL:
    folder = out / "weights" / "vae"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder).to(accelerator.device)
    vae = anatomy.autoencoder(preset.autoencoder).to(accelerator.device)
    drawn = in_blocks(partial(pixels, preset=preset), range(preset.pictures), accelerator)
    pictures = torch.cat(list(drawn)).to(accelerator.device)
    unseen = as_input(pixels(range(VALIDATION, VALIDATION + 64), preset)).to(accelerator.device)

    def loss_of(step: int, batch: int, side: int) -> Tensor:
        x = crops(pictures, step, batch, side)  # (B, 3, side, side)
        posterior = vae.encode(x).latent_dist
        z = posterior.sample()  # (B, 4, side / 8, side / 8)
        z = z + SHAKEN * z.detach().std() * torch.randn_like(z)
        return reconstruction_loss(vae.decode(z).sample, x) + prior_loss(posterior)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        restored = vae(unseen).sample
        return {"psnr": psnr(restored, unseen), "sharpness": discriminator.sharpness(restored.clamp(-1, 1), unseen)}

    for name, recipe, side in (
        ("autoencoder", preset.crops, preset.side // 2),
        ("autoencoder-whole", preset.whole, preset.side),
    ):
        fit(name, vae, lambda step: loss_of(step, recipe.batch, side), recipe, out, accelerator, validate, every=200)  # noqa: B023
    with torch.no_grad():
        posteriors = [vae.encode(as_input(part)).latent_dist for part in torch.split(pictures[:1024], 32)]
    means = torch.cat([p.mean for p in posteriors])
    variance = torch.cat([p.var for p in posteriors]).mean((0, 2, 3)) + means.var((0, 2, 3))
    anatomy.standardise_latents(vae, means.mean((0, 2, 3)), variance.sqrt())
    accelerator.print("autoencoder: standardised,", validate())
    vae.save_pretrained(folder)
    return vae


def sharpen_decoder(
    vae: AutoencoderKL,
    pictures: Tensor,
    recipe: Recipe,
    out: Path,
    accelerator: Accelerator,
    validate: Callable[[], dict[str, float]],
    share: float = ADVERSARIAL,
) -> None:
    """Train the decoder on, in place, on whole `pictures` (n, 3, side, side) uint8 whose latents stay as they are.

    The discriminator learns alone for the first third of the steps. After that, at the decoder's last layer, it pulls
    with `share` of the strength of the absolute error; 0 is without it.
    """
    pupil = nn.ModuleDict({"decoder": vae.decoder, "entrance": vae.post_quant_conv})
    critic = discriminator.Discriminator().to(accelerator.device)
    if share:
        pupil["critic"] = critic

    def loss_of(step: int) -> Tensor:
        x = crops(pictures, step, recipe.batch, pictures.shape[-1]).to(accelerator.device)  # (B, 3, side, side)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mean
        if share and step < recipe.steps // 3:
            with torch.no_grad():
                restored = vae.decode(z).sample
            return discriminator.telling_loss(critic, x, restored)
        restored = vae.decode(z).sample
        error: Tensor = (restored - x).abs().mean()
        if not share:
            return error
        fooling = discriminator.fooling_loss(critic, x, restored)
        weight = share * discriminator.balance(error, fooling, vae.decoder.conv_out.weight).detach()
        return error + weight * fooling + discriminator.telling_loss(critic, x, restored)

    # The discriminator has to stay ahead: what it says while it knows no more than chance is noise.
    fit("decoder", pupil, loss_of, recipe, out, accelerator, validate, every=60, rates={"critic": 20.0})


def crops(pictures: Tensor, step: int, batch: int, side: int) -> Tensor:
    """Random squares (batch, 3, side, side) in [-1, 1] of pictures (n, 3, H, W) uint8, the same for the same step."""
    rng = np.random.default_rng((SEED, side, step))
    squares = []
    for i in rng.integers(len(pictures), size=batch):
        y, x = rng.integers(0, pictures.shape[-1] - side + 1, size=2)
        squares.append(pictures[i, :, y : y + side, x : x + side])
    return as_input(torch.stack(squares))


def reconstruction_loss(restored: Tensor, x: Tensor) -> Tensor:
    error = restored - x
    loss: Tensor = error.abs().mean() + 4 * error.square().mean()
    return loss


def prior_loss(posterior: Any) -> Tensor:
    """A light pull of the latents towards N(0, 1)."""
    loss: Tensor = 1e-5 * posterior.kl().mean() / posterior.mean[0, 0].numel()
    return loss


# ---------------------------------------------------------------------------------------------------------------------
# Stage 2: the text encoder


def train_text_encoder(out: Path, accelerator: Accelerator, preset: Preset) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Teach it to name the parts of a caption at its last token, before any picture is seen. Its captions know no
    held-out pair either. What its other tokens say it learns beside the U-Net."""
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
        logits, truth = guess(random.Random(SEED * step), preset.text.batch)
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

    fit("text", pupil, loss_of, preset.text, out, accelerator, validate, every=100)
    encoder.eval().save_pretrained(folder)
    return tokenizer, encoder


def mute_medium(scene: grammar.Scene) -> grammar.Scene:
    """The scene as captions have it: none says "medium"."""
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


def cached_latents(
    out: Path, accelerator: Accelerator, vae: AutoencoderKL, tokenizer: CLIPTokenizer, preset: Preset
) -> dict[str, Tensor]:
    """Of all training pictures: "mean" and "std" of the latents, (n, 4, 16, 16) float16, the things' "mask", and the
    "ids" and "nouns" of their captions."""
    folder = out / "latents"
    folder.mkdir(exist_ok=True)
    make = partial(_block, folder=folder, tokenizer=tokenizer, preset=preset)
    made = []
    for file, block in in_blocks(make, range(preset.latents), accelerator):
        if "pictures" in block:
            with torch.no_grad():
                posteriors = [
                    vae.encode(as_input(part.to(accelerator.device))).latent_dist
                    for part in torch.split(block.pop("pictures"), 250)
                ]
            for key in ("mean", "std"):
                block[key] = torch.cat([getattr(p, key) for p in posteriors]).half().cpu().contiguous()
            save_file(block, file)
        made.append(block)
    accelerator.print(f"latents of {preset.latents} pictures", flush=True)
    return {key: torch.cat([block[key] for block in made]).to(accelerator.device) for key in made[0]}


def _block(seeds: range, folder: Path, tokenizer: CLIPTokenizer, preset: Preset) -> tuple[Path, dict[str, Tensor]]:
    """What is known of some pictures, with the latents where an earlier call kept them; and the file to keep it in."""
    file = folder / f"{seeds.start:06d}.safetensors"
    if file.exists():
        return file, load_file(file)
    pictures, mask = drawings(seeds, preset)
    ids, nouns = worded(tokenizer, seeds, preset.scene)
    return file, {"pictures": pictures, "mask": mask, "ids": ids, "nouns": nouns}


def worded(tokenizer: CLIPTokenizer, seeds: range, scene: Callable[[int], grammar.Scene]) -> tuple[Tensor, Tensor]:
    """Captions of pictures, each in several wordings: token ids (n, WORDINGS, 32), and the places of the nouns of both
    things in them, (n, WORDINGS, 2), 0 where there is no second."""
    captions, kinds = [], []
    for seed in seeds:
        rng, shown = random.Random(SEED * (seed + 1)), scene(seed)
        for _ in range(WORDINGS):
            captions.append(grammar.caption_of(grammar.leave_out(shown, rng), rng))
            kinds.append([tokenizer.convert_tokens_to_ids(f"{thing.kind}</w>") for thing in shown.things] + [-1])
    ids = tokenize(tokenizer, captions)
    of_things = torch.tensor([two[:2] for two in kinds])  # (n * WORDINGS, 2)
    places = (ids[:, None] == of_things[..., None]).int().argmax(-1)  # of none the first, which begins every caption
    return ids.view(-1, WORDINGS, ids.shape[1]), places.view(-1, WORDINGS, 2)


class WatchedAttention:
    """Attention written out, to train where words look as well: `seen` gathers the head mean of the probabilities of
    cross-attention at the latents' own resolution, (B, h * w, L). In bfloat16 on a CPU it is also the faster way."""

    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, tokens, D / heads)
            for x in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        )
        if encoder_hidden_states is None and q.is_cuda:  # nobody watches, and a GPU is faster so
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            probabilities = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
            if encoder_hidden_states is not None and hidden_states.shape[1] == anatomy.LATENT_SIDE**2:
                self.seen.append(probabilities.float().mean(1))
            mixed = probabilities.to(v.dtype) @ v
        attended: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(-2))
        return attended


def word_loss(seen: list[Tensor], nouns: Tensor, masks: Tensor) -> Tensor:
    """How far the attention to each noun is from the place of its thing: cross-entropy of every layer's head mean with
    the thing's mask (after TokenCompose, Wang et al. 2023, arXiv:2312.03626).

    Args:
        nouns: (B, 2), the place of each thing's noun among the tokens; 0 where it is not said.
        masks: (B, 2, 16, 16) of 0..255.
    """
    attention = torch.stack(seen)  # (layers, B, h * w, L)
    looked = attention.gather(3, nouns[None, :, None].expand(*attention.shape[:3], -1))  # (layers, B, h * w, 2)
    truth = (masks.flatten(2).transpose(1, 2) / 255).expand_as(looked)
    each = F.binary_cross_entropy(looked.clamp(1e-4, 1 - 1e-4), truth, reduction="none").mean((0, 2))  # (B, 2)
    said = nouns > 0
    loss: Tensor = (each * said).sum() / said.sum().clamp(min=1)
    return loss


def train_unet(
    out: Path,
    accelerator: Accelerator,
    preset: Preset,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    show: Callable[[Image.Image], object] | None,
) -> UNet2DConditionModel:
    """The U-Net, and the text encoder on from where it is, in place."""
    folder = out / "weights" / "unet"
    unet = anatomy.unet(preset.unet).to(accelerator.device)
    schedule = anatomy.scheduler()
    data = cached_latents(out, accelerator, vae, tokenizer, preset)
    nothing = tokenize(tokenizer, [""]).to(accelerator.device)
    in_bfloat16 = _multiplies_bfloat16()
    seen: list[Tensor] = []
    unet.set_attn_processor(WatchedAttention(seen))

    def denoise(x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        prediction: Tensor = unet(x, t, encoder(ids).last_hidden_state).sample
        return prediction

    compiled = torch.compile(denoise) if accelerator.device.type == "cuda" else denoise

    def loss_at(
        predict: Callable[[Tensor, Tensor, Tensor], Tensor],
        x0: Tensor,
        t: Tensor,
        ids: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        x = schedule.add_noise(x0, noise, t)  # (B, 4, 16, 16)
        target = schedule.get_velocity(x0, noise, t)
        seen.clear()
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=in_bfloat16):
            prediction = predict(x, t, ids)
        return F.mse_loss(prediction.float(), target)

    def loss_of(step: int) -> Tensor:
        batch, place = preset.denoiser.batch, accelerator.device
        generator = torch.Generator(place).manual_seed(SEED + step)

        def drawn() -> Tensor:
            return torch.rand(batch, generator=generator, device=place)

        chosen, wording = (drawn() * preset.latents).long(), (drawn() * WORDINGS).long()
        kept = drawn()[:, None] >= CAPTION_DROPOUT  # (B, 1)
        words, things = torch.where(kept, data["ids"][chosen, wording], nothing), data["nouns"][chosen, wording] * kept
        mean, std = (data[key][chosen].float() for key in ("mean", "std"))
        x0 = mean + std * torch.randn(mean.shape, generator=generator, device=place)
        # One draw from each of B equal parts, evener than B free ones; the power leans towards the middle of the
        # schedule, where shapes are decided: two thirds of the draws fall into its middle half.
        strata = (torch.arange(batch, device=place) + drawn()) / batch * 2 - 1
        share = 0.5 + 0.5 * strata.sign() * strata.abs() ** 1.6  # in (0, 1)
        t = (share * schedule.config.num_train_timesteps).long().clamp(max=schedule.config.num_train_timesteps - 1)
        return loss_at(compiled, x0, t, words, generator) + WORD_WEIGHT * word_loss(seen, things, data["mask"][chosen])

    unseen = range(VALIDATION, VALIDATION + 64)
    with torch.no_grad():
        parts = torch.split(pixels(unseen, preset), 32)
        x0_unseen = torch.cat([vae.encode(as_input(part).to(accelerator.device)).latent_dist.mean for part in parts])
    captions = [grammar.caption_of(preset.scene(seed), random.Random(seed)) for seed in unseen]

    @torch.no_grad()
    def validate() -> dict[str, float]:
        """Long before pictures do, these show whether the words count: a wrong prompt should cost more."""
        row = {}
        for name, said in (
            ("right", captions),
            ("empty", [""] * len(captions)),
            ("wrong", captions[1:] + captions[:1]),
        ):
            t = torch.full((len(captions),), 800, device=accelerator.device)
            words = tokenize(tokenizer, said).to(accelerator.device)
            generator = torch.Generator(accelerator.device).manual_seed(0)
            row[f"{name} at 800"] = float(loss_at(denoise, x0_unseen, t, words, generator))
        pictures = sheet(anatomy.pipeline(vae, encoder, tokenizer, unet), preset.side)
        seen.clear()
        save(out / "model", vae, encoder, tokenizer, unet)
        page = progress(out / "unet.csv", row, pictures)
        page.save(out / "unet.png")
        if show is not None:
            show(page)
        return row

    pupil = nn.ModuleDict({"unet": unet, "encoder": encoder})
    # The encoder can already read; it goes on more slowly.
    fit("unet", pupil, loss_of, preset.denoiser, out, accelerator, validate, preset.every, rates={"encoder": 0.3})
    unet.set_attn_processor(AttnProcessor2_0())  # diffusers' own again
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


def sheet(pipeline: StableDiffusionPipeline, side: int) -> Image.Image:
    """Two rows of pictures for a look at how far it is; the last two captions are held-out pairs."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    pictures = pipeline(
        list(SHEET), num_inference_steps=20, guidance_scale=5.0, height=side, width=side, generator=generator
    ).images
    page = Image.new("RGB", (6 * (side + 4), 2 * (side + 4)), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture, (i % 6 * (side + 4) + 2, i // 6 * (side + 4) + 2))
    return page


def progress(log: Path, row: dict[str, float], pictures: Image.Image, height: int = 120) -> Image.Image:
    """One page: above, the losses so far on unseen pictures at timestep 800, with the right caption (green), with none
    (gray) and with a wrong one (red), from 0 up to 1.2; below, the pictures."""
    rows: list[dict[str, float]] = []
    if log.exists():
        with log.open(newline="") as file:
            rows = [{key: float(value) for key, value in line.items()} for line in csv.DictReader(file)]
    page = Image.new("RGB", (pictures.width, pictures.height + height), "white")
    pen = ImageDraw.Draw(page)
    curves = [*rows, row]
    for key, colour in (("right at 800", "green"), ("empty at 800", "gray"), ("wrong at 800", "red")):
        points = [
            (8 + i * (page.width - 16) / max(len(curves) - 1, 1), (height - 8) * (1 - min(one[key] / 1.2, 1)) + 4)
            for i, one in enumerate(curves)
        ]
        pen.line(points, fill=colour, width=2)
        pen.text((points[-1][0] - 60, points[-1][1] - 12), f"{row[key]:.3f}", fill=colour)
    page.paste(pictures, (0, height))
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


def train(out: Path, preset: str | Preset = "embedded", show: Callable[[Image.Image], object] | None = None) -> Path:
    """Train every part, or go on where an earlier call was interrupted; returns the folder of the finished model.

    Args:
        out: folder for weights, logs and checkpoints.
        preset: "embedded" for the embedded model, "minutes" for a smaller one of 64x64 pictures, each of one
            large thing in the centre; or a `Preset` of your own.
        show: called with a page of losses and pictures whenever the U-Net was looked at, in a notebook `display`.
    """
    chosen = preset if isinstance(preset, Preset) else PRESETS[pick("preset", preset, PRESETS)]
    out.mkdir(parents=True, exist_ok=True)
    set_seed(SEED)
    accelerator = Accelerator()
    vae = train_autoencoder(out, accelerator, chosen)
    tokenizer, encoder = train_text_encoder(out, accelerator, chosen)
    unet = train_unet(out, accelerator, chosen, vae, tokenizer, encoder, show)
    save(out / "model", vae, encoder, tokenizer, unet)
    accelerator.print(f"the finished model, in half precision, lies in {out / 'model'}")
    return out / "model"


def _multiplies_bfloat16() -> bool:
    """Whether it is worth it: where the hardware does not, bfloat16 is emulated and slower."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sdkit.tiny.train", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder for weights, logs and checkpoints")
    parser.add_argument(
        "--preset",
        default="embedded",
        choices=PRESETS,
        help="embedded: the model that comes with sdkit, for a GPU; minutes: one of 64x64 pictures, small to watch",
    )
    options = parser.parse_args()
    train(options.out, options.preset)


if __name__ == "__main__":
    main()
