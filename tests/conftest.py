"""Real components, tiny and random, of the very classes that checkpoints hold; and the embedded model."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may reach for the network

import hypothesis
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import sdkit
from sdkit.tiny import anatomy

# No deadline: how long an example takes says how busy the machine is. The same examples in every run.
hypothesis.settings.register_profile("sdkit", deadline=None, derandomize=True)
hypothesis.settings.load_profile("sdkit")


@pytest.fixture(scope="session")
def tiny():
    """The embedded model."""
    return sdkit.load(device="cpu")


@pytest.fixture(scope="session")
def sd1(tmp_path_factory):
    """A diffusers pipeline of random SD 1.x components with SD 1.5's own noise schedule."""
    return random_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory):
    """A diffusers pipeline of random SDXL components."""
    return random_xl_pipeline(tmp_path_factory.mktemp("tokenizer"))


NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}  # of Stable Diffusion


def random_text_encoder(tokenizer, width=32, kind=CLIPTextModel, layers=3):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=anatomy.MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return kind(config).eval()


def random_unet(**options):
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            **options,
        }
    ).eval()


def random_vae(**options):
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        **options,
    ).eval()


def random_pipeline(folder, prediction_type="epsilon", **unet):
    """Random components of Stable Diffusion 1.x, or of 2.x with the U-Net's options and v prediction."""
    torch.manual_seed(0)
    tokenizer = anatomy.tokenizer(folder)
    text_encoder = random_text_encoder(tokenizer)
    unet = random_unet(**unet)
    vae = random_vae(scaling_factor=0.18215)
    scheduler = DDIMScheduler(**NOISE, prediction_type=prediction_type)
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


SD2 = {"attention_head_dim": (4, 8), "use_linear_projection": True, "upcast_attention": True}


def random_xl_pipeline(folder, refiner=False, **unet):
    """Random components of SDXL, or of its refiner: one text encoder, and a score among what the U-Net is told."""
    torch.manual_seed(0)
    tokenizer = anatomy.tokenizer(folder)
    other = anatomy.tokenizer(folder)
    other.pad_token = "!"  # as SDXL's second tokenizer fills up its window
    unet = random_unet(
        **{
            "cross_attention_dim": 24 if refiner else 56,
            "transformer_layers_per_block": (1, 2),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 8 * (5 if refiner else 6),
            **unet,
        }
    )
    kind = StableDiffusionXLImg2ImgPipeline if refiner else StableDiffusionXLPipeline
    pipeline = kind(
        vae=random_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=None if refiner else random_text_encoder(tokenizer),
        tokenizer=None if refiner else tokenizer,
        text_encoder_2=random_text_encoder(other, 24, CLIPTextModelWithProjection),
        tokenizer_2=other,
        unet=unet,
        scheduler=EulerDiscreteScheduler.from_config(DDIMScheduler(**NOISE).config),
        force_zeros_for_empty_prompt=not refiner,
        **({"requires_aesthetics_score": True} if refiner else {}),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
