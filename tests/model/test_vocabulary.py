"""The words that the embedded model knows, and what is said of others."""

import warnings
from random import Random

import pytest

import sdkit
from sdkit.tiny import drawing, grammar
from sdkit.trace.trace import Trace


def test_the_vocabulary_holds_every_word_that_captions_are_made_of(tiny):
    chance = Random(0)
    captions = [grammar.caption_of(grammar.random_scene(chance, things=1 + i % 2), chance) for i in range(500)]
    assert tiny.unknown_words(*captions, *grammar.SYNONYMS, "there is one star at the left side") == []
    assert set(drawing.PAINTS) | set(grammar.KINDS) | set(grammar.BACKGROUNDS) <= set(tiny.vocabulary)


def test_the_model_names_the_words_that_it_does_not_know(tiny):
    assert tiny.unknown_words("An astronaut riding a RED horse!", "별, a horse") == [
        "astronaut",
        "riding",
        "horse",
        "별",
    ]


def test_a_checkpoint_without_a_list_of_words_is_said_to_miss_none(sd1):
    assert sdkit.load(sd1).vocabulary == ()
    assert sdkit.load(sd1).unknown_words("an astronaut") == []


def test_a_run_says_once_which_words_are_unknown_the_nearest_and_all_that_there_are(tiny):
    with pytest.warns(UserWarning, match="does not know") as said:
        made = sdkit.text_to_image("a rde satr", model=tiny, seed=7, num_inference_steps=2, negative_prompt="fog")
    (sentence,) = [str(one.message) for one in said]
    assert sentence.startswith(
        "sdkit/tiny does not know 'rde' (did you mean 'red'?), 'satr' (did you mean 'star'?), 'fog', and draws what "
        "chance gives instead; all that it knows: circle square triangle star "
    )
    assert sentence.endswith("a checkpoint of Stable Diffusion knows more: give one as model")
    assert made.settings["unknown_words"] == ["rde", "satr", "fog"]
    assert "words it does not know rde, satr, fog" in made._repr_html_()


def test_a_prompt_that_says_nothing_is_said_to_and_known_words_are_not(tiny):
    with pytest.warns(UserWarning, match=r"^sdkit/tiny is asked for nothing, and draws what chance gives instead; all"):
        sdkit.text_to_image(" ", model=tiny, seed=7, num_inference_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = sdkit.text_to_image("a red star", model=tiny, seed=7, num_inference_steps=1)
        sdkit.image_to_image(made.image, "", model=tiny, seed=7, num_inference_steps=2, strength=0.5)
    assert "unknown_words" not in made.settings


@pytest.mark.filterwarnings("ignore:sdkit/tiny does not know")
def test_the_report_names_them_too(tiny, tmp_path):
    trace = Trace()
    sdkit.text_to_image("a red giraffe", model=tiny, seed=7, num_inference_steps=1, hooks=[trace])
    page = trace.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<dt>words it does not know</dt><dd>giraffe</dd>" in page
