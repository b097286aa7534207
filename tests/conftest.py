"""Real components, tiny and random, of the very classes that checkpoints hold; and the embedded model."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may reach for the network

import hypothesis
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

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


def random_pipeline(folder, prediction_type="epsilon"):
    torch.manual_seed(0)
    tokenizer = anatomy.tokenizer(folder)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=anatomy.MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    ).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
