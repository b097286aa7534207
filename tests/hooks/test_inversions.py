"""Inversions lead back to the picture that they were made of, under guidance too."""

import pytest
import torch
from conftest import random_pipeline
from diffusers import DDIMScheduler
from diffusers.pipelines.ledits_pp import pipeline_leditspp_stable_diffusion as official

import sdkit
from sdkit import Stage, hooks
from sdkit.tiny.drawing import draw

WORDS = "a red star on a blue background"


def test_the_noises_of_a_picture_lead_back_to_it_under_its_words_and_elsewhere_under_others(tiny):
    latents = sdkit.text_to_image(WORDS, seed=7, num_inference_steps=4).latents
    noises = []
    run = {"scheduler": "ddim", "num_inference_steps": 6, "guidance_scale": 3.0, "seed": 1}
    first = sdkit.text_to_image(WORDS, hooks=[hooks.edit_friendly(latents, noises, seed=1)], **run)
    assert len(noises) == 6
    again = sdkit.text_to_image(WORDS, hooks=[hooks.edit_friendly(latents, noises, seed=1)], **run)
    for result in (first, again):
        assert torch.allclose(result.latents, latents, rtol=1e-4, atol=1e-4)
    other = sdkit.text_to_image("a cat", hooks=[hooks.edit_friendly(latents, noises, seed=1)], **run)
    assert float((other.latents - latents).norm() / latents.norm()) > 0.1


@pytest.mark.slow
def test_moved_empty_words_bring_guidance_nearer_to_the_picture(tiny):
    picture = sdkit.text_to_image(WORDS, seed=7, num_inference_steps=6).image
    trace = sdkit.invert(picture, WORDS, num_inference_steps=6)
    run = {"latents": trace.latents, "scheduler": "ddim", "num_inference_steps": 6}
    without = sdkit.text_to_image(WORDS, guidance_scale=1.0, **run).latents
    plain = sdkit.text_to_image(WORDS, guidance_scale=4.0, **run).latents
    moved = sdkit.text_to_image(WORDS, guidance_scale=4.0, hooks=[hooks.null_text(trace, steps=4)], **run).latents
    assert float((moved - without).norm()) < 0.8 * float((plain - without).norm())


class Noising(DDIMScheduler):
    """Diffusers' pipeline asks DDIM for the noise of timesteps that are no whole numbers, which it refuses."""

    def add_noise(self, x, noise, timesteps):
        return super().add_noise(x, noise, timesteps.long())


class Ledits(official.LEditsPPPipelineStableDiffusion):
    """Diffusers' pipeline, which counts a concept's tokens by the `length` that a tokenizer gives: in transformers 5
    that of the window, padding included. Here they are those of its words again."""

    def encode_prompt(self, *arguments, editing_prompt=None, **options):
        edit, negative, _ = super().encode_prompt(*arguments, editing_prompt=editing_prompt, **options)
        prompts = [editing_prompt] if isinstance(editing_prompt, str) else editing_prompt or []
        return edit, negative, [len(self.tokenizer(one, add_special_tokens=False).input_ids) for one in prompts]


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Random components of SD 1.x with cross-attention at a quarter of the latents' side too."""
    crossed = {"down_block_types": ("CrossAttnDownBlock2D",) * 3, "up_block_types": ("CrossAttnUpBlock2D",) * 3}
    folder = tmp_path_factory.mktemp("tokenizer")
    return random_pipeline(folder, sample_size=16, block_out_channels=(16, 32, 32), **crossed)


@pytest.mark.slow
def test_ledits_is_that_of_diffusers_on_ddim(deep, monkeypatch):
    pipeline = deep
    model, picture, steps, shape = sdkit.load(pipeline), draw("a red star", seed=3), 5, (1, 4, 16, 16)
    concepts, run = ["a small cat", "a blue background"], {"scheduler": "ddim", "num_inference_steps": steps}
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator) for _ in range(steps)]  # as `edit_friendly` draws them
    monkeypatch.setattr(official, "randn_tensor", lambda **_: drawn.pop())  # it begins with the least noisy
    parts = {name: part for name, part in pipeline.components.items() if name != "image_encoder"}
    parts["scheduler"] = Noising.from_config(pipeline.scheduler.config)
    pipe = Ledits(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    before, theirs = model.unet.attn_processors, []
    try:
        pipe.invert(picture, num_inversion_steps=steps, skip=0.0)  # of a source prompt it swaps the halves
        pipe(
            editing_prompt=concepts,
            edit_guidance_scale=4.0,
            edit_threshold=0.6,
            edit_warmup_steps=1,
            output_type="latent",
            callback_on_step_end=lambda _pipe, _step, _t, given: theirs.append(given["latents"]) or given,
        )
    finally:
        model.unet.set_attn_processor(before)

    ours, noises = [], []
    back = hooks.edit_friendly(sdkit.encode(picture, model=model).mean, noises, seed=1)
    look = sdkit.on(Stage.LATENT, steps=range(1, steps))(lambda event: ours.append(event.value))
    sdkit.text_to_image("", model=model, seed=1, guidance_scale=1.5, hooks=[back], **run)
    edit = hooks.ledits(*concepts, scale=4.0, threshold=0.6, warmup=1)
    changed = sdkit.text_to_image("", model=model, seed=1, guidance_scale=1.5, hooks=[back, edit, look], **run)
    for mine, other in zip(ours, theirs[:-1], strict=True):  # the last step of diffusers loses the rest of the picture
        assert (mine - other).norm() / other.norm() < 1e-4
    plain = sdkit.text_to_image("", model=model, seed=1, guidance_scale=1.5, hooks=[back], **run)
    assert (changed.latents - plain.latents).norm() / plain.latents.norm() > 1e-2


def test_ledits_of_no_strength_changes_no_bit_and_one_picture_of_many_is_as_alone(deep):
    model, noises = sdkit.load(deep), []
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    back = hooks.edit_friendly(latents, noises, seed=1)

    def made(*chosen, words=("", "")):
        run = {"scheduler": "ddim", "num_inference_steps": 3, "guidance_scale": 3.0, "seed": 1}
        return sdkit.text_to_image(list(words), model=model, hooks=chosen, **run).latents

    made(back)
    plain = made(back)
    assert torch.equal(made(back, hooks.ledits("a fish", scale=0.0)), plain)
    edit = hooks.ledits("a fish", "a green background", threshold=0.5)
    both = made(back, edit)
    alone = made(hooks.edit_friendly(latents[:1], [one[:1] for one in noises], seed=1), edit, words=[""])
    assert (both[:1] - alone).norm() / alone.norm() < 1e-4
    assert (both - plain).norm() / plain.norm() > 0.01
