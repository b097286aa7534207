"""A run as a film: frames, formats, captions."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

import sdkit
from sdkit import Stage, Trace
from sdkit.show.film import BAR, frames, save_film
from sdkit.show.view import colours


def read(path):
    with Image.open(path) as film:
        found = []
        for number in range(film.n_frames):
            film.seek(number)
            found.append((film.convert("RGB"), film.info.get("duration")))
        return found


def test_a_film_has_a_frame_for_each_step_and_ends_with_the_picture(seen, tmp_path):
    film = read(sdkit.animate(seen, tmp_path / "run.webp", fps=10))
    assert len(film) == 6 + 1
    last = film[-1][0].crop((0, 0, 384, 384)).resize((128, 128), Image.Resampling.NEAREST)
    assert last.tobytes() == seen.images[0].tobytes()
    assert [time for _, time in film] == [100] * 6 + [1500]


def test_a_gif_keeps_its_pace_on_the_whole_and_says_what_it_cannot(seen, tmp_path):
    film = read(sdkit.animate(seen, tmp_path / "run.gif", side=16, fps=30))
    assert [time for _, time in film] == [30, 40, 30, 30, 40, 30, 1500]
    with pytest.raises(
        ValueError, match=r"^a GIF shows at most 50 frames a second, but fps is 60; write .webp or .mp4$"
    ):
        sdkit.animate(seen, tmp_path / "run.gif", fps=60)


def test_both_ends_of_a_walk_stay_for_a_while(walk, tmp_path):
    assert [
        time
        for _, time in read(
            save_film(frames(walk, "image", side=16)[:4], tmp_path / "a.gif", 8, hold=1.5, hold_first=1)
        )
    ] == [1000, 130, 130, 1500]


def test_a_gif_has_the_same_frames_in_fewer_colours(seen, tmp_path):
    film = read(sdkit.animate(seen, tmp_path / "run.gif", "latent", side=128))
    exact = frames(seen, Stage.LATENT, side=128)
    assert len(film) == len(exact) == 7
    for (frame, _), wanted in zip(film, exact, strict=True):
        assert np.abs(np.asarray(frame, float) - np.asarray(wanted, float)).mean() < 6


def test_a_video_has_the_size_and_the_length_of_the_film(seen, tmp_path):
    path = sdkit.animate(seen, tmp_path / "run.mp4", side=128, fps=10)
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    assert meta["source_size"] == (128, 128 + BAR)
    stills = [np.frombuffer(one, np.uint8).reshape(128 + BAR, 128, 3) for one in reader]
    assert len(stills) == 7 + 15
    assert np.abs(stills[-1][:128].astype(float) - np.asarray(seen.images[0], float)).mean() < 6


@pytest.mark.parametrize("stage", ["latent", "noise", "guided", "denoised"])
def test_each_point_of_a_latent_becomes_a_square_of_its_colour(seen, stage):
    frame = np.asarray(frames(seen, stage, side=128)[2], float)
    value = seen.at(2)[Stage(stage)].value[-1:]  # of two halves the one under the words
    wanted = (colours(seen)(value)[0] * 255).round().movedim(0, -1).numpy()
    assert np.abs(frame[4:128:8, 4:128:8] - wanted).max() <= 1


def test_decoded_pictures_are_animated_as_they_are(walk):
    made = frames(walk, "image", side=128)
    assert len(made) == 4
    wanted = (walk[Stage.IMAGE][2].value[0] / 2 + 0.5).clamp(0, 1).movedim(0, -1).numpy() * 255
    assert np.abs(np.asarray(made[2], float)[:128] - wanted).max() <= 1


def test_step_and_noise_level_are_written_below(seen):
    captions = [np.asarray(frame)[-BAR + 5 :] for frame in frames(seen)]
    assert len({caption.tobytes() for caption in captions}) == 7
    left, right = captions[0][:, :120], captions[0][:, -200:]
    assert left.max() > 200  # letters on dark paper
    assert right.max() > 140
    assert captions[-1][:, -200:].max() < 40  # the picture has no noise level


def test_the_second_of_two_pictures_can_be_animated(sd1):
    trace = Trace()
    sdkit.text_to_image(["a", "b"], model=sd1, seed=1, num_inference_steps=2, height=64, width=96, hooks=[trace])
    one, two = (frames(trace, picture=picture, side=96) for picture in (0, 1))
    assert one[-1].size == (96, 64 + BAR)
    assert two[-1].crop((0, 0, 96, 64)).tobytes() == trace.images[1].tobytes() != trace.images[0].tobytes()


@pytest.mark.parametrize(
    ("name", "stage", "error", "match"),
    [
        ("run.avi", "latent", ValueError, "must end in .gif or .webp or .mp4"),
        ("nowhere/run.gif", "latent", FileNotFoundError, "make it first"),
        ("run.gif", "latnet", ValueError, "did you mean 'latent'"),
        ("run.gif", "tokens", ValueError, "unknown stage to animate 'tokens'"),
        ("run.gif", "image", ValueError, "holds no step of stage 'image'"),
    ],
)
def test_what_cannot_be_written_is_said(seen, tmp_path, name, stage, error, match):
    with pytest.raises(error, match=match):
        sdkit.animate(seen, tmp_path / name, stage)


def test_ffmpeg_finds_nothing_wrong_with_the_video(seen, tmp_path):
    path = sdkit.animate(seen, tmp_path / "run.mp4", side=128)
    check = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "null", "-"]
    assert subprocess.run(check, capture_output=True, check=True).stderr == b""
