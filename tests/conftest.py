"""Real components, tiny and random, of the very classes that checkpoints hold; and the embedded model."""

import os
import shutil
from dataclasses import dataclass

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may reach for the network

import hypothesis
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from transformers import CLIPTextConfig, CLIPTextModel

import sdkit
from sdkit import Event, Stage
from sdkit.schedulers import noise_schedule, plain
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
    trace(Event(Stage.PIXELS, image))
    trace(Event(Stage.POSTERIOR, posterior))
    trace(Event(Stage.NOISE, noise))
    for step, t in enumerate([0, 300, 600, 999]):
        alpha, sigma = float(schedule.alphas[t]), float(schedule.sigmas[t])
        x = alpha * x0 + sigma * noise
        trace(Event(Stage.LATENT, x, step, t))
        trace(Event(Stage.IMAGE, tiny.decode(x), step, t))
        told.append({"t": t, "alpha": alpha, "sigma": sigma, "snr": (alpha / sigma) ** 2})
    config = {"class": type(tiny.scheduler).__name__, **plain(tiny.scheduler.config)}
    trace.settings = {"process": "forward", "levels": told, "scheduler": config}
    return trace


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
