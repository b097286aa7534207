"""Inversions lead back to the picture that they were made of, under guidance too."""

import torch

import sdkit
from sdkit import hooks

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


def test_moved_empty_words_bring_guidance_nearer_to_the_picture(tiny):
    picture = sdkit.text_to_image(WORDS, seed=7, num_inference_steps=6).image
    trace = sdkit.invert(picture, WORDS, num_inference_steps=6)
    run = {"latents": trace.latents, "scheduler": "ddim", "num_inference_steps": 6}
    without = sdkit.text_to_image(WORDS, guidance_scale=1.0, **run).latents
    plain = sdkit.text_to_image(WORDS, guidance_scale=4.0, **run).latents
    moved = sdkit.text_to_image(WORDS, guidance_scale=4.0, hooks=[hooks.null_text(trace, steps=4)], **run).latents
    assert float((moved - without).norm()) < 0.8 * float((plain - without).norm())
