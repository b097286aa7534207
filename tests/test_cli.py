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
from sdkit.cli import main
from sdkit.pictures import read_settings
from sdkit.settings import Settings
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


def test_unheard_words_are_said_without_ado(tmp_path, capsys):
    prompt = "a red star " * 15
    assert main(["generate", prompt, "--num-inference-steps", "1", "-o", str(tmp_path / "a.png")]) == 0
    assert "sdkit: the prompt is longer than 32 tokens; not heard: " in capsys.readouterr().err


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


def test_rerun_of_what_is_no_picture_of_sdkit_is_one_sentence(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert main(["rerun", str(tmp_path / "plain.png"), "-o", str(tmp_path / "again.png")]) == 2
    assert main(["rerun", str(tmp_path / "none.png")]) == 2
    said = capsys.readouterr().err
    assert "carries no settings of sdkit" in said
    assert "there is no picture" in said
