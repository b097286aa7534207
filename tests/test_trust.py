"""What strangers' files may not do, and what full disks and damaged files do not lose."""

import json
import math
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from attack import JSON, attack, changed, damaged_bytes, forms, places
from conftest import random_pipeline
from hypothesis import strategies as st
from original_layout import save as save_original
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sdkit
from sdkit import Trace
from sdkit.files import whole_file
from sdkit.inputs.record import check_record
from sdkit.model import schedulers
from sdkit.model.allowed import PIPELINES, check_index
from sdkit.pictures import save_picture
from sdkit.trace.file import KEY

EVIL = "from pathlib import Path\nPath('ran').touch()\nclass X: pass\n"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder to be in, with a module that leaves a trace when it is imported."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in diffusers' layout."""
    path = tmp_path_factory.mktemp("model")
    random_pipeline(tmp_path_factory.mktemp("tokenizer")).save_pretrained(path)
    return path


def with_index(folder, place, **parts):
    """A copy of a model's folder whose index names other classes."""
    shutil.copytree(folder, place)
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | parts))
    return place


PARTS = {
    "a module of one's own": {"unet": ["evil", "X"]},
    "a part that there is not": {"extra": ["evil", "X"]},
    "a class of another kind": {"vae": ["diffusers", "UNet2DConditionModel"]},
    "a class of transformers": {"text_encoder": ["transformers", "AutoModel"]},
    "too many names": {"scheduler": ["diffusers", "DDIMScheduler", "x"]},
    "a scheduler that is none": {"scheduler": ["diffusers", "DiffusionPipeline"]},
    "a tokenizer of a stranger": {"tokenizer": ["evil", "X"]},
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_folder_names_known_classes_only(elsewhere, folder, parts):
    with pytest.raises(ValueError, match="which sdkit does not load"):
        sdkit.load(with_index(folder, elsewhere / "model", **parts))


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_the_configuration_beside_a_file_names_known_classes_only(elsewhere, folder, parts):
    save_original(sdkit.load(folder, device="cpu").pipeline, elsewhere / "good.safetensors")
    with pytest.raises(ValueError, match="which sdkit does not load"):
        sdkit.load("good.safetensors", config=with_index(folder, elsewhere / "cfg", **parts))


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "DiffusionPipeline", "__class__", "evil.X", "ddim", ""])
def test_a_record_names_known_schedulers_only(name):
    with pytest.raises(ValueError, match="unknown scheduler class"):
        schedulers.rebuilt({"class": name})


@pytest.mark.parametrize(
    "config", [{}, {"class": 5}, {"class": "DDIMScheduler", "num_train_timesteps": 10**12}, None, []]
)
def test_a_scheduler_out_of_all_measure_is_refused_before_it_is_built(config):
    with pytest.raises(ValueError, match=r"damaged|at most 100,000 timesteps"):
        schedulers.rebuilt(config)


def test_a_scheduler_that_no_record_could_name_is_refused(sd1):
    class Own(type(sd1.scheduler)):
        pass

    with pytest.raises(ValueError, match="Own is no scheduler of diffusers that sdkit knows"):
        sdkit.text_to_image("a star", model=sd1, seed=1, scheduler=Own.from_config(sd1.scheduler.config))


# ---------------------------------------------------------------------------------------------------------------------
# Traces and pictures of strangers


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[KEY])


def with_header(path, place, header):
    save_file(load_file(path), place, metadata={KEY: json.dumps(header)})
    return place


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny):
    """A trace, with the picture beside it."""
    folder = tmp_path_factory.mktemp("saved")
    trace = Trace()
    result = sdkit.text_to_image("a star", model=tiny, seed=1, num_inference_steps=2, hooks=[trace])
    result.save(folder / "run.png")
    return trace.save(folder / "run.safetensors")


def test_a_file_does_not_choose_the_model(saved, tmp_path, tiny):
    header = header_of(saved)
    header["settings"]["model"] = "somebody/elses"
    trace = Trace.load(with_header(saved, tmp_path / "run.safetensors", header))
    with pytest.raises(
        ValueError, match="names the model 'somebody/elses', which is not loaded because a file names it"
    ):
        trace.branch(1)
    assert trace.branch(1, model=tiny).latents.shape == (1, 4, 16, 16)
    settings = sdkit.read_settings(saved.with_suffix(".png")) | {"model": "somebody/elses"}
    save_picture(Image.new("RGB", (128, 128)), tmp_path / "a.png", settings)
    with pytest.raises(
        ValueError, match="'somebody/elses', which is not loaded because a file names it: give the model"
    ):
        sdkit.rerun(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="could not be fetched"):
        sdkit.rerun(tmp_path / "a.png", trust_model=True)


def test_a_step_that_is_a_script_is_no_step(saved, tmp_path):
    header = header_of(saved)
    header["records"][1]["step"] = '0"><script>alert(1)</script>'
    with pytest.raises(
        ValueError, match="is damaged: its header should hold whole numbers as steps; save the trace again"
    ):
        Trace.load(with_header(saved, tmp_path / "run.safetensors", header))


def opened(file):
    """A trace, if it opens."""
    try:
        return Trace.load(file)
    except ValueError as error:
        assert "\n" not in str(error)
        assert str(file) in str(error)
        return None


def read_all(trace, page):
    """All that is done with a trace without a model: each gives something, or is one sentence that sdkit says."""
    film = page.with_suffix(".gif")
    for read in (
        lambda: trace.report(page),
        lambda: trace._repr_html_(),
        lambda: trace.summary(),
        lambda: repr(trace),
        lambda: trace.images,
        lambda: trace.latents,
        lambda: trace.compare(trace),
        lambda: sdkit.animate(trace, film, side=16),
        lambda: trace.save(page.with_suffix(".safetensors")),
    ):
        try:
            html = read()
        except ValueError as error:
            assert "\n" not in str(error)
            last = traceback.extract_tb(error.__traceback__)[-1]
            if not str(error).startswith("Out of range float"):  # of json, where a value is infinite
                assert str(Path(sdkit.__file__).parent) in last.filename, f"{error} ({last.filename}:{last.lineno})"
            continue
        if isinstance(html, str) and "<script>" in html:
            assert "<script>\nfor" in html
            assert html.count("<script>") == 1


@forms(100, share=0.1)
def test_a_trace_with_a_damaged_header_opens_or_is_one_sentence(saved, tmp_path_factory, cases):
    header, place = header_of(saved), tmp_path_factory.mktemp("damaged")
    ways, tensors = [path for path in places(header) if path], load_file(saved)

    def one(data):
        wrong = header
        for path in data.draw(st.lists(st.sampled_from(ways), min_size=1, max_size=2)):
            try:
                wrong = changed(wrong, path, data.draw(JSON | st.just("nothing")))
            except (LookupError, TypeError):  # the first change took the place of the second away
                continue
        file = place / "run.safetensors"
        save_file(tensors, file, metadata={KEY: json.dumps(wrong)})
        if trace := opened(file):
            read_all(trace, place / "page.html")

    attack(cases, one)


HOSTILE = [
    "<img src=x onerror='window.top.ran=1'>",
    "</script><script>window.top.ran=1</script>",
    "\"><svg onload='window.top.ran=1'>",
    "]]></style></textarea><script>window.top.ran=1</script>",
    "<!--<script>window.top.ran=1//",
    "javascript:window.top.ran=1",
]


@forms(2, share=0.001)
def test_a_page_of_a_hostile_trace_runs_no_script_of_the_traces(saved, browser, tmp_path_factory, cases):
    header, tensors, place = header_of(saved), load_file(saved), tmp_path_factory.mktemp("pages")
    texts = [path for path in places(header) if path and isinstance(at(header, path), str)]
    always = [("settings", "prompt"), ("settings", "model"), ("tokens", 1, 2, 1)]

    def one(data):
        wrong = header
        for path in [*always, data.draw(st.sampled_from(texts))]:
            wrong = changed(wrong, path, data.draw(st.sampled_from(HOSTILE)))
        save_file(tensors, place / "run.safetensors", metadata={KEY: json.dumps(wrong)})
        if trace := opened(place / "run.safetensors"):
            (place / "notebook.html").write_text(trace._repr_html_(), encoding="utf-8")
            for page in (trace.report(place / "page.html"), place / "notebook.html"):
                browser.get(page.as_uri())
                assert browser.execute_script("return window.ran") is None

    attack(cases, one)


def at(value, path):
    for key in path:
        value = value[key]
    return value


@forms(60, share=0.05)
@pytest.mark.filterwarnings("ignore")  # of torch, about the spread of one number
def test_a_trace_of_odd_tensors_is_read_or_is_one_sentence(saved, tmp_path_factory, cases):
    place, tensors, header = tmp_path_factory.mktemp("odd"), load_file(saved), json.dumps(header_of(saved))
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]

    def one(data):
        wrong = dict(tensors)
        for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=3)):
            shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 16, 77]), max_size=5).filter(small))
            value = data.draw(st.sampled_from([0.0, 1.0, -1.0, 1e4, float("nan"), float("inf")]))
            dtype = data.draw(st.sampled_from(dtypes))
            same = data.draw(st.booleans())
            wrong[name] = torch.full(list(tensors[name].shape) if same else shape, value).to(dtype)
        save_file(wrong, place / "run.safetensors", metadata={KEY: header})
        if trace := opened(place / "run.safetensors"):
            read_all(trace, place / "page.html")

    attack(cases, one)


def small(shape):
    return math.prod(shape) < 10**5


@forms(150, share=0.2)
def test_a_trace_of_damaged_bytes_opens_or_is_one_sentence(saved, tmp_path_factory, cases):
    whole, file = saved.read_bytes(), tmp_path_factory.mktemp("bytes") / "run.safetensors"
    length = int.from_bytes(whole[:8], "little")
    listed, values = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    ways = [path for path in places(listed) if path and path[0] != "__metadata__"]

    def one(data):
        if data.draw(st.booleans()):  # what safetensors says of its tensors
            head = json.dumps(changed(listed, data.draw(st.sampled_from(ways)), data.draw(JSON))).encode()
            file.write_bytes(len(head).to_bytes(8, "little") + head + values)
        else:
            file.write_bytes(damaged_bytes(data, whole[: length + 200]) + whole[length + 200 :])
        if trace := opened(file):
            assert all(isinstance(record.value, torch.Tensor) for record in trace)

    attack(cases, one)


@forms(150, share=0.3)
def test_settings_that_are_damaged_are_one_sentence(saved, cases):
    record = sdkit.read_settings(saved.with_suffix(".png"))
    ways = list(places(record))

    def one(data):
        wrong = changed(record, data.draw(st.sampled_from(ways)), data.draw(JSON | st.just("nothing")))
        try:
            check_record(wrong, "a.png", ["seed"])
        except ValueError as error:
            assert "the settings in a.png are damaged: " in str(error)

    attack(cases, one)


@forms(60, share=0.1)
def test_text_in_a_picture_is_settings_or_one_sentence(saved, tmp_path_factory, cases):
    whole = json.dumps(sdkit.read_settings(saved.with_suffix(".png"))).encode()
    file, picture = tmp_path_factory.mktemp("text") / "a.png", Image.new("RGB", (8, 8))

    def one(data):
        text = damaged_bytes(data, whole) if data.draw(st.booleans()) else json.dumps(data.draw(JSON)).encode()
        info = PngInfo()
        info.add_itxt("sdkit", text.decode("utf-8", "replace"))
        picture.save(file, pnginfo=info)
        try:
            settings = sdkit.read_settings(file)
        except ValueError as error:
            assert str(file) in str(error)
            assert "\n" not in str(error)
        else:
            assert isinstance(settings, dict)

    attack(cases, one)


@forms(100, share=0.1)
@pytest.mark.filterwarnings("ignore")  # of a size that 8 does not divide
def test_a_damaged_picture_is_one_sentence_that_names_it(saved, tmp_path_factory, cases):
    whole, place = saved.with_suffix(".png").read_bytes(), tmp_path_factory.mktemp("pictures") / "damaged.png"

    def one(data):
        place.write_bytes(damaged_bytes(data, whole))
        for read in (sdkit.encode, sdkit.read_settings):
            try:
                read(place)
            except ValueError as error:
                assert "damaged.png" in str(error)
                assert "\n" not in str(error)

    attack(cases, one)


@forms(100, share=0.14)
def test_an_index_names_known_classes_or_is_one_sentence(folder, cases):
    index = json.loads((folder / "model_index.json").read_text())
    ways = list(places(index))

    def one(data):
        wrong = changed(index, data.draw(st.sampled_from(ways)), data.draw(JSON | st.just("nothing")))
        try:
            assert check_index(wrong, "a folder") in PIPELINES
        except ValueError as error:
            assert "'a folder'" in str(error)

    attack(cases, one)


CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")


@forms(12, share=0.01)
@pytest.mark.filterwarnings("ignore")  # of libraries, about what they find in a configuration
def test_a_folder_of_damaged_configurations_loads_or_is_one_sentence(folder, tmp_path_factory, cases):
    place = shutil.copytree(folder, tmp_path_factory.mktemp("configs") / "model")

    def one(data):
        name = data.draw(st.sampled_from(["model_index.json", *CONFIGS]))
        content = json.loads((folder / name).read_text())
        wrong = changed(content, data.draw(st.sampled_from(list(places(content)))), data.draw(JSON))
        (place / name).write_text(json.dumps(wrong))
        try:
            sdkit.load(place, device="cpu")
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error)
        finally:
            shutil.copyfile(folder / name, place / name)

    attack(cases, one)


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is lost

WRITERS = {
    "a.png": "result.save(sys.argv[1])",
    "a.safetensors": "trace.save(sys.argv[1])",
    "a.html": "trace.report(sys.argv[1])",
    "a.gif": "sdkit.animate(trace, sys.argv[1])",
    "a.webp": "sdkit.animate(trace, sys.argv[1])",
    "a.mp4": "sdkit.animate(trace, sys.argv[1])",
}


def test_with_a_full_disk_what_was_there_stays_and_the_reason_is_said(tmp_path):
    """A limit on the size of files stands for the disk; it holds for the programs that sdkit starts as well."""
    for name in WRITERS:
        (tmp_path / name).write_bytes(b"what was there")
    code = f"""
import resource, signal, sys, sdkit
trace = sdkit.Trace()
result = sdkit.text_to_image("a star", seed=1, num_inference_steps=2, hooks=[trace])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
for name, line in {WRITERS!r}.items():
    sys.argv[1:] = [name]
    try:
        exec(line)
    except OSError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    for name, line in zip(WRITERS, lines, strict=True):
        assert line.startswith(f"'{name}' could not be written, and what was there is unchanged: "), done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(WRITERS, b"what was there")


def test_a_file_keeps_its_permissions_and_a_link_leads_where_it_led(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "a.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    save_picture(Image.new("RGB", (8, 8)), link, {})
    assert link.is_symlink()
    assert target.read_bytes() != b"old"
    assert target.stat().st_mode & 0o777 == 0o640
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "new") as part:
        part.write_text("x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failure_within_leaves_what_was_there_and_no_part(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), whole_file(tmp_path / "a") as part:
        part.write_text("half")
        raise KeyError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_picture_is_not_made_again_over_itself(saved, capsys):
    from sdkit.cli import main

    picture = saved.with_suffix(".png")
    before = picture.read_bytes()
    assert main(["rerun", str(picture), "-o", str(picture)]) == 2
    assert "is the picture to make again; give the new one another name with -o" in capsys.readouterr().err
    assert picture.read_bytes() == before


def test_what_a_file_says_commands_no_terminal(saved, tmp_path, capsys):
    from sdkit.cli import main

    settings_of_it = sdkit.read_settings(saved.with_suffix(".png"))
    settings_of_it["versions"] = settings_of_it["versions"] | {"torch": "\x1b]0;pwned\x07"}
    save_picture(Image.open(saved.with_suffix(".png")), tmp_path / "a.png", settings_of_it)
    assert main(["rerun", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]) == 0
    said = capsys.readouterr().err
    assert "torch was \ufffd]0;pwned\ufffd and is" in said
    assert "\x1b" not in said


def test_dollars_in_a_prompt_stay_dollars_in_figures(tiny):
    trace = Trace()
    sdkit.text_to_image(r"a star for $5 and $\frac", model=tiny, seed=1, num_inference_steps=1, hooks=[trace])
    figure = sdkit.plots.film_strip(trace)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert torch.is_tensor(trace.latents)
    assert Path(__file__).name == "test_trust.py"
