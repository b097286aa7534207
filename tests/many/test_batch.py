import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from carried import random_controlnet, save_ip_adapter
from conftest import SCHEDULERS, random_pipeline
from PIL import Image

import sdkit
from sdkit.cli import main
from sdkit.many.book import Book, Made
from sdkit.many.grid import plan
from sdkit.many.jobs import job_of
from sdkit.many.work import Maker, asked_together, groups, made_of
from sdkit.tiny.drawing import draw

pytestmark = pytest.mark.filterwarnings("ignore:sdkit/tiny does not know")  # numbers in prompts

PROMPTS = ["a red star on a blue background", "a blue fish", "a green tree on a pink background", "a small cat"]
FAST = {"num_inference_steps": 2}
NOISE = 2  # levels of 255 by which rounding in a batch has moved a value of a picture, at most


def fast(prompts=PROMPTS, **more):
    return [{"prompt": prompt, **FAST, **more} for prompt in prompts]


def pixels(folder, row):
    return np.asarray(Image.open(Path(folder) / row["file"])).astype(int)


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four jobs, carried out together."""
    return sdkit.batch(fast(), tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def four_exact(tmp_path_factory):
    """The same, one by one."""
    return sdkit.batch(fast(), tmp_path_factory.mktemp("exact"), exact=True)


def test_every_job_has_its_picture_and_its_row(four):
    rows = pq.read_table(four.manifest).to_pylist()
    assert (four.made, four.before, four.bad) == (4, 0, [])
    assert rows == four.rows()
    assert [row["prompt"] for row in rows] == PROMPTS
    for row, given in zip(rows, fast(), strict=True):
        content = (Path(four.folder) / row["file"]).read_bytes()
        assert row["key"] == job_of(given).key
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert sdkit.read_settings(Path(four.folder) / row["file"]) == json.loads(row["settings"])
        assert (row["width"], row["height"], row["together"], row["num_inference_steps"]) == (128, 128, 4, 2)
        assert row["model_hash"] == sdkit.load().fingerprint()
    assert not list((Path(four.folder) / "rows").iterdir())


def test_one_at_a_time_gives_the_bytes_of_the_function_itself(four_exact, tmp_path):
    for row in four_exact.rows():
        sdkit.text_to_image(row["prompt"], seed=row["seed"], **FAST).save(tmp_path / "alone.png")
        assert (Path(four_exact.folder) / row["file"]).read_bytes() == (tmp_path / "alone.png").read_bytes()


def test_together_gives_the_same_settings_and_pictures_up_to_rounding(four, four_exact):
    for one, other in zip(four.rows(), four_exact.rows(), strict=True):
        assert one["settings"] == other["settings"]
        assert np.abs(pixels(four.folder, one) - pixels(four_exact.folder, other)).max() <= NOISE


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_picture_does_not_depend_on_its_mates_whatever_the_scheduler(scheduler, tiny):
    jobs = [
        job_of(one)
        for one in fast(PROMPTS[:3], scheduler=scheduler, eta=0.5, num_inference_steps=3, height=64, width=64)
    ]
    noise = []
    keep = sdkit.on("latent", steps=[0])(lambda event: noise.append(event.value))
    together = sdkit.text_to_image(**asked_together(jobs, [keep]), model=tiny)
    last = sdkit.text_to_image(**asked_together(jobs[2:], [keep]), model=tiny)
    assert (noise[0][2] == noise[1][0]).all()
    both = [np.asarray(one).astype(int) for one in (together.images[2], last.image)]
    assert np.abs(both[0] - both[1]).max() <= NOISE


def test_pictures_varied_together_are_those_varied_alone(tmp_path, tiny):
    for name in ("a red star", "a blue fish"):
        draw(name).save(tmp_path / f"{name}.png")
    asked = [
        {"image": str(tmp_path / f"{name}.png"), "prompt": "a cat", "negative_prompt": name, "strength": 0.6, "seed": 3,
         "num_inference_steps": 4}
        for name in ("a red star", "a blue fish")
    ]  # fmt: skip
    jobs = [job_of(one) for one in asked]
    assert groups(jobs, 8) == [jobs]
    maker = Maker(lambda _: tiny)
    [(together, [])] = list(maker.make(jobs))
    alone = [made for job in jobs for made in next(maker.make([job]))[0]]
    assert [one.together for one in together] == [2, 2]
    for one, other in zip(together, alone, strict=True):
        assert one.settings == other.settings
        both = [np.asarray(Image.open(io.BytesIO(made.pictures[0]))).astype(int) for made in (one, other)]
        assert np.abs(both[0] - both[1]).max() <= NOISE
    several = [job_of({**one, "num_images_per_prompt": 2}) for one in asked]
    assert [len(one) for one in groups(several, 8)] == [1, 1]


def test_only_jobs_of_one_shape_are_made_together_and_never_more_than_asked():
    jobs = [job_of(one) for one in [*fast(PROMPTS), *fast(PROMPTS[:2], height=64), *fast(["a"], hooks={"preview": {}})]]
    assert [len(one) for one in groups(jobs, 3)] == [3, 1, 2, 1]
    assert [len(one) for one in groups(jobs, 1)] == [1] * 7
    several = [job_of(one) for one in fast(PROMPTS, num_images_per_prompt=3)]
    assert [len(one) for one in groups(several, 8)] == [2, 2]
    split = [job_of(one) for one in fast(PROMPTS[:2], long_prompt="split")]
    assert [len(one) for one in groups(split, 8)] == [1, 1]
    negative = [job_of(one) for one in [*fast(PROMPTS[:1]), *fast(PROMPTS[:1], negative_prompt="")]]
    assert [len(one) for one in groups(negative, 8)] == [1, 1]


def test_a_job_takes_hooks_by_name_and_one_that_fails_leaves_the_others(tmp_path):
    jobs = [
        *fast(PROMPTS[:1], hooks={"stop_after": {"step": 0}}),
        *fast(PROMPTS[:1], hooks={"stop_afterr": {}}),
        *fast(PROMPTS[:1], hooks={"stop_after": {"stepp": 0}}),
        *fast(PROMPTS[:1]),
    ]
    made = sdkit.batch(jobs, tmp_path)
    assert [json.loads(row["settings"]).get("stopped_after") for row in made.rows()] == [0, None]
    assert [one.where for one in made.bad] == [job_of(jobs[1]).key, job_of(jobs[2]).key]
    assert made.bad[0].reason == "unknown hook 'stop_afterr'; did you mean 'stop_after'?"
    assert made.bad[1].reason.startswith("stop_after(): missing a required argument: 'step'")


def test_one_bad_job_in_a_group_is_set_aside_alone(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    draw("a cat").save(tmp_path / "whole.png")
    jobs = [{"image": str(tmp_path / name), "prompt": "a cat", **FAST} for name in ("whole.png", "broken.png")]
    made = sdkit.batch([*jobs, *fast(PROMPTS[:2]), {"prompt": "a", "eta": 3}], tmp_path / "out")
    assert made.made == 3
    assert [one.where for one in made.bad] == ["job 5", job_of(jobs[1]).key]
    assert "is damaged, or no picture" in made.bad[1].reason
    lines = (tmp_path / "out" / "failed.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == [one.reason for one in made.bad]
    draw("a fish").save(tmp_path / "broken.png")
    from sdkit.many.jobs import _hash

    _hash.cache_clear()
    again = sdkit.batch([*jobs, *fast(PROMPTS[:2])], tmp_path / "out")
    assert (again.made, again.before, again.bad) == (1, 3, [])
    assert not (tmp_path / "out" / "failed.jsonl").exists()


def test_a_group_that_does_not_fit_into_memory_is_halved_and_later_ones_too(tiny):
    sizes = []

    @sdkit.on("text")
    def small_memory(event):
        sizes.append(event.run.shape[0])
        if sizes[-1] > 2:
            raise RuntimeError("out of memory; try a smaller height and width")

    class Small(Maker):
        def _make(self, jobs):
            result = sdkit.text_to_image(**asked_together(jobs, [small_memory]), model=tiny)
            return made_of(jobs, result.images, result.settings, 0.0)

    maker = Small(lambda _: tiny)
    jobs = [job_of({"prompt": f"a star {number}", "num_inference_steps": 1, "height": 64, "width": 64})
            for number in range(8)]  # fmt: skip
    for tried in ([8, 4, 2, 2, 2, 2], [2, 2, 2, 2]):
        assert [one.key for kept, _ in maker.make(jobs) for one in kept] == [job.key for job in jobs]
        assert sizes == tried
        sizes.clear()


def test_a_run_goes_on_where_it_was_and_a_picture_that_is_gone_is_made_again(tmp_path):
    first = sdkit.batch(fast(PROMPTS[:2]), tmp_path)
    more = sdkit.batch(fast(), tmp_path)
    assert (first.made, more.made, more.before) == (2, 2, 2)
    rows = more.rows()
    assert [row["prompt"] for row in rows] == PROMPTS
    (tmp_path / rows[1]["file"]).unlink()
    again = sdkit.batch(fast(), tmp_path)
    assert (again.made, again.before) == (1, 3)
    assert [row["key"] for row in again.rows()] == [row["key"] for row in rows]
    assert (tmp_path / rows[1]["file"]).exists()


def test_rows_that_are_not_in_the_manifest_yet_count(tmp_path):
    book = Book(tmp_path)
    book.keep([Made("ab" * 16, "text_to_image", [b"one", b"two"], [(8, 8)] * 2, {"seed": [1, 2]}, 1.0, 2)])
    assert book.done() == {"ab" * 16}
    (tmp_path / "pictures" / "ab" / f"{'ab' * 16}-2.png").unlink()
    assert book.done() == set()


def test_a_folder_belongs_to_one_set_up_and_one_run(tmp_path, sd1):
    sdkit.batch(fast(PROMPTS[:1]), tmp_path)
    with pytest.raises(ValueError, match="was begun with model 'sdkit/tiny' and not 'StableDiffusionPipeline'"):
        sdkit.batch(fast(PROMPTS[:1]), tmp_path, model=sd1)
    with (
        Book(tmp_path).alone({"model": "sdkit/tiny"}),
        pytest.raises(ValueError, match="another run is at work in"),
    ):
        sdkit.batch(fast(PROMPTS[:1]), tmp_path)


def test_a_folder_belongs_to_what_is_laid_over_its_model_too(tmp_path, capsys):
    pipeline = random_pipeline(tmp_path)
    pipeline.save_pretrained(tmp_path / "model")
    random_controlnet(pipeline, 3).save_pretrained(tmp_path / "net")
    save_ip_adapter(pipeline, tmp_path / "style.safetensors")
    draw("a red star", seed=1).save(tmp_path / "star.png")
    given = dict.fromkeys(("control_image", "ip_adapter_image"), str(tmp_path / "star.png"))
    job = {"prompt": "a red star", "seed": 1, "height": 64, "width": 64, **FAST, **given}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    command = ["batch", str(tmp_path / "jobs.jsonl"), str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    net, style = ["--controlnet", str(tmp_path / "net")], ["--ip-adapter", str(tmp_path / "style.safetensors")]
    assert main([*command, *net, *style]) == 0
    assert len(Book(tmp_path / "out").rows()) == 1
    for less, name in ((style, "controlnet"), (net, "ip_adapter")):
        assert main([*command, *less]) == 2
        assert f"was begun with {name} " in capsys.readouterr().err


def test_a_grid_has_a_sheet_with_a_labelled_picture_at_each_place(tmp_path):
    jobs = fast(PROMPTS[:2], seed=1)
    sdkit.batch(jobs, tmp_path, grid={"guidance_scale": [1, 5], "eta": [0, 0.5, 3]})
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<img ") == 8
    assert page.count("set aside") == 4
    for words in ("eta = 0.5", "guidance_scale = 5", PROMPTS[0]):
        assert words in page
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (14 * 14 + 3 * 134 + 6, 2 * (56 + 2 * 134) + 6)
    rows = {row["key"]: row for row in Book(tmp_path).rows()}
    job = plan(jobs, {"guidance_scale": [1, 5], "eta": [0, 0.5, 3]}).cells[PROMPTS[1], "5", "0.5"]
    x, y = 14 * 14 + 134, 56 + 2 * 134 + 56 + 134
    assert np.array_equal(np.asarray(sheet.crop((x, y, x + 128, y + 128))), pixels(tmp_path, rows[job.key]))


def test_traces_are_kept_when_asked_for(tmp_path):
    made = sdkit.batch(fast(PROMPTS[:2]), tmp_path, traces=True)
    for row in made.rows():
        trace = sdkit.Trace.load(tmp_path / row["trace"])
        assert trace.settings["prompt"] == row["prompt"]
        assert len(trace["latent"]) == 3


def test_a_picture_is_inspected_as_by_its_command(tmp_path, capsys):
    draw("a red star").save(tmp_path / "star.png")
    made = sdkit.batch([{"picture": str(tmp_path / "star.png"), "timesteps": 2, "seed": 0}], tmp_path / "out")
    assert (
        main(["inspect", str(tmp_path / "star.png"), "--timesteps", "2", "-o", str(tmp_path / "p.png"), "--json"]) == 0
    )
    numbers = json.loads(capsys.readouterr().out)
    (row,) = made.rows()
    assert np.array_equal(pixels(tmp_path / "out", row), np.asarray(Image.open(tmp_path / "p.png")))
    assert json.loads(row["settings"])["psnr"] == numbers["psnr"]


def test_a_url_of_fsspec_is_a_folder_too():
    made = sdkit.batch(fast(PROMPTS[:2]), "memory://many/out")
    files = Book("memory://many/out").files
    assert [hashlib.sha256(files.cat_file(f"/many/out/{row['file']}")).hexdigest() for row in made.rows()] == [
        row["sha256"] for row in made.rows()
    ]
    assert sdkit.batch(fast(PROMPTS[:2]), "memory://many/out").before == 2


def test_the_command_says_what_was_made_and_set_aside_and_its_status_says_so_too(tmp_path, capsys):
    (tmp_path / "jobs.txt").write_text("a star\na cat\n")
    command = ["batch", str(tmp_path / "jobs.txt"), str(tmp_path / "out"), "--grid"]
    assert main([*command, "num_inference_steps=1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'manifest.parquet'}  2 of 2 jobs made\n"
    assert main([*command, "num_inference_steps=1,0"]) == 1
    said = capsys.readouterr()
    assert said.out.endswith("  0 of 4 jobs made, 2 were there before\n")
    assert "sdkit: set aside: line 1: num_inference_steps must be at least 1, but is 0\n" in said.err
    assert said.err.endswith("sdkit: 2 jobs were set aside, in failed.jsonl with their reasons\n")
    for wrong, words in (
        (["no.txt"], "there is no list of jobs 'no.txt'"),
        ([str(tmp_path / "jobs.txt"), str(tmp_path / "b"), "--workers", "2"], "--workers was given without --ray"),
        ([str(tmp_path / "jobs.txt"), str(tmp_path / "b"), "--ray", "--device", "cpu"], "--device goes with a single"),
        ([str(tmp_path / "jobs.txt"), str(tmp_path / "b"), "--grid", "sed=1"], "did you mean 'seed'"),
        ([str(tmp_path / "jobs.txt"), "nowhere://b"], "'nowhere://b' is no folder that can be written to"),
    ):
        assert main(["batch", *wrong, *[str(tmp_path / "b")] * (len(wrong) == 1)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("many", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_finished_run_of_many_jobs_is_found_finished_without_torch(many, tmp_path):
    (tmp_path / "jobs.txt").write_text("".join(f"a star {number}\n" for number in range(many)))
    book = Book(tmp_path / "out")
    jobs = plan(tmp_path / "jobs.txt").jobs
    for start in range(0, len(jobs), 1000):
        some = jobs[start : start + 1000]
        files = [Made(job.key, job.function, [b"a picture"], [(8, 8)], {}, 0.1, 1000) for job in some]
        for made in files:
            Path(place := book.place(f"pictures/{made.key[:2]}/{made.key}.png")).parent.mkdir(
                parents=True, exist_ok=True
            )
            Path(place).write_bytes(b"a picture")
        book.write = lambda name, content, write=book.write: name.startswith("pictures") or write(name, content)
        book.keep(files)
        del book.write
    code = (
        "import sys; from sdkit.cli import main; "
        f"code = main(['batch', {str(tmp_path / 'jobs.txt')!r}, {str(tmp_path / 'out')!r}]); "
        "print(code, 'torch' in sys.modules)"
    )
    for _ in range(2):  # from loose rows, and from the manifest
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "0 False"
        assert f"0 of {many} jobs made, {many} were there before" in done.stdout


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ten_times_ends_with_the_same_manifest(tmp_path):
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in fast([f"a red star {i}" for i in
                                                                                        range(60)])))  # fmt: skip
    whole = sdkit.batch(tmp_path / "jobs.jsonl", tmp_path / "whole", batch_size=2)
    command = [sys.executable, "-m", "sdkit", "batch", "jobs.jsonl", "killed", "--batch-size", "2"]
    chance, kills = random.Random(0), 0
    while kills < 10:
        before = len(list(tmp_path.glob("killed/rows/*.json")))
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(tmp_path.glob("killed/rows/*.json"))) < before + kills % 3:
            time.sleep(0.01)
        time.sleep(chance.random() / 2)
        assert process.poll() is None, "it was done before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    assert without_times(sdkit.many.book.Book(tmp_path / "killed").rows()) == without_times(whole.rows())
    there = {path.name: path.read_bytes() for path in tmp_path.glob("killed/pictures/*/*.png")}
    assert there == {path.name: path.read_bytes() for path in tmp_path.glob("whole/pictures/*/*.png")}


@pytest.mark.slow
def test_processes_that_a_launcher_starts_share_the_jobs(tmp_path):
    (tmp_path / "jobs.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in [*fast(), {"prompt": "a", "eta": 3}])
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "sdkit", "batch"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, "jobs.jsonl", "out", "--batch-size", "2"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == f"{tmp_path}/out/manifest.parquet  4 of 5 jobs made\n"
    assert "set aside: line 5: eta must be between 0 and 1, but is 3" in done.stderr
    single = sdkit.batch(tmp_path / "jobs.jsonl", tmp_path / "single", batch_size=2)
    assert without_times(pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()) == without_times(
        single.rows()
    )
    assert not list((tmp_path / "out" / "rows").iterdir())
