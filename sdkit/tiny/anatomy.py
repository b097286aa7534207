"""The organs of the embedded model before it has learned anything: Stable Diffusion's own classes, only smaller.

`AutoencoderKL` (128x128x3 to 16x16x4), `CLIPTokenizer` with `CLIPTextModel`, `UNet2DConditionModel` with
cross-attention, and the 1000-step scaled-linear noise schedule of Stable Diffusion.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdkit.tiny.grammar import BACKGROUNDS, COLOURS, KINDS

MAX_LENGTH = 32  # tokens, begin and end included
TEXT_WIDTH = 128
LATENT_SIDE = 16  # height and width of the latents, whatever the size of the pictures

_CARRIED = 12  # channels that carry the picture at the start: [v, -v, c, -c] for each of R, G, B
_CONSTANT = 3.0  # c: large beside v, so that group normalisation keeps the scale of v


def autoencoder(channels: tuple[int, ...] = (16, 32, 64, 64)) -> AutoencoderKL:
    """An autoencoder that already is a coarse one: it averages blocks of pixels, 8x8 with four widths, and smooths them
    back."""
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=LATENT_SIDE * 2 ** (len(channels) - 1),
        scaling_factor=1.0,
    )
    start_as_pass_through(vae)
    return vae


@torch.no_grad()
def start_as_pass_through(vae: AutoencoderKL) -> None:
    """Carry the three colours straight through: from a random start they are what takes longest to learn.

    Each colour v travels as the channels v and -v, because silu(v) - silu(-v) = v, beside two constants that hold the
    statistics of group normalisation still. Residual branches start at zero, resampling averages and smooths.
    """
    for module in vae.modules():
        if module.__class__.__name__ == "ResnetBlock2D":
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, torch.ones(1, 1))
        elif module.__class__.__name__ == "Attention":
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)
        elif module.__class__.__name__ == "Downsample2D":
            average = torch.zeros(3, 3)
            average[:2, :2] = 0.25
            _carry(module.conv, average)
        elif module.__class__.__name__ == "Upsample2D":
            hat = torch.tensor([0.25, 0.5, 0.25])
            _carry(module.conv, hat[:, None] * hat[None, :])
    _enter(vae.encoder.conv_in)
    _leave(vae.encoder.conv_out, _group_rms(vae.encoder.conv_norm_out))
    vae.encoder.conv_out.weight[4:].zero_()  # log-variance: start nearly certain
    vae.encoder.conv_out.bias[4:] = -6.0
    _enter(vae.decoder.conv_in)
    _leave(vae.decoder.conv_out, _group_rms(vae.decoder.conv_norm_out))
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.weight.shape[0])[..., None, None])
        conv.bias.zero_()


def _carry(conv: nn.Conv2d, kernel: torch.Tensor) -> None:
    assert conv.bias is not None
    conv.weight[:_CARRIED].zero_()
    conv.bias[:_CARRIED].zero_()
    for channel in range(_CARRIED):
        conv.weight[channel, channel] = kernel


def _enter(conv: nn.Conv2d) -> None:
    assert conv.bias is not None
    conv.weight[:_CARRIED].zero_()
    conv.bias[:_CARRIED].zero_()
    for colour in range(3):
        conv.weight[4 * colour, colour, 1, 1] = 1
        conv.weight[4 * colour + 1, colour, 1, 1] = -1
        conv.bias[4 * colour + 2], conv.bias[4 * colour + 3] = _CONSTANT, -_CONSTANT


def _leave(conv: nn.Conv2d, scale: float) -> None:
    assert conv.bias is not None
    conv.weight[:3].zero_()
    conv.bias[:3].zero_()
    for colour in range(3):
        conv.weight[colour, 4 * colour, 1, 1] = scale
        conv.weight[colour, 4 * colour + 1, 1, 1] = -scale


def _group_rms(norm: nn.GroupNorm) -> float:
    """What the group of the carried channels is divided by, others taken as small."""
    width = norm.num_channels // norm.num_groups
    constants = min(width, _CARRIED) // 2
    return float((constants * _CONSTANT**2 / width) ** 0.5)


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Fold each channel's mean and standard deviation (4,) into the quant convolutions: latents become standard."""
    channels = mean.shape[0]
    vae.quant_conv.weight[:channels] /= std[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()  # the log-variance shrinks along
    vae.post_quant_conv.bias += (vae.post_quant_conv.weight[..., 0, 0] * mean).sum(1)
    vae.post_quant_conv.weight *= std[None, :, None, None]


def unet(channels: tuple[int, ...] = (48, 96, 160)) -> UNet2DConditionModel:
    """A U-Net on 16x16x4 latents. As in Stable Diffusion all blocks but the coarsest hear the words."""
    model = UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * (len(channels) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(channels) - 1),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # in this class: the number of heads
        norm_num_groups=8,
    )
    with torch.no_grad():
        nn.init.zeros_(model.conv_out.weight)
        nn.init.zeros_(model.conv_out.bias)
        for module in model.modules():
            if module.__class__.__name__ == "ResnetBlock2D":
                module.conv2.weight *= 0.1
    return model


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's format: one token for each word of the grammar, letters for any other word."""
    words = "a an the on in at to with of there is one picture drawing background side left right top bottom centre"
    words += " center middle small large little big above below over under gray grey "
    words += " ".join([*COLOURS, *BACKGROUNDS, *KINDS])
    known = dict.fromkeys([*KINDS, *COLOURS, *words.split()])  # as a reader wants them listed
    letters = list(_byte_alphabet())
    vocabulary = {piece: i for i, piece in enumerate(letters + [letter + "</w>" for letter in letters])}
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(words.split()):
        left, *rest = _pieces(word, merges)
        for right in rest:
            merges.append((left, right))
            left += right
            vocabulary[left] = len(vocabulary)
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tok = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH, vocabulary=list(known))
    tok.save_pretrained(folder)
    return tok


def _pieces(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """What byte-pair encoding makes of a word: the earliest of the merges first, until none applies."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    for left, right in merges:
        for i in range(len(pieces) - 1, 0, -1):
            if (pieces[i - 1], pieces[i]) == (left, right):
                pieces[i - 1 : i + 1] = [left + right]
    return pieces


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each of the 256 bytes, which CLIP's tokenizer writes words in."""
    from tokenizers.pre_tokenizers import ByteLevel

    return {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, predicting v (Salimans and Ho 2022, arXiv:2202.00512). Unlike there the last
    step ends without noise, which leaves backgrounds flatter."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def pipeline(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler(), None, None, requires_safety_checker=False
    )
