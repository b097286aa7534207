import inspect
import json
import sys

import numpy as np
import pytest
import torch
from conftest import random_pipeline
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from PIL import Image

import sdkit
from sdkit import read_settings
from sdkit.tiny.drawing import draw


def pixels(picture):
    return np.asarray(picture)


def test_the_result_has_pictures_latents_seeds_and_settings(tiny):
    result = sdkit.text_to_image("a red star", seed=3, num_inference_steps=2)
    assert result.image is result.images[0]
    assert result.image.size == (128, 128)
    assert result.image.mode == "RGB"
    assert result.latents.shape == (1, 4, 16, 16)
    assert result.seeds == [3]
    assert result.settings["prompt"] == "a red star"
    assert result.settings["seed"] == [3]
    assert result.settings["guidance_scale"] == tiny.guidance_scale
    assert result.settings["scheduler"]["class"] == "DDIMScheduler"
    assert result.settings["model"] == "sdkit/tiny"


def test_the_embedded_model_takes_twenty_steps_unless_told_otherwise():
    steps = {event.step for event in sdkit.stages("a red star", seed=0)} - {None}
    assert steps == set(range(20))


def test_a_seed_means_the_same_noise_alone_and_in_a_batch(sd1):
    options = {"model": sd1, "num_inference_steps": 3}
    batch = next(e.value for e in sdkit.stages("a star", num_images_per_prompt=3, seed=7, **options) if e.step == 0)
    for i in range(3):
        alone = next(e.value for e in sdkit.stages("a star", seed=7 + i, **options) if e.step == 0)
        assert torch.equal(batch[i : i + 1], alone)
    assert sdkit.text_to_image("a star", num_images_per_prompt=3, seed=7, **options).seeds == [7, 8, 9]


def test_pictures_of_several_prompts_come_one_prompt_after_another(sd1):
    options = {"model": sd1, "num_inference_steps": 3}
    result = sdkit.text_to_image(["a star", "a cat"], num_images_per_prompt=2, seed=5, **options)
    assert result.seeds == [5, 6, 7, 8]
    for i, prompt in enumerate(["a star", "a star", "a cat", "a cat"]):
        alone = sdkit.text_to_image(prompt, seed=5 + i, **options)
        assert torch.allclose(result.latents[i : i + 1], alone.latents, atol=1e-4)


def test_without_a_seed_one_is_drawn_and_kept(sd1):
    options = {"model": sd1, "num_inference_steps": 2}
    one, two = sdkit.text_to_image("a star", **options), sdkit.text_to_image("a star", **options)
    assert one.seeds != two.seeds
    again = sdkit.text_to_image("a star", seed=one.seeds, **options)
    assert torch.equal(again.latents, one.latents)


def test_neither_the_global_generator_nor_the_model_is_touched(sd1):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sdkit.text_to_image("a star", model=sd1, scheduler="euler_a", num_inference_steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert sd1.scheduler.num_inference_steps is None


def test_generators_are_taken_instead_of_a_seed(sd1):
    options = {"model": sd1, "num_inference_steps": 2}
    result = sdkit.text_to_image("a star", generator=torch.Generator().manual_seed(4), **options)
    assert result.seeds is None
    assert torch.equal(result.latents, sdkit.text_to_image("a star", seed=4, **options).latents)


def test_a_png_carries_what_made_it(sd1, tmp_path):
    result = sdkit.text_to_image(
        "ein Stern, größer, 별", model=sd1, num_images_per_prompt=2, seed=1, num_inference_steps=2
    )
    first, second = result.save(tmp_path / "star.png")
    assert (first.name, second.name) == ("star-1.png", "star-2.png")
    assert np.array_equal(pixels(Image.open(second)), pixels(result.images[1]))
    assert read_settings(second) == json.loads(json.dumps({**result.settings, "index": 1}))
    assert read_settings(second)["prompt"] == "ein Stern, größer, 별"


def test_the_settings_alone_make_the_same_picture_again(sd1, tmp_path):
    result = sdkit.text_to_image("a star", model=sd1, negative_prompt="a cat", scheduler="dpmpp_2m_karras", seed=9)
    (path,) = result.save(tmp_path / "star.png")
    kept = read_settings(path)
    kind = getattr(__import__("diffusers"), kept["scheduler"].pop("class"))
    names = ("prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "seed")
    again = sdkit.text_to_image(
        **{name: kept[name] for name in names}, model=sd1, scheduler=kind.from_config(kept["scheduler"])
    )
    assert torch.equal(again.latents, result.latents)


def test_settings_are_plain_json_whatever_the_scheduler_was_made_from(sd1):
    betas = np.linspace(1e-4, 0.02, 1000)
    result = sdkit.text_to_image("a", model=sd1, scheduler=DDIMScheduler(trained_betas=betas), num_inference_steps=1)
    assert json.loads(json.dumps(result.settings, allow_nan=False))["scheduler"]["trained_betas"] == betas.tolist()


def test_a_short_name_means_its_algorithm_whatever_the_model_was_configured_for(tmp_path):
    pipeline = random_pipeline(tmp_path)
    options = {"model": pipeline, "seed": 1, "num_inference_steps": 4}
    plain = {
        name: sdkit.text_to_image("a", scheduler=name, **options).latents for name in ("euler", "dpmpp_2m", "pndm")
    }
    other = {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "skip_prk_steps": False}
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **other)
    for name, latents in plain.items():
        assert torch.equal(sdkit.text_to_image("a", scheduler=name, **options).latents, latents)


def test_a_scheduler_object_is_copied_and_left_alone(sd1):
    scheduler = EulerDiscreteScheduler.from_config(sd1.scheduler.config)
    options = {"model": sd1, "seed": 0, "num_inference_steps": 3}
    result = sdkit.text_to_image("a star", scheduler=scheduler, **options)
    assert torch.equal(result.latents, sdkit.text_to_image("a star", scheduler="euler", **options).latents)
    assert scheduler.step_index is None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"scheduler": "eulr"}, ValueError, "unknown scheduler 'eulr'; did you mean 'euler'"),
        ({"scheduler": 3}, TypeError, "scheduler must be a short name or a diffusers scheduler object, but is 3"),
        ({"latents": torch.zeros(1, 4, 9, 9)}, ValueError, r"shape \(1, 4, 9, 9\); expected \(1, 4, 8, 8\)"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "both seed and generator were given"),
        ({"generator": 7}, TypeError, "generator must be a torch.Generator or a list of them, but is 7"),
        ({"latents": np.zeros((1, 4, 8, 8))}, TypeError, "latents must be a tensor, but is a ndarray"),
        ({"seed": [1, 2]}, ValueError, "2 seeds were given for 1 pictures"),
        ({"scheduler": EulerDiscreteScheduler}, TypeError, "a short name or a diffusers scheduler object"),
        ({"scheduler": EDMEulerScheduler()}, ValueError, "EDMEulerScheduler has no noise schedule of Stable Diffusion"),
        ({"generator": [torch.Generator()] * 2}, ValueError, "2 generators were given for 1 pictures"),
        ({"height": 12}, ValueError, "height 12 is not a multiple of 8"),
        ({"strength": 0.5}, ValueError, "strength was given without image"),
        ({"image": draw("a cat"), "latents": torch.zeros(1, 4, 16, 16)}, ValueError, "both image and latents"),
        ({"image": draw("a cat"), "strength": 1.5}, ValueError, "strength must be between 0 and 1, but is 1.5"),
        ({"image": draw("a cat"), "strength": 0.01}, ValueError, "strength 0.01 of 50 steps leaves no step to run"),
        ({"image": [draw("a cat")] * 2, "prompt": ["a", "b", "c"]}, ValueError, "2 pictures were given for 3 prompts"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_event(sd1, arguments, error, words):
    with pytest.raises(error, match=words):
        sdkit.stages(**{"prompt": "a star", "model": sd1, **arguments})


def test_words_beyond_the_window_are_named(sd1):
    with pytest.warns(UserWarning, match="longer than 32 tokens; left out: '.*cat.*'"):
        sdkit.text_to_image("a star " * 15 + "and a cat", model=sd1, seed=0, num_inference_steps=1)


def test_a_picture_of_nan_is_an_error_and_not_a_black_square(sd1):
    @sdkit.on(sdkit.Stage.IMAGE)
    def spoil(event):
        event.value = event.value * float("nan")

    with pytest.raises(
        ValueError,
        match=r"stage 'image': this is the first value that holds NaN or infinity; it was edited by '.*spoil'",
    ):
        sdkit.text_to_image("a star", model=sd1, seed=0, num_inference_steps=1, hooks=[spoil])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"timesteps": [1, 2]}, ValueError, r"timesteps must fall from noise to picture, at least one, but are \[1, 2"),
        ({"timesteps": [1500, 3]}, ValueError, "timesteps must lie below 1000.*but go up to 1500"),
        ({"timesteps": [500.5]}, TypeError, "timesteps must be a whole number, but is 500.5"),
        ({"timesteps": 7}, TypeError, "timesteps must be a list of falling numbers, but is 7"),
        ({"sigmas": [1.0]}, ValueError, "sigmas must fall from noise to picture, at least two"),
        ({"timesteps": [9], "sigmas": [1.0, 0.0]}, ValueError, "both timesteps and sigmas were given"),
        ({"timesteps": [9, 1], "num_inference_steps": 3}, ValueError, "3 was given with timesteps for 2 steps"),
        ({"timesteps": [9, 1], "scheduler": "ddim"}, ValueError, "DDIMScheduler takes no custom timesteps; use ddpm"),
        (
            {"sigmas": [9, 0], "scheduler": "heun"},
            ValueError,
            "HeunDiscreteScheduler takes no custom sigmas; use euler",
        ),
        ({"timesteps": [9, 1], "scheduler": "heun_karras"}, ValueError, "does not take these timesteps: Cannot use"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(sd1, arguments, error, words):
    with pytest.raises(error, match=words):
        sdkit.stages(**{"prompt": "a star", "model": sd1, "scheduler": "euler", **arguments})


@pytest.mark.parametrize(("name", "package"), [("lms", "scipy"), ("dpmpp_sde_karras", "torchsde")])
def test_a_scheduler_whose_package_is_missing_says_which(sd1, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"scheduler {name!r} needs {package}, which is not installed"):
        sdkit.stages("a star", model=sd1, scheduler=name)


def test_brownian_motion_grows_from_each_pictures_own_seed(sd1):
    options = {"model": sd1, "scheduler": "dpmpp_sde", "num_inference_steps": 3}
    batch = sdkit.text_to_image("a star", num_images_per_prompt=2, seed=7, **options).latents
    alone = sdkit.text_to_image("a star", seed=8, **options).latents
    assert torch.allclose(batch[1:], alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"promt": "a"}, "there is no argument 'promt' here; did you mean 'prompt'?"),
        ({"quality": 1}, r"there is no argument 'quality' here; help\(sdkit.text_to_image\) lists what there is"),
        ({"mask_image": 1}, "there is no argument 'mask_image' here; sdkit.image_to_image takes it"),
    ],
)
def test_an_argument_that_does_not_exist_is_said(arguments, words):
    with pytest.raises(TypeError, match=words):
        sdkit.text_to_image("a star", **arguments)


def test_the_signature_lists_every_option_with_its_default():
    for function in (sdkit.text_to_image, sdkit.image_to_image, sdkit.stages):
        parameters = inspect.signature(function).parameters
        assert parameters["num_images_per_prompt"].default == 1
        assert parameters["guidance_scale"].annotation == "float | None"
        assert not any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    assert "mask_image" not in inspect.signature(sdkit.text_to_image).parameters


def test_what_comes_back_says_what_it_is(tiny):
    result = sdkit.text_to_image(["a star", "a cat"], seed=7, num_inference_steps=1, model=tiny)
    assert repr(result) == "<Result of ['a star', 'a cat'], seed [7, 8]: 2 pictures of 128x128>"
    assert repr(sdkit.encode(result.image, model=tiny)).startswith("<Latents (1, 4, 16, 16): mean ")
    assert repr(sdkit.read_prompt("a star", model=tiny)) == "<Reading of 'a star': hidden states (4, 32, 128)>"
