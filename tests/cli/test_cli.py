import ctypes
import dataclasses
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from carried import random_controlnet, save_ip_adapter, with_controlnet
from conftest import random_pipeline
from PIL import Image
from safetensors.torch import save_file

import sdkit
from sdkit import read_settings
from sdkit.cli import main
from sdkit.cli.generate import GROUPS
from sdkit.inputs.arguments import Settings
from sdkit.pictures import save_picture
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


def test_a_lora_and_a_textual_inversion_are_laid_over_the_model(tmp_path, capsys):
    peft = pytest.importorskip("peft")
    pipeline = random_pipeline(tmp_path)
    pipeline.save_pretrained(tmp_path / "model")
    pipeline.unet.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False), "style"
    )
    pipeline.save_lora_weights(tmp_path, peft.get_peft_model_state_dict(pipeline.unet, adapter_name="style"))
    (tmp_path / "pytorch_lora_weights.safetensors").rename(lora := tmp_path / "style.safetensors")
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, word := tmp_path / "toy.safetensors")
    pipeline.set_adapters("style", 0.5)
    pipeline.load_textual_inversion(vectors, token="toy")
    expected = sdkit.text_to_image("a toy", model=pipeline, num_inference_steps=2, seed=1)
    out, options = tmp_path / "a.png", ["--model", str(tmp_path / "model"), "--device", "cpu"]
    over = ["--lora", f"{lora}:0.5", "--textual-inversion", str(word)]
    assert (
        main(["generate", "a toy", "--num-inference-steps", "2", "--seed", "1", "-o", str(out), *options, *over]) == 0
    )
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected.image))
    assert read_settings(out)["extras"] == expected.settings["extras"]
    assert read_settings(out)["extras"]["adapters"] == {"unet": {"style": 0.5}}
    assert main(["rerun", str(out), "-o", str(tmp_path / "b.png"), *options, *over]) == 0
    assert "b.png  the same bytes as" in capsys.readouterr().out
    assert main(["generate", "a toy", "-o", str(out), *options, "--lora", str(word)]) == 2
    assert "toy.safetensors' is incomplete or damaged" in capsys.readouterr().err


def test_a_controlnet_and_an_ip_adapter_are_laid_over_the_model(tmp_path, capsys):
    pipeline = random_pipeline(tmp_path)
    pipeline.save_pretrained(tmp_path / "model")
    net = random_controlnet(pipeline, 3)
    net.save_pretrained(tmp_path / "net")
    save_ip_adapter(pipeline, tmp_path / "style.safetensors")
    pipeline.set_ip_adapter_scale(0.5)
    edges, style = tmp_path / "edges.png", tmp_path / "style.png"
    draw("a red star", seed=1).save(edges)
    draw("a green tree", seed=1).save(style)
    expected = sdkit.text_to_image(
        "a star",
        model=with_controlnet(pipeline, net),
        control_image=edges,
        ip_adapter_image=style,
        num_inference_steps=2,
        seed=1,
        height=64,
        width=64,
    )
    out, options = tmp_path / "a.png", ["--model", str(tmp_path / "model"), "--device", "cpu"]
    options += ["--controlnet", str(tmp_path / "net"), "--ip-adapter", str(tmp_path / "style.safetensors") + ":0.5"]
    given = ["--control-image", str(edges), "--ip-adapter-image", str(style)]
    size = ["--height", "64", "--width", "64", "--num-inference-steps", "2", "--seed", "1"]
    assert main(["generate", "a star", "-o", str(out), *size, *options, *given]) == 0
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected.image))
    assert main(["rerun", str(out), "-o", str(tmp_path / "b.png"), *options, *given]) == 0
    assert "b.png  the same bytes as" in capsys.readouterr().out
    assert main(["generate", "a star", "-o", str(out), *options[:-1], str(edges), *given]) == 2
    assert "edges.png' that ends in .safetensors" in capsys.readouterr().err


def test_words_that_are_left_out_are_said(tmp_path, capsys):
    prompt = "a red star " * 15
    assert main(["generate", prompt, "--num-inference-steps", "1", "-o", str(tmp_path / "a.png")]) == 0
    assert "sdkit: the prompt is longer than 32 tokens; left out: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no-such-owner/no-such-model"], "could not be fetched"),
        (["--device", "mtia"], "device 'mtia' is not to be had here; the best that is: 'cpu'"),
    ],
)
def test_what_goes_wrong_later_is_one_sentence_too(arguments, words, tmp_path, capsys):
    assert main(["generate", "a star", "-o", str(tmp_path / "a.png"), *arguments]) == 2
    said = capsys.readouterr().err
    assert "sdkit: error: " in said
    assert words in said
    assert "Traceback" not in said


MISTAKES = [  # with the words that answer each
    (["generate"], "the following arguments are required: prompt"),
    (["generat", "a star"], "invalid choice: 'generat'"),
    (["generate", "a star", "--steps", "5"], "there is no option --steps here; --num-inference-steps is meant"),
    (["generate", "a star", "--cfg-scale=5"], "there is no option --cfg-scale here; --guidance-scale is meant"),
    (["generate", "a star", "--sampler", "ddim"], "there is no option --sampler here; --scheduler is meant"),
    (["generate", "a star", "--size", "64"], "there is no option --size here; --height and --width are meant"),
    (
        ["generate", "a star", "--torch-dtype", "float16"],
        "there is no option --torch-dtype here; did you mean --dtype?",
    ),
    (["inspect", "a.png", "--xyz"], "there is no option --xyz here; --help lists what there is"),
    (["inspect", "a.png", "b.png"], "unrecognized arguments: b.png"),
    (["generate", "a star", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
    (["generate", "a star", "--seed", "-1"], "seed must be at least 0, but is -1"),
    (["generate", "a star", "--height", "100"], "height 100 is not a multiple of 8; try 96"),
    (["generate", "a star", "--scheduler", "eulr"], "unknown scheduler 'eulr'; did you mean 'euler'?"),
    (["generate", "a star", "--dtype", "half"], "unknown dtype 'half'"),
    (["generate", "a star", "--storage-dtype", "float32"], "unknown storage_dtype 'float32'"),
    (["generate", "a star", "-o", "star.gif"], "'star.gif' must end in .png or .jpg or .jpeg or .webp"),
    (["generate", "a star", "-o", ""], "'' is a folder; give the name of a PNG in it"),
    (["generate", "a star", "-o", "~nobody-here/a.png"], "Could not determine home directory"),
    (["generate", "a \udce9 star"], "'a \\udce9 star' is no valid text"),
    (["generate", "a star", "--device", "gpu"], "unknown device 'gpu'; expected cpu, cuda, mps or another"),
    (["generate", "a star", "--image", __file__], "test_cli.py' is damaged, or no picture in PNG, JPEG, "),
    (["generate", "a star", "--image", "a.png", "-o", "./a.png"], "'a.png' is a picture to be read; give the new one"),
    (["generate", "a", "b", "--report", "b.html", "-o", "a.png", "--contact-sheet", "a-2.png"], "written twice"),
    (["rerun", "plain.png"], "plain.png carries no settings of sdkit that can be read"),
    (["rerun", "none.png"], "there is no picture 'none.png'"),
    (["interpolate", "star.png", "a star"], "'star.png' names a picture, but the ends are prompts; give --pictures"),
    (["interpolate", "a", "b", "--fps", "0"], "fps must be between 0.01 and 1000, but is 0"),
    (["interpolate", "a", "b", "--fps", "nan"], "fps must be between 0.01 and 1000, but is nan"),
    (["interpolate", "a", "b", "--frames", "1"], "frames must be at least 2, but is 1"),
    (["interpolate", "a", "b", "--how", "liner"], "unknown way to interpolate 'liner'; did you mean 'linear'?"),
    (
        ["generate", "a star", "--lora", "a.safetensors:0.5"],
        "there is no file 'a.safetensors' that ends in .safetensors",
    ),
    (["generate", "a star", "--controlnet", "no"], "there is no folder 'no' with a ControlNet in diffusers' layout"),
    (["generate", "a star", "--lora", "plain.png"], "there is no file 'plain.png' that ends in .safetensors"),
    (["generate", "a star", "--lora", "empty.safetensors"], "'empty.safetensors' goes with a model that --model names"),
    (["generate", "a star", "-o", "/proc/self/a.png"], "nothing can be written to the folder '/proc/self'"),
    (["generate", "a star", "-o", "no/where.png"], "the folder 'no' does not exist"),
    (["generate", "a star", "--model", "./nowhere"], "there is no file or folder './nowhere'"),
    (["generate", "a star", "-o", "a.png", "--contact-sheet", "a.png"], "'a.png' would be written twice; give each"),
    (["generate", "a star", "--strength", "0.5"], "--strength was given without --image"),
    (["generate", "a star", "--padding-mask-crop", "4"], "--padding-mask-crop was given without --image"),
    (["generate", "a star", "--mask-image", "a.png"], "--mask-image was given without --image"),
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
]
ANSWERS = """
import contextlib, io, json, sys
from sdkit.cli import main
from sdkit.cli.generate import GROUPS
answers = []
for arguments in json.loads(sys.stdin.read()):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
    answers.append([status, said.getvalue(), sorted({"torch", "diffusers", "numpy"} & set(sys.modules))])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each mistake is answered with, and what was imported until then; all in one process."""
    folder = tmp_path_factory.mktemp("mistakes")
    Image.new("RGB", (8, 8)).save(folder / "plain.png")
    (folder / "empty.safetensors").touch()
    asked = json.dumps([arguments for arguments, _ in MISTAKES])
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS], input=asked, capture_output=True, text=True, check=True, cwd=folder
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("index", range(len(MISTAKES)), ids=lambda index: " ".join(ascii(MISTAKES[index][0]).split()))
def test_mistakes_are_answered_in_a_sentence_without_importing_torch(index, answers):
    status, said, imported = answers[index]
    assert MISTAKES[index][1] in said
    assert (status, imported) == (2, [])
    assert said.strip().splitlines()[-1].startswith("sdkit")


def test_sdkit_alone_gives_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: sdkit [-h] [--version] command ...")


def test_help_shows_every_setting_under_diffusers_name():
    done = subprocess.run([sys.executable, "-m", "sdkit", "generate", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for field in dataclasses.fields(Settings):
        name = field.name.replace("_", "-")
        assert (re.search(rf"--{name}[\s,\]]", done.stdout) is not None) == (name != "prompt")
    titles = re.findall(r"^(\w.*):$", done.stdout, flags=re.MULTILINE)
    assert titles == ["positional arguments", "options", "files", *GROUPS, "the model"]
    ungrouped = done.stdout.partition("\noptions:\n")[2].partition("\nfiles:\n")[0]
    assert ungrouped.split()[:2] == ["-h,", "--help"]
    assert ungrouped.count("--") == 1


@pytest.mark.slow
def test_rerun_makes_the_same_bytes_again(tmp_path, capsys):
    first, second = str(tmp_path / "out.png"), str(tmp_path / "again.png")
    assert main(["generate", "a star", "--seed", "3", "--num-inference-steps", "2", "-o", first]) == 0
    assert main(["rerun", first, "-o", second]) == 0
    assert f"{second}  the same bytes as {first}" in capsys.readouterr().out
    assert Path(first).read_bytes() == Path(second).read_bytes()
    assert main(["rerun", first, "-o", second, "--device", "cpu", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr()
    assert "dtype was float32 and is bfloat16" in said.err
    assert f"{second}  not the same pixels as {first}" in said.out


@pytest.fixture
def star(tmp_path):
    draw("a red star on a blue background", seed=3).save(tmp_path / "star.png")
    return str(tmp_path / "star.png")


def test_weights_kept_in_half_precision_make_the_same_file(tmp_path):
    files = [tmp_path / "plain.png", tmp_path / "kept.png"]
    for file, more in zip(files, ([], ["--storage-dtype", "float16"]), strict=True):
        assert main(["generate", "a star", "--seed", "3", "--num-inference-steps", "2", "-o", str(file), *more]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


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


@pytest.mark.slow
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


# ---------------------------------------------------------------------------------------------------------------------
# Files: none is lost without a word

QUICK = ("--num-inference-steps", "1", "--height", "64", "--width", "64", "--seed", "3")


def test_default_names_count_up_and_a_name_that_was_given_is_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["generate", "a star", *QUICK]) == 0
    assert main(["generate", "a star", "a fish", *QUICK]) == 0
    (tmp_path / "out-3-2.png").touch()
    assert main(["generate", "a star", "a fish", *QUICK, "-o", "out-3.png"]) == 0
    assert main(["rerun", "out.png"]) == main(["rerun", "out.png"]) == 0
    names = re.findall(r"^(\S+)  ", capsys.readouterr().out, flags=re.MULTILINE)
    assert names == [
        *("out.png", "out-2.png", "out-2-1.png", "out-2-2.png", "out-3-1.png", "out-3-2.png"),
        *("again.png", "again-2.png"),
    ]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())


def test_several_pictures_have_a_report_each_which_json_names(tmp_path, capsys):
    page = tmp_path / "run.html"
    arguments = ["a red star", "a blue fish", *QUICK, "-o", str(tmp_path / "a.png"), "--report", str(page), "--json"]
    assert main(["generate", *arguments]) == 0
    reports = json.loads(capsys.readouterr().out)["reports"]
    assert reports == [str(tmp_path / "run-1.html"), str(tmp_path / "run-2.html")]
    titles = [re.search("<title>(.*)</title>", Path(one).read_text(encoding="utf-8"))[1] for one in reports]
    assert "a red star" in titles[0]
    assert "a blue fish" in titles[1]


def test_new_files_get_the_permissions_that_the_users_files_have(tmp_path):
    old = os.umask(0o027)
    try:
        trace = sdkit.Trace()
        result = sdkit.text_to_image("a star", num_inference_steps=1, height=64, width=64, seed=1, hooks=[trace])
        written = [*result.save(tmp_path / "a.png"), *result.save(tmp_path / "a.jpg")]
        written += [trace.save(tmp_path / "a.safetensors"), trace.report(tmp_path / "a.html")]
        written.append(sdkit.animate(trace, tmp_path / "a.gif"))
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in written} == {0o640}


@pytest.mark.parametrize(("ending", "answer"), [("jpg", "the same bytes"), ("webp", "the same bytes")])
def test_a_jpeg_and_a_webp_are_made_again(ending, answer, tmp_path, capsys):
    first, second = str(tmp_path / f"a.{ending}"), str(tmp_path / f"b.{ending}")
    assert main(["generate", "a star", *QUICK, "-o", first]) == 0
    assert main(["rerun", first, "-o", second]) == 0
    assert main(["rerun", first, "-o", str(tmp_path / "c.png")]) == 0
    said = capsys.readouterr()
    assert f"{second}  {answer} as {first}" in said.out
    assert f"c.png  the same pixels as {first}" in said.out
    assert "sdkit:" not in said.err


def test_a_rerun_says_when_pixels_were_changed_after_they_were_saved(tmp_path, capsys):
    path = tmp_path / "a.png"
    assert main(["generate", "a star", *QUICK, "-o", str(path)]) == 0
    picture, settings = Image.open(path), read_settings(path)
    picture.putpixel((3, 4), (1, 2, 3))
    save_picture(picture, path, settings)
    assert main(["rerun", str(path), "-o", str(tmp_path / "b.png")]) == 0
    said = capsys.readouterr()
    assert f"the pixels in {path} are not those that its settings make here: it was changed" in said.err
    assert f"b.png  not the same pixels as {path}" in said.out


# ---------------------------------------------------------------------------------------------------------------------
# Consoles, pipes and Ctrl-C


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp949", "utf-16"])
def test_any_console_can_print_what_was_made(encoding, tmp_path, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert main(["generate", "ein Bär 별 🐻", *QUICK, "-o", str(tmp_path / "별.png")]) == 0
    assert "ein B" in console.buffer.getvalue().decode(encoding)
    assert read_settings(tmp_path / "별.png")["prompt"] == "ein Bär 별 🐻"


def test_a_photo_far_larger_than_the_model_was_trained_on_is_said_with_the_size_that_fits(tmp_path, capsys):
    for size, said in (
        ((256, 256), ""),
        ((400, 240), "400x240, 6 times the pixels .*; height=96, width=168 would fit it"),
    ):
        Image.new("RGB", size).save(tmp_path / "photo.png")
        files = ["--image", str(tmp_path / "photo.png"), "-o", str(tmp_path / "a.png")]
        assert main(["generate", "a star", "--num-inference-steps", "1", "--strength", "1", *files]) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "trained on" in line]
        assert len(lines) == bool(said)
        assert all(re.search(said, line) for line in lines)


def test_a_reader_that_has_gone_ends_it_quietly():
    code = "import sys; from sdkit.cli import main; sys.exit(main(['generate', '--help']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
    process.stderr.close()


SAYING = """
import sys
import termios
from contextlib import suppress
class Saying:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            print("now", file=sys.stderr, flush=True)
sys.meta_path.insert(0, Saying())
from sdkit.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    "moment",
    [
        "numpy",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("sdkit.cli.shared", "torch.nn", "diffusers")),
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("transformers.utils", "0/1000")),
    ],
)
def test_ctrl_c_at_any_moment_ends_it_with_one_line(moment, tmp_path):
    """While a module is imported, or once the steps have begun."""
    arguments = [moment, "generate", "a star", "--num-inference-steps", "1000", "-o", "a.png"]
    ours, theirs = pty.openpty()  # where nobody sees the bar, there is none
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen([sys.executable, "-c", SAYING, *arguments], stderr=theirs, cwd=tmp_path) as process:
        os.close(theirs)
        said = ""
        while not re.search("now\r?\n|0/1000", said):
            said += os.read(ours, 1).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # once nobody writes any more
            while more := os.read(ours, 1000):
                said += more.decode(errors="replace")
    os.close(ours)
    assert said.count("sdkit: interrupted") == 1
    assert "Traceback" not in said
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_threads_that_wait_leave_a_busy_machine_to_others_unless_the_user_wants_it_otherwise(monkeypatch, chosen):
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is put back afterwards
    monkeypatch.delenv("OMP_WAIT_POLICY") if chosen is None else monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    main([])
    assert os.environ["OMP_WAIT_POLICY"] == (chosen or "PASSIVE")


@pytest.mark.parametrize(
    ("arguments", "imported"),
    [(["--help"], set()), (["generate", "--help"], {"dataclasses", "sdkit.cli.generate"})],
)
def test_help_imports_what_it_shows_and_no_more(arguments, imported):
    code = (
        "import sys; from sdkit.cli import parser\n"
        f"parser({arguments!r}).format_help()\n"
        "print({'dataclasses', 'sdkit.cli.generate', 'sdkit.many.jobs', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert eval(done.stdout) == imported


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"sdkit {sdkit.__version__}\n"


LARGE_BLOCKS = """
import ctypes
from sdkit.cli.shared import keep_large_blocks
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks and six that are not read".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
keep_large_blocks()
before = libc.mallinfo2().hblks
libc.malloc(ctypes.c_size_t(2**28))
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library is not glibc 2.33 or newer")
@pytest.mark.parametrize(("chosen", "own"), [({}, "0"), ({"MALLOC_TOP_PAD_": "131072"}, "1")])
def test_large_blocks_of_memory_are_kept_unless_the_user_wants_it_otherwise(chosen, own):
    """How many blocks the system has given by themselves."""
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}, **chosen}
    done = subprocess.run(
        [sys.executable, "-c", LARGE_BLOCKS], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == own + "\n"
