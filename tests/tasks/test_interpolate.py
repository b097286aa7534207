import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

import sdkit
from sdkit.noise import slerp
from sdkit.tiny.drawing import draw

FEW = {"num_inference_steps": 3}


def same(picture, other):
    return np.array_equal(np.asarray(picture), np.asarray(other))


def test_between_prompts_the_ends_are_the_pictures_of_each_alone():
    ends = ["a red star on a blue background", "a blue fish"]
    walk = sdkit.interpolate(*ends, frames=3, seed=7, **FEW)
    for prompt, i in zip(ends, (0, -1), strict=True):
        alone = sdkit.text_to_image(prompt, seed=7, **FEW)
        assert same(walk.images[i], alone.image)
        assert torch.equal(walk.latents[i], alone.latents[0])
    assert walk.weights == [0, 0.5, 1]
    assert (walk.settings["between"], walk.settings["how"]) == ("prompts", "linear")


@pytest.mark.parametrize("scheduler", [None, "euler_a"])
def test_between_seeds_the_ends_are_the_pictures_of_each_alone_and_the_middle_that_of_the_arc(scheduler):
    walk = sdkit.interpolate(3, 9, prompt="a red star", frames=3, scheduler=scheduler, **FEW)
    for seed, i in ((3, 0), (9, -1)):
        assert same(walk.images[i], sdkit.text_to_image("a red star", seed=seed, scheduler=scheduler, **FEW).image)
    a, b = (torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (3, 9))
    middle = sdkit.text_to_image("a red star", latents=slerp(a, b, 0.5), seed=3, scheduler=scheduler, **FEW)
    assert same(walk.images[1], middle.image)
    assert walk.settings["how"] == "spherical"


def test_between_start_noise_it_goes_along_the_arc_too():
    a, b = (torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (3, 9))
    walk = sdkit.interpolate(a, b, prompt="a red star", frames=2, **FEW)
    assert same(walk.images[1], sdkit.text_to_image("a red star", seed=9, **FEW).image)
    assert walk.settings["how"] == "spherical"


def test_between_pictures_the_means_are_mixed_and_decoded():
    pictures = [draw("a red star", seed=1), draw("a blue fish", seed=2)]
    walk = sdkit.interpolate(*pictures, frames=5)
    a, b = (sdkit.encode(picture) for picture in pictures)
    assert torch.allclose(walk.latents, torch.cat([torch.lerp(a.mean, b.mean, w) for w in walk.weights]), atol=1e-5)
    for picture, i in zip(pictures, (0, -1), strict=True):
        assert same(walk.images[i], sdkit.round_trip(picture).images[0])
    assert walk.evenness == pytest.approx(1, abs=1e-4)
    again = sdkit.interpolate(a, b, frames=5)
    assert all(same(x, y) for x, y in zip(again.images, walk.images, strict=True))
    assert sdkit.interpolate(a, b, frames=3, how="spherical").settings["how"] == "spherical"


@pytest.mark.slow
def test_even_steps_are_about_equally_long_where_others_are_not():
    ends = {"prompt": "a red star", "frames": 5, "num_inference_steps": 4}
    plain, even = sdkit.interpolate(1, 2, **ends), sdkit.interpolate(1, 2, even=True, **ends)
    assert plain.evenness > 1.4
    assert even.evenness < 1.3
    apart = (even.latents[1:] - even.latents[:-1]).flatten(1).norm(dim=1)
    assert even.steps == pytest.approx(apart.tolist(), rel=1e-5)
    assert even.weights == sorted(even.weights)
    assert len(even.images) == len(set(even.weights)) == 5
    for walk in (plain, even):
        assert (walk.weights[0], walk.weights[-1]) == (0, 1)
    assert same(plain.images[0], even.images[0])
    assert same(plain.images[-1], even.images[-1])


def test_a_walk_is_saved_as_gif_and_mp4(tmp_path):
    walk = sdkit.interpolate(draw("a red star", seed=1), draw("a blue fish", seed=2), frames=4)
    with Image.open(walk.save(tmp_path / "walk.gif", fps=10)) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (4, (128, 128), 1500, 0)
        first = np.asarray(gif.convert("RGB"), dtype=float)
    assert np.abs(first - np.asarray(walk.images[0], dtype=float)).mean() < 6  # of 255: a palette has 256 colours
    film = imageio_ffmpeg.read_frames(str(walk.save(tmp_path / "walk.mp4", fps=10)))
    assert next(film)["size"] == (128, 128)
    frames = [np.frombuffer(frame, np.uint8).reshape(128, 128, 3) for frame in film]
    assert len(frames) == 15 + 4 + 15  # the ends stay for a second and a half
    assert np.abs(frames[-1].astype(float) - np.asarray(walk.images[-1], dtype=float)).mean() < 6


def test_it_runs_on_components_of_stable_diffusion(sd1):
    walk = sdkit.interpolate("a star", "a fish", model=sd1, frames=2, num_inference_steps=2)
    assert same(walk.images[1], sdkit.text_to_image("a fish", model=sd1, seed=0, num_inference_steps=2).image)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a star", 7, {}), "between two of one kind, but was given prompts and seeds"),
        ((1, 2, {}), "seeds were given without prompt"),
        (("a star", "a fish", {"prompt": "a cat"}), "prompt was given with prompts"),
        (("a star", "a fish", {"frames": 1}), "frames must be a whole number from 2 up"),
        (("a star", "a fish", {"how": "spheric"}), "unknown way to interpolate 'spheric'; did you mean 'spherical'"),
        ((torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 16), {}), "between two latents"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(arguments, words):
    start, end, rest = arguments
    with pytest.raises((ValueError, TypeError), match=words):
        sdkit.interpolate(start, end, **rest)


def test_a_file_that_is_no_film_is_refused(tmp_path):
    walk = sdkit.Walk([Image.new("RGB", (8, 8))] * 2, torch.zeros(2, 4, 1, 1), [0, 1], {})
    with pytest.raises(ValueError, match=r"must end in .gif or .webp or .mp4"):
        walk.save(tmp_path / "walk.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        walk.save(tmp_path / "no" / "walk.gif")
