import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdkit.inputs.arguments import Settings
from sdkit.inputs.checks import pick
from sdkit.inputs.paths import picture_paths
from sdkit.inputs.seeds import SEED_LIMIT, seed_each


@given(st.integers(0, SEED_LIMIT - 1), st.integers(1, 4), st.integers(1, 3))
def test_one_seed_counts_up_over_the_pictures(seed, prompts, each):
    settings = Settings(["a star"] * prompts, num_images_per_prompt=each, seed=seed)
    seeds = seed_each(seed, settings.pictures)
    assert len(seeds) == prompts * each
    assert seeds[:3] == [(seed + i) % SEED_LIMIT for i in range(len(seeds))][:3]


def test_seed_seven_for_three_pictures_means_seven_eight_nine():
    assert seed_each(7, Settings("a star", num_images_per_prompt=3).pictures) == [7, 8, 9]


def test_a_list_of_seeds_must_have_one_for_each_picture():
    assert seed_each([5, 3], Settings(["a", "b"]).pictures) == [5, 3]
    with pytest.raises(ValueError, match="3 seeds were given for 2 pictures"):
        seed_each([1, 2, 3], Settings(["a", "b"]).pictures)


def test_numbers_of_numpy_become_plain_ones():
    settings = Settings("a", guidance_scale=np.float32(3), seed=np.arange(1), num_inference_steps=np.int64(5))
    assert (settings.guidance_scale, settings.seed, settings.num_inference_steps) == (3.0, [0], 5)
    assert json.loads(json.dumps(dataclasses.asdict(settings)))["seed"] == [0]


def test_one_negative_prompt_stands_for_all_prompts():
    assert Settings(["a", "b"], negative_prompt="c").negative_prompts == ["c", "c"]
    assert Settings(["a", "b"]).negative_prompts == ["", ""]
    assert Settings(["a", "b"], negative_prompt=["c", "d"]).negative_prompts == ["c", "d"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"prompt": 7}, TypeError, "prompt must be a string or a list of strings, but is 7"),
        ({"prompt": []}, ValueError, "prompt is an empty list"),
        ({"negative_prompt": ["a", "b"]}, ValueError, "2 negative prompts were given for 1 prompts"),
        ({"height": 100}, ValueError, "height 100 is not a multiple of 8; try 96"),
        ({"width": 0}, ValueError, "width must be at least 8, but is 0"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps must be at least 1"),
        ({"num_inference_steps": 2.5}, TypeError, "num_inference_steps must be a whole number, but is 2.5"),
        ({"num_images_per_prompt": True}, TypeError, "num_images_per_prompt must be a whole number, but is True"),
        ({"guidance_scale": -1}, ValueError, "guidance_scale must be a number from 0 up, but is -1"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale must be a number from 0 up, but is nan"),
        ({"guidance_scale": "7"}, TypeError, "guidance_scale must be a number, but is '7'"),
        ({"guidance_rescale": 1.5}, ValueError, "guidance_rescale must be between 0 and 1, but is 1.5"),
        ({"eta": 2}, ValueError, "eta must be between 0 and 1, but is 2"),
        ({"seed": -1}, ValueError, "seed must be at least 0, but is -1"),
        ({"seed": 2**63}, ValueError, r"seeds go from 0 to 2\*\*63 - 1"),
        ({"seed": 1.5}, TypeError, "seed must be a whole number"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(arguments, error, words):
    with pytest.raises(error, match=words):
        Settings(**{"prompt": "a star", **arguments})


def test_a_misspelt_name_gets_the_nearest_one_and_a_strange_name_all():
    assert pick("scheduler", "euler", ["euler", "ddim"]) == "euler"
    with pytest.raises(ValueError, match=r"unknown scheduler 'eulr'; did you mean 'euler'\?"):
        pick("scheduler", "eulr", ["euler", "ddim"])
    with pytest.raises(ValueError, match="unknown scheduler 'xyz'; expected one of euler, ddim"):
        pick("scheduler", "xyz", ["euler", "ddim"])


def test_several_pictures_are_numbered(tmp_path):
    assert picture_paths(tmp_path / "a.png", 1) == [tmp_path / "a.png"]
    assert picture_paths(tmp_path / "a.png", 2) == [tmp_path / "a-1.png", tmp_path / "a-2.png"]


def test_only_png_into_a_folder_that_exists(tmp_path):
    with pytest.raises(ValueError, match=r"'a.jpg' must end in .png"):
        picture_paths("a.jpg", 1)
    with pytest.raises(ValueError, match="is a folder; give the name of a PNG in it"):
        picture_paths(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        picture_paths(tmp_path / "no" / "a.png", 1)
    assert picture_paths("~/a.png", 1) == [Path.home() / "a.png"]
