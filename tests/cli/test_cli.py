import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdkit
from sdkit import read_settings
from sdkit.cli import main
from sdkit.inputs.arguments import Settings
from sdkit.tiny.drawing import draw


def test_generate_writes_the_picture_of_text_to_image_and_says_where(tmp_path, capsys):
    out = tmp_path / "star.png"
    assert main(["generate", "a red star", "--seed", "7", "--num-inference-steps", "3", "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}  'a red star', seed 7\n"
    expected = sdkit.text_to_image("a red star", seed=7, num_inference_steps=3)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected.image))
    assert read_settings(out) == {**json.loads(json.dumps(expected.settings)), "index": 0}


def test_several_prompts_and_pictures_with_a_contact_sheet_as_json(tmp_path, capsys):
    arguments = ["a red star", "a blue fish", "--num-images-per-prompt", "2", "--seed", "1", "--json"]
    options = ["--num-inference-steps", "2", "--scheduler", "euler_a", "--guidance-scale", "3", "--height", "64"]
    files = ["-o", str(tmp_path / "a.png"), "--contact-sheet", str(tmp_path / "sheet.png")]
    assert main(["generate", *arguments, *options, *files]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(p["prompt"], p["seed"]) for p in said["pictures"]] == [
        ("a red star", 1),
        ("a red star", 2),
        ("a blue fish", 3),
        ("a blue fish", 4),
    ]
    assert [p["path"] for p in said["pictures"]] == [str(tmp_path / f"a-{i}.png") for i in (1, 2, 3, 4)]
    assert said["settings"]["scheduler"]["class"] == "EulerAncestralDiscreteScheduler"
    assert (said["settings"]["guidance_scale"], said["settings"]["height"]) == (3, 64)
    assert Image.open(said["contact_sheet"]).size == (2 * 132 + 4, 2 * 68 + 4)


def test_a_picture_to_start_from_is_varied(tmp_path, capsys):
    photo = draw("a red star")
    photo.save(tmp_path / "photo.png")
    files = ["--image", str(tmp_path / "photo.png"), "-o", str(tmp_path / "a.png")]
    options = ["--strength", "0.5", "--seed", "3", "--num-inference-steps", "4"]
    assert main(["generate", "a green star", *options, *files]) == 0
    expected = sdkit.image_to_image(photo, "a green star", strength=0.5, seed=3, num_inference_steps=4)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(expected.image))
    assert read_settings(tmp_path / "a.png")["start"]["steps"] == 2


def test_a_folder_is_taken_as_model(sd1, tmp_path, capsys):
    sd1.save_pretrained(tmp_path / "model")
    files = ["--model", str(tmp_path / "model"), "-o", str(tmp_path / "a.png")]
    assert main(["generate", "a star", "--num-inference-steps", "2", "--device", "cpu", *files]) == 0
    assert Image.open(tmp_path / "a.png").size == (64, 64)


def test_words_that_are_left_out_are_said(tmp_path, capsys):
    prompt = "a red star " * 15
    assert main(["generate", prompt, "--num-inference-steps", "1", "-o", str(tmp_path / "a.png")]) == 0
    assert "sdkit: the prompt is longer than 32 tokens; left out: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no-such-owner/no-such-model"], "could not be fetched from the hub; check the id"),
        (["--device", "foo"], "device 'foo' is not to be had here; the best that is: 'cpu'"),
        (["--image", __file__], "test_cli.py' is not a picture that can be read"),
    ],
)
def test_what_goes_wrong_later_is_one_sentence_too(arguments, words, tmp_path, capsys):
    assert main(["generate", "a star", "-o", str(tmp_path / "a.png"), *arguments]) == 2
    said = capsys.readouterr().err
    assert "sdkit: error: " in said
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: command"),
        (["generate"], "the following arguments are required: prompt"),
        (["generat", "a star"], "invalid choice: 'generat'"),
        (["generate", "a star", "--steps", "5"], "unrecognized arguments: --steps"),
        (["generate", "a star", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["generate", "a star", "--seed", "-1"], "seed must be at least 0, but is -1"),
        (["generate", "a star", "--height", "100"], "height 100 is not a multiple of 8; try 96"),
        (["generate", "a star", "--scheduler", "eulr"], "unknown scheduler 'eulr'; did you mean 'euler'?"),
        (["generate", "a star", "--dtype", "half"], "unknown dtype 'half'"),
        (["generate", "a star", "-o", "star.jpg"], "'star.jpg' must end in .png"),
        (["generate", "a star", "-o", "no/where.png"], "the folder 'no' does not exist"),
        (["generate", "a star", "--model", "./nowhere"], "there is no file or folder './nowhere'"),
        (["generate", "a star", "-o", "a.png", "--contact-sheet", "a.png"], "would overwrite the picture 'a.png'"),
        (["generate", "a star", "--strength", "0.5"], "--strength was given without --image"),
        (["generate", "a star", "--image", "no.png"], "there is no picture 'no.png'"),
        (["generate", "a star", "--num-inference-steps", "0"], "num_inference_steps must be at least 1"),
        (["inspect", "no.png"], "there is no picture 'no.png'"),
        (["inspect", __file__, "--timesteps", "0"], "timesteps must be at least 1"),
        (["inspect", __file__, "-o", "page.jpg"], "'page.jpg' must end in .png"),
        (["invert", "no.png"], "there is no picture 'no.png'"),
        (["invert", __file__, "--trace", "a.pt"], "'a.pt' must end in .safetensors"),
        (
            ["invert", __file__, "a", "--edit", "b", "--keep", "50"],
            "at least 1 and less than the 50 steps, but is 50",
        ),
        (["interpolate", "a", "b", "-o", "walk.avi"], "'walk.avi' must end in .gif or .webp or .mp4"),
        (["interpolate", "a", "b", "--prompt", "c"], "with --prompt the ends are seeds, whole numbers"),
        (["interpolate", "a.png", "b.png", "--pictures"], "there is no picture 'a.png'"),
        (["interpolate", "a", "b", "--model", "./nowhere"], "there is no file or folder './nowhere'"),
    ],
)
def test_usage_errors_answer_in_a_sentence_without_importing_torch(arguments, words):
    code = f"""
import sys
from pathlib import Path
from sdkit.cli import main
try:
    status = main({arguments!r})
except SystemExit as end:
    status = end.code
print(status, sorted({{"torch", "diffusers", "numpy", "PIL"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
    assert words in done.stderr


def test_help_shows_every_setting_under_diffusers_name():
    done = subprocess.run([sys.executable, "-m", "sdkit.cli", "generate", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for field in dataclasses.fields(Settings):
        name = field.name.replace("_", "-")
        assert (re.search(rf"--{name}[\s,\]]", done.stdout) is not None) == (name != "prompt")


def test_rerun_makes_the_same_bytes_again(tmp_path, capsys):
    first, second = str(tmp_path / "out.png"), str(tmp_path / "again.png")
    assert main(["generate", "a star", "--seed", "3", "--num-inference-steps", "2", "-o", first]) == 0
    assert main(["rerun", first, "-o", second]) == 0
    assert f"{second}  the same bytes as {first}" in capsys.readouterr().out
    assert Path(first).read_bytes() == Path(second).read_bytes()
    assert main(["rerun", first, "-o", second, "--device", "cpu", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr()
    assert "dtype was float32 and is bfloat16" in said.err
    assert "not the same bytes" in said.out


def test_rerun_of_what_is_no_picture_of_sdkit_is_one_sentence(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert main(["rerun", str(tmp_path / "plain.png"), "-o", str(tmp_path / "again.png")]) == 2
    assert main(["rerun", str(tmp_path / "none.png")]) == 2
    said = capsys.readouterr().err
    assert "carries no settings of sdkit" in said
    assert "there is no picture" in said


@pytest.fixture
def star(tmp_path):
    draw("a red star on a blue background", seed=3).save(tmp_path / "star.png")
    return str(tmp_path / "star.png")


def test_inspect_prints_the_numbers_and_writes_the_page(star, tmp_path, capsys):
    page = tmp_path / "page.png"
    assert main(["inspect", star, "-o", str(page), "--timesteps", "5", "--seed", "2"]) == 0
    said = capsys.readouterr().out
    assert "48.0 times fewer numbers" in said
    assert "variance along the principal axes" in said
    assert f"{page}  there and back" in said
    sheet = np.asarray(Image.open(page))
    assert sheet.shape[:2] == (3 * 132 + 4, 5 * 132 + 4)
    picture, back = (np.asarray(one) for one in (draw("a red star on a blue background", seed=3), *_back(star)))
    assert np.array_equal(sheet[4:132, 4:132], picture)
    assert np.array_equal(sheet[4:132, 136:264], back)
    noised = sdkit.diffuse(star, 5, seed=2).images[3]
    assert np.array_equal(sheet[136:264, 400:528], np.asarray(noised))


def _back(path):
    return sdkit.round_trip(path).images


def test_inspect_as_json(star, tmp_path, capsys):
    assert main(["inspect", star, "-o", str(tmp_path / "page.png"), "--timesteps", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["psnr"] == pytest.approx(sdkit.round_trip(star).psnr[0])
    assert [level["t"] for level in said["levels"]] == [0, 999]
    assert len(said["channels"]) == 4


def test_invert_goes_there_and_back_and_keeps_the_trace(star, tmp_path, capsys):
    files = ["-o", str(tmp_path / "back.png"), "--trace", str(tmp_path / "way.safetensors")]
    words, edit = "a red star on a blue background", "a green star on a blue background"
    assert main(["invert", star, words, "--edit", edit, "--num-inference-steps", "10", *files]) == 0
    said = capsys.readouterr().out
    near, alone = (float(number) for number in re.findall(r"(\d+\.\d+) dB", said))
    assert near > alone - 1.5
    trace = sdkit.Trace.load(tmp_path / "way.safetensors")
    assert (trace.settings["process"], trace.prompt) == ("inversion", words)
    made = read_settings(tmp_path / "back.png")
    assert (made["prompt"], made["guidance_scale"], made["num_inference_steps"]) == (edit, 3, 10)


def test_interpolate_writes_a_film_and_a_sheet(tmp_path, capsys):
    files = ["-o", str(tmp_path / "walk.gif"), "--contact-sheet", str(tmp_path / "walk.png")]
    options = ["--frames", "3", "--num-inference-steps", "2"]
    assert main(["interpolate", "3", "4", "--prompt", "a red star", *options, *files]) == 0
    assert "3 frames between '3' and '4'" in capsys.readouterr().out
    with Image.open(tmp_path / "walk.gif") as film:
        assert film.n_frames == 3
    alone = sdkit.text_to_image("a red star", seed=3, num_inference_steps=2).image
    assert np.array_equal(np.asarray(Image.open(tmp_path / "walk.png"))[4:132, 4:132], np.asarray(alone))


def test_interpolate_between_picture_files(star, tmp_path, capsys):
    draw("a cat").save(tmp_path / "cat.png")
    ends = [star, str(tmp_path / "cat.png")]
    assert main(["interpolate", *ends, "--pictures", "--frames", "2", "-o", str(tmp_path / "walk.mp4")]) == 0
    assert (tmp_path / "walk.mp4").stat().st_size > 500


def test_out_of_memory_is_a_sentence_too(tmp_path, capsys):
    size = str(2**23)
    assert main(["generate", "a star", "--height", size, "--width", size, "-o", str(tmp_path / "out.png")]) == 2
    assert "sdkit: error: out of memory; try a smaller height and width" in capsys.readouterr().err
