import json
import subprocess
import sys

import pytest

import sdkit
from sdkit.many.grid import axis_of, plan
from sdkit.many.jobs import job_of
from sdkit.tiny.drawing import draw


@pytest.fixture
def photo(tmp_path):
    draw("a red star").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def written(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_a_key_stands_for_what_is_asked_and_not_for_how_it_is_written():
    job = job_of({"prompt": "a star", "seed": 7, "guidance_scale": 3})
    assert job_of({"guidance_scale": 3.0, "seed": 7, "prompt": "a star"}).key == job.key
    assert job_of({"prompt": "a star", "seed": 7, "guidance_scale": 3, "eta": 0.0, "scheduler": None}).key == job.key
    others = [{"prompt": "a cat"}, {"seed": 8}, {"guidance_scale": 4}, {"eta": 0.5}, {"scheduler": "ddim"}]
    keys = {job_of({**job.asked, **one}).key for one in others}
    assert len(keys | {job.key}) == 6


def test_the_keys_of_today_are_those_of_tomorrow():
    assert job_of({"prompt": "a star", "seed": 7}).key == "80e0122b90ef2bb5c5a190021ffe65f6"


def test_a_key_stands_for_the_bytes_of_a_picture_and_not_for_its_name(photo, tmp_path):
    asked = {"prompt": "a cat", "seed": 1}
    copy = tmp_path / "copy.png"
    copy.write_bytes(photo.read_bytes())
    job = job_of({**asked, "image": str(photo)})
    assert job.function == "image_to_image"
    assert job_of({**asked, "image": str(copy)}).key == job.key
    draw("a blue fish").save(other := tmp_path / "other.png")
    assert job_of({**asked, "image": str(other)}).key != job.key


def test_a_job_without_a_seed_has_one_that_follows_from_its_words():
    assert job_of("a star").asked["seed"] == job_of({"prompt": "a star"}).asked["seed"]
    assert job_of("a star").asked["seed"] != job_of("a cat").asked["seed"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "a", "guidance": 3}, "text_to_image has no argument 'guidance' for a job; did you mean 'guidance_"),
        ({"prompt": "a", "cfg": 3}, "guidance_scale is meant"),
        ({"prompt": "a", "strength": 0.5}, "sdkit.image_to_image takes it"),
        ({"prompt": "a", "scheduler": "eulr"}, "unknown scheduler 'eulr'; did you mean 'euler'?"),
        ({"prompt": "a", "height": 60}, "height 60 is not a multiple of 8; try 64"),
        ({"prompt": "a", "image": "no.png"}, "there is no picture "),
        ({"seed": 3}, "text_to_image needs prompt, but was given seed"),
        ({"prompt": 3}, "prompt must be a string or a list of strings, but is 3"),
        ({"prompt": "a", "model": 3}, "model of a job must be a string, but is 3"),
        ({"prompt": "a", "hooks": ["free_u"]}, "hooks of a job are names with their arguments"),
        ({"prompt": "a", "function": "inspekt"}, "unknown function 'inspekt'; did you mean 'inspect'?"),
        ({"picture": "no.png", "timesteps": 0}, "timesteps must be at least 1, but is 0"),
        (3, "a job must be a prompt, or arguments by name, but is 3"),
    ],
)
def test_a_job_that_cannot_be_is_said_in_a_sentence(given, said):
    with pytest.raises((TypeError, ValueError, FileNotFoundError)) as caught:
        job_of(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_kind_of_list_asks_for_the_same(tmp_path):
    jobs = [{"prompt": "a star, red", "seed": 7, "guidance_scale": 1.5}, {"prompt": "a cat", "seed": [1, 2],
             "num_images_per_prompt": 2}]  # fmt: skip
    expected = [job_of(one) for one in jobs]
    lines = "".join(json.dumps(one) + "\n" for one in jobs)
    table = 'prompt,seed,guidance_scale,num_images_per_prompt\n"a star, red",7,1.5,\na cat,"[1, 2]",,2\n'
    yaml = "- {prompt: 'a star, red', seed: 7, guidance_scale: 1.5}\n- prompt: a cat\n  seed: [1, 2]\n"
    assert plan(written(tmp_path, "a.jsonl", lines)).jobs == expected
    assert plan(written(tmp_path, "a.csv", table)).jobs == expected
    assert plan(written(tmp_path, "a.yaml", f"{yaml}  num_images_per_prompt: 2\n")).jobs == expected
    assert plan(jobs).jobs == expected
    assert plan(written(tmp_path, "a.txt", "a star\n\n a cat \n")).jobs == [job_of("a star"), job_of("a cat")]


def test_a_bad_line_is_set_aside_with_its_number_and_the_rest_stays(tmp_path):
    lines = '{"prompt": "a star"}\n{"prompt": \n[1]\n{"prompt": "a", "seed": -1}\n"a cat"\n'
    made = plan(written(tmp_path, "a.jsonl", lines))
    assert made.jobs == [job_of("a star"), job_of("a cat")]
    assert [one.where for one in made.bad] == ["line 2", "line 3", "line 4"]
    assert made.bad[0].reason.startswith("it is no JSON: ")
    assert made.bad[2].reason == "seed must be at least 0, but is -1"
    table = plan(written(tmp_path, "a.csv", "prompt,seed\na,x\nb,1,2\nc,3\n"))
    assert [one.reason for one in table.bad] == [
        "seed cannot be 'x'; write numbers as 7 or 0.5, lists as [1, 2]",
        "it has more cells than the first line has names",
    ]
    assert table.jobs == [job_of({"prompt": "c", "seed": 3})]


def test_a_list_that_is_none_as_a_whole_is_an_error(tmp_path):
    for name, text, said in (
        ("a.yaml", "prompt: a", "must hold a list of jobs"),
        ("a.yaml", "- [", "is no YAML: "),
        ("a.toml", "", "unknown ending of a list of jobs '.toml'"),
    ):
        with pytest.raises(ValueError, match=said):
            plan(written(tmp_path, name, text))
    with pytest.raises(FileNotFoundError, match="there is no list of jobs"):
        plan(tmp_path / "no.txt")


def test_what_is_asked_for_twice_is_one_job():
    assert len(plan(["a star", {"prompt": "a star"}, "a cat"]).jobs) == 2


def test_a_grid_makes_every_job_with_every_combination_from_one_noise():
    made = plan(["a star", "a cat"], {"guidance_scale": [1, 3.5], "scheduler": ["ddim", "euler"]})
    assert [(job.asked["prompt"], job.asked["guidance_scale"], job.asked["scheduler"]) for job in made.jobs] == [
        (prompt, scale, name) for prompt in ("a star", "a cat") for scale in (1, 3.5) for name in ("ddim", "euler")
    ]
    assert len({job.asked["seed"] for job in made.jobs}) == 2
    assert made.axes == {"line": ["a star", "a cat"], "guidance_scale": ["1", "3.5"], "scheduler": ["ddim", "euler"]}
    assert made.cells["a cat", "3.5", "euler"] == made.jobs[-1]


def test_an_axis_replaces_its_first_text_in_the_prompt_by_each():
    made = plan(["a red star", "a blue cat"], {"replace": ["red", "dark green"]})
    assert [job.asked["prompt"] for job in made.jobs] == ["a red star", "a dark green star"]
    assert {one.reason for one in made.bad} == {
        "the prompt must hold 'red', the first text to be replaced, but is 'a blue cat'"
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"jobs": 3}, "jobs are a file ending in .jsonl, .csv, .yaml, .yml, .txt, or a list, but are 3"),
        ({"grid": ["seed"]}, "a grid is lists of values by the name of an argument, but is ['seed']"),
        ({"grid": {"seed": "12"}}, "a grid is lists of values by the name of an argument, but is {'seed': '12'}"),
        ({"grid": {"sed": [1]}}, "unknown axis of a grid 'sed'; did you mean 'seed'?"),
        ({"folder": 3}, "folder must be a string or a Path, but is 3"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 up to 10000, but is 0"),
        ({"exact": 1}, "exact must be True or False, but is 1"),
        ({"model": 3}, "model must be a name, a folder, a file, a Stable Diffusion pipeline or an sdkit Model"),
        ({"model": "no.safetensors"}, "there is no file or folder 'no.safetensors'"),
    ],
)
def test_an_odd_argument_is_refused_in_a_sentence(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError, FileNotFoundError)) as caught:
        sdkit.batch(**{"jobs": ["a star"], "folder": "out", **given})
    assert str(caught.value).startswith(said)


def test_an_axis_is_read_as_the_command_line_has_it():
    assert axis_of("guidance_scale=1,3.5") == ("guidance_scale", [1, 3.5])
    assert axis_of('prompt="a star, red", a cat') == ("prompt", ["a star, red", "a cat"])
    assert axis_of('hooks=[{}, {"free_u": {}}]') == ("hooks", [{}, {"free_u": {}}])
    assert axis_of("clip_skip_negative=True,false") == ("clip_skip_negative", [True, False])
    for text, said in (
        ("guidance_scale", "is written name=value,value"),
        ("guidance=1", "did you mean 'guidance_scale'"),
        ("seed=a", "seed cannot be 'a'"),
        ("seed=[1", "is no JSON list"),
    ):
        with pytest.raises(ValueError, match=said):
            axis_of(text)
    with pytest.raises(ValueError, match="the axis 'seed' has no values"):
        plan(["a"], {"seed": []})


def test_alternatives_and_wildcards_make_a_job_for_each_combination(tmp_path):
    written(tmp_path, "colour.txt", "red\nblue\n")
    made = plan(["a __colour__ {star|cat}", "100% {of", "a __size__ cat", "50%"], alternatives=tmp_path)
    prompts = {"a red star", "a red cat", "a blue star", "a blue cat", "50%"}
    assert {job.asked["prompt"] for job in made.jobs} == prompts
    assert len({job.asked["seed"] for job in made.jobs}) == 5
    assert [one.where for one in made.bad] == ["job 2", "job 3"]
    assert "there are no words for __size__; write them in size.txt" in made.bad[1].reason
    assert [job.asked["prompt"] for job in plan(["a {red|blue} star"], alternatives=True).jobs] == [
        "a red star",
        "a blue star",
    ]
    assert plan(["a {red|blue} star"]).jobs[0].asked["prompt"] == "a {red|blue} star"
    with pytest.raises(FileNotFoundError, match="there is no folder of wildcards"):
        plan(["a"], alternatives=tmp_path / "no")


def test_planning_ten_thousand_jobs_imports_no_torch():
    code = (
        "import sys; from sdkit.many.grid import plan; from sdkit.many.book import Book; "
        "print(len(plan([f'a star {i}' for i in range(10_000)]).jobs), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "10000 False\n"
