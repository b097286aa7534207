"""What strangers' files may not do, and what full disks and damaged files do not lose."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_pipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from original_layout import save as save_original
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sdkit
from sdkit import Trace
from sdkit.files import whole_file
from sdkit.inputs.record import check_record
from sdkit.model import schedulers
from sdkit.pictures import save_png
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
    folder = tmp_path_factory.mktemp("saved")
    trace = Trace(["tokens", "latent", "guided", "denoised"])
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
    save_png(Image.new("RGB", (128, 128)), tmp_path / "a.png", settings)
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


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**9)
    | st.floats()
    | st.sampled_from(["", "0", "<script>", "évil\x1b"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "class", "t"]), inner, max_size=2)
    ),
    max_leaves=4,
)
LONG = settings(max_examples=150, suppress_health_check=list(HealthCheck))


def places(value, path=()):
    """The ways to everything within a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def changed(value, path, other):
    """A copy with another value, or none, at a place."""
    if not path:
        return other
    new = copy.deepcopy(value)
    at = new
    for key in path[:-1]:
        at = at[key]
    if other == "nothing":
        del at[path[-1]]
    else:
        at[path[-1]] = other
    return new


@LONG
@given(data=st.data())
def test_a_trace_with_a_damaged_header_opens_or_is_one_sentence(saved, tmp_path_factory, data):
    header = header_of(saved)
    path = data.draw(st.sampled_from([place for place in places(header) if place]))
    header = changed(header, path, data.draw(JSON | st.just("nothing")))
    file = with_header(saved, tmp_path_factory.mktemp("damaged") / "run.safetensors", header)
    try:
        trace = Trace.load(file)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    html = trace._repr_html_()
    assert "<script>\nfor" in html
    assert html.count("<script>") == 1
    trace.summary()
    repr(trace)
    try:
        trace.report(file.with_suffix(".html"))
    except ValueError as error:
        assert "holds no latents to draw" in str(error)


@LONG
@given(data=st.data())
def test_settings_that_are_damaged_are_one_sentence(saved, data):
    record = sdkit.read_settings(saved.with_suffix(".png"))
    path = data.draw(st.sampled_from(list(places(record))))
    try:
        check_record(changed(record, path, data.draw(JSON | st.just("nothing"))), "a.png", ["seed"])
    except ValueError as error:
        assert "the settings in a.png are damaged: " in str(error)


@settings(LONG, max_examples=100)
@given(data=st.data())
def test_a_damaged_picture_is_one_sentence_that_names_it(saved, tmp_path_factory, data):
    whole = saved.with_suffix(".png").read_bytes()
    place = tmp_path_factory.mktemp("pictures") / "damaged.png"
    if data.draw(st.booleans()):
        place.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        place.write_bytes(whole[:at] + data.draw(st.binary(min_size=1, max_size=4)) + whole[at + 1 :])
    for read in (sdkit.encode, sdkit.read_settings):
        try:
            read(place)
        except ValueError as error:
            assert "damaged.png" in str(error)


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
    save_png(Image.new("RGB", (8, 8)), link, {})
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
    save_png(Image.open(saved.with_suffix(".png")), tmp_path / "a.png", settings_of_it)
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
