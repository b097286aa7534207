"""Real components, tiny and random, of the very classes that checkpoints hold; and the embedded model."""

import os
import shutil
import socket
from dataclasses import dataclass

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may reach for the network

import hypothesis
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import sdkit
from sdkit import Event, Stage
from sdkit.live.studio import Studio
from sdkit.model.schedulers import noise_schedule, plain
from sdkit.noise import NoiseLevel
from sdkit.tiny import anatomy

# No deadline: how long an example takes says how busy the machine is. The same examples in every run.
hypothesis.settings.register_profile("sdkit", deadline=None, derandomize=True)
hypothesis.settings.load_profile("sdkit")


@pytest.fixture(scope="session", autouse=True)
def kdpm2_is_made_quickly():
    """Each KDPM2 scheduler of diffusers works out the same thousand steps in Python when it is made, a fifth of a
    second of it: what `_sigma_to_t` has given once, it gives again."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler):
            known = {}

            def remembered(self, sigma, log_sigmas, slow=kind._sigma_to_t, known=known):
                question = (type(sigma), *(np.asarray(one).tobytes() for one in (sigma, log_sigmas)))
                if question not in known:
                    known[question] = slow(self, sigma, log_sigmas)
                return known[question]

            patch.setattr(kind, "_sigma_to_t", remembered)
        yield


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


SCHEDULERS = [  # of which the fast suite leaves out those that differ from another one in their spacing alone
    pytest.param(name, marks=pytest.mark.slow) if name.endswith("_karras") else name for name in sdkit.SCHEDULERS
]
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
    del tokenizer.init_kwargs["vocabulary"]  # as a checkpoint has none
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
    for one in (tokenizer, other):
        del one.init_kwargs["vocabulary"]
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


@dataclass(frozen=True)
class Heat:
    """What `AttentionMaps` offers, of maps that are given: which makes pages and figures testable to the number."""

    words: list
    planes: dict  # (H, W) in [0, 1] by (word, step)

    @property
    def steps(self):
        return sorted({step for _, step in self.planes})

    def heat(self, word, *, step=None, picture=0):  # noqa: ARG002 - as the interface has it
        if step is None:
            return torch.stack([self.planes[word, one] for one in self.steps]).mean(dim=0)
        if (word, step) not in self.planes:
            raise ValueError(f"there is no word {word!r}")
        return self.planes[word, step]


@pytest.fixture(scope="session")
def seen(tiny):
    """A short run of the embedded model, recorded."""
    trace = sdkit.Trace()
    sdkit.text_to_image("a red star on a blue background", model=tiny, seed=7, num_inference_steps=6, hooks=[trace])
    return trace


@pytest.fixture(scope="session")
def heat(seen):
    """Heat that differs for each word and step: a bright row that moves on by the word, dimmer with the step."""
    words = ["red", "star", "blue"]
    planes = {}
    for number, word in enumerate(words):
        for step in seen.steps:
            planes[word, step] = torch.zeros(128, 128)
            planes[word, step][8 * number : 8 * number + 8] = 1 - step / 10
    return Heat(words, planes)


@pytest.fixture(scope="session")
def walk(tiny, seen):
    """A forward walk, as `diffuse` records it."""
    image = seen[Stage.IMAGE][0].value
    schedule = noise_schedule(tiny.scheduler)
    posterior = tiny.encode(image)
    x0 = posterior.chunk(2, dim=1)[0] * tiny.vae.config.scaling_factor
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    trace, told = sdkit.Trace(), []
    trace.record(Event(Stage.PIXELS, image))
    trace.record(Event(Stage.POSTERIOR, posterior))
    trace.record(Event(Stage.NOISE, noise))
    for step, t in enumerate([0, 300, 600, 999]):
        alpha, sigma = float(schedule.alphas[t]), float(schedule.sigmas[t])
        x = alpha * x0 + sigma * noise
        trace.record(Event(Stage.LATENT, x, step, t))
        trace.record(Event(Stage.IMAGE, tiny.decode(x), step, t))
        told.append({"t": t, "alpha": alpha, "sigma": sigma, "snr": (alpha / sigma) ** 2})
        trace.levels[step] = NoiseLevel(t, alpha, sigma)
    trace.settings = {"process": "forward", "levels": told, "scheduler": plain(tiny.scheduler)}
    return trace


MAKERS = {
    "sd1": random_pipeline,
    "sd2": lambda folder: random_pipeline(folder, "v_prediction", **SD2),
    "sdxl": random_xl_pipeline,
}
# The fast suite leaves out Stable Diffusion 2, which is 1 with another text encoder and another kind of prediction.
EACH_FAMILY = [pytest.param(name, marks=pytest.mark.slow) if name == "sd2" else name for name in MAKERS]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """A diffusers pipeline of random components of each family."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def models(pipelines):
    """The same as models of sdkit."""
    return {name: sdkit.load(pipeline) for name, pipeline in pipelines.items()}


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium without a window, which notes what a page says and asks for."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("needs chromium and chromedriver, which are not installed here")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def studio():
    """What the live page shares among its visitors."""
    return Studio()


@pytest.fixture(scope="session")
def address():
    """The live page, served on a port of its own."""
    pytest.importorskip("gradio", reason="the live page needs the extra 'app'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return sdkit.app(port=port)
