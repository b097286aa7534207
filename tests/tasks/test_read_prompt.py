"""What becomes of words that are too many, are given as embeddings, or skip layers of the text encoder."""

import pytest
import torch

import sdkit
from sdkit import Stage

OPTIONS = {"seed": 1, "num_inference_steps": 2}
LONG = "a large red star on a blue background left of a small green tree, and a very large purple fish below, "
LONG += "a yellow house at the top, a white boat in the middle, two brown mushrooms on the right, and a cat"


def first_values(model, **arguments):
    values = {}
    for event in sdkit.stages(model=model, **OPTIONS, **arguments):
        values.setdefault(event.stage, event.value)
    return values


def test_skipping_no_layer_is_what_happens_without_clip_skip(sd1):
    plain = sdkit.text_to_image("a star", model=sd1, **OPTIONS)
    none_skipped = sdkit.text_to_image("a star", model=sd1, clip_skip=0, **OPTIONS)
    assert torch.equal(none_skipped.latents, plain.latents)
    assert not torch.equal(sdkit.text_to_image("a star", model=sd1, clip_skip=1, **OPTIONS).latents, plain.latents)


def test_more_layers_than_there_are_cannot_be_skipped(sd1):
    with pytest.raises(ValueError, match="clip_skip 4 leaves nothing of 3 layers; take fewer"):
        sdkit.text_to_image("a star", model=sd1, clip_skip=4, **OPTIONS)


def test_a_long_prompt_is_split_into_windows_at_ends_of_words_and_each_is_heard(sd1):
    values = first_values(sd1, prompt=LONG, long_prompt="split")
    negative, ids = values[Stage.TOKENS]
    window = sd1.tokenizer.model_max_length
    assert len(ids) == 2 * window
    windows = ids.split(window)
    spoken = [sd1.tokenizer.decode(part, skip_special_tokens=True).strip() for part in windows]
    assert " ".join(spoken).replace(" ", "") == LONG.replace(" ", "")
    assert all(part.split()[0] in LONG.replace(",", " ,").split() for part in spoken)
    for part, embeddings in zip(windows, values[Stage.TEXT][1].split(window), strict=True):
        with torch.no_grad():
            assert torch.allclose(embeddings, sd1.text_encoder(part[None])[0][0], atol=1e-5)
    assert torch.equal(negative, first_values(sd1, prompt="a star")[Stage.TOKENS][0].repeat(2))


def test_a_short_prompt_is_the_same_split_or_not(sd1):
    one, two = (
        sdkit.text_to_image("a star", model=sd1, long_prompt=how, **OPTIONS).latents for how in ("cut", "split")
    )
    assert torch.equal(one, two)


def test_embeddings_of_a_prompt_make_its_picture(sd1):
    values = first_values(sd1, prompt="a star", negative_prompt="a cat")
    negative, positive = values[Stage.TEXT].chunk(2)
    result = sdkit.text_to_image(prompt_embeds=positive, negative_prompt_embeds=negative, model=sd1, **OPTIONS)
    words = sdkit.text_to_image("a star", negative_prompt="a cat", model=sd1, **OPTIONS)
    assert torch.allclose(result.latents, words.latents, atol=1e-5)
    assert (result.settings["prompt"], result.settings["prompt_embeds"]) == (None, [1, 32, 32])


def test_embeddings_are_no_words_and_show_no_tokens(sd1):
    embeds = torch.zeros(1, 32, 32)
    assert first_values(sd1, prompt_embeds=embeds)[Stage.TOKENS].shape == (1, 32)
    assert Stage.TOKENS not in first_values(sd1, prompt_embeds=embeds, negative_prompt_embeds=embeds)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, TypeError, "neither prompt nor prompt_embeds was given"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 32, 32)}, ValueError, "both prompt and prompt_embeds"),
        ({"prompt_embeds": torch.zeros(32, 32)}, ValueError, r"a tensor \(P, L, D\), but is \(32, 32\)"),
        ({"prompt_embeds": torch.zeros(1, 32, 48)}, ValueError, r"P = 1 and D = 32, but is \(1, 32, 48\)"),
        ({"prompt": "a", "negative_prompt_embeds": torch.zeros(2, 32, 32)}, ValueError, "P = 1 and D = 32, but is"),
        (
            {"prompt_embeds": torch.zeros(1, 32, 32), "negative_prompt_embeds": torch.zeros(1, 64, 32)},
            ValueError,
            "make them equally long",
        ),
        ({"prompt": "a", "clip_skip": -1}, ValueError, "clip_skip must be at least 0, but is -1"),
        ({"prompt": "a", "long_prompt": "spilt"}, ValueError, "unknown long_prompt 'spilt'; did you mean 'split'"),
    ],
)
def test_what_text_cannot_be_is_said_before_the_first_event(sd1, arguments, error, words):
    with pytest.raises(error, match=words):
        sdkit.stages(model=sd1, **arguments)


def test_embeddings_that_no_window_fits_ask_for_negative_ones(sd1):
    with pytest.raises(ValueError, match="64 and 40 tokens long; give negative_prompt_embeds of equal length too"):
        sdkit.text_to_image(prompt_embeds=torch.zeros(1, 40, 32), model=sd1, **OPTIONS)


def test_weights_by_compel_are_heard(sd1):
    compel = pytest.importorskip("compel")
    weigh = compel.Compel(tokenizer=sd1.tokenizer, text_encoder=sd1.text_encoder)
    plain, heavy = (
        sdkit.text_to_image(prompt_embeds=weigh(prompt), model=sd1, **OPTIONS).latents
        for prompt in ("a red star", "a red++ star")
    )
    words = sdkit.text_to_image("a red star", model=sd1, **OPTIONS).latents
    assert torch.allclose(plain, words, atol=1e-4)
    assert (heavy - words).abs().max() > 1e-3
