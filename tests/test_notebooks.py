"""The notebooks run from the first cell to the last, and are kept with their outputs."""

import dataclasses
import importlib.metadata
import importlib.util
import re
from pathlib import Path

import accelerate
import nbformat
import pytest
import torch
from conftest import random_pipeline, random_xl_pipeline
from diffusers import PNDMScheduler, StableDiffusionPipeline
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats

import sdkit

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]_*.ipynb"))
spec = importlib.util.spec_from_file_location("build_notebooks", NOTEBOOKS[0].parent / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def test_the_course_has_seven_notebooks_in_order():
    assert [path.name[0] for path in NOTEBOOKS] == list("1234567")


class Results(DisplayHook):
    """What a cell ends with is gathered beside what it displays on its way."""

    def write_format_data(self, format_dict, md_dict=None):
        self.shell.display_pub.publish(format_dict, md_dict)


@pytest.fixture(scope="module")
def shell():
    """What a notebook's kernel is around, in this process: the libraries are imported once for all notebooks."""
    shell = InteractiveShell.instance(displayhook_class=Results, display_pub_class=CapturingDisplayPublisher)
    select_figure_formats(shell, {"png"})
    yield shell
    InteractiveShell.clear_instance()


def pictures_of(path, shell, model=None):
    """Run a notebook, and count the pictures that it shows."""
    shell.reset()
    shell.display_pub.outputs.clear()
    shell.user_ns["other"] = model
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            source = cell.source if model is None else re.sub(r"^model = .*", "model = other", cell.source, flags=re.M)
            shell.run_cell(source).raise_error()
    return sum(bool({"image/png", "image/jpeg"} & shown["data"].keys()) for shown in shell.display_pub.outputs)


def test_a_preview_shows_each_picture_in_the_place_of_the_one_before(shell):
    shell.display_pub.outputs.clear()
    run = 'sdkit.text_to_image("a red star", seed=7, num_inference_steps=4, hooks=[hook])'
    shell.run_cell(f"import sdkit\nhook = sdkit.hooks.preview(every=2)\n{run}\n{run}\nNone").raise_error()
    shown = [(one["transient"]["display_id"], one["update"]) for one in shell.display_pub.outputs]
    places = list(dict(shown))
    assert len(places) == 2  # each run has one of its own
    assert shown == [(place, again) for place in places for again in (False, True, True)]
    assert all("image/png" in one["data"] for one in shell.display_pub.outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end_and_shows_what_it_says(path, shell, monkeypatch, tmp_path):
    monkeypatch.setenv("SDKIT_QUICK", "1")  # notebook 6 then trains for a few steps only
    monkeypatch.chdir(tmp_path)
    assert pictures_of(path, shell) >= 5


@pytest.fixture(scope="module")
def like_sd1(tmp_path_factory):
    """Random components in the layout of Stable Diffusion 1.5, narrow, for 256x256, as 512x512 takes ten times as
    long; 20 steps."""
    pipeline = random_pipeline(
        tmp_path_factory.mktemp("tokenizer"),
        sample_size=32,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    return dataclasses.replace(sdkit.load(pipeline), num_inference_steps=20)


@pytest.fixture(scope="module")
def like_sdxl(tmp_path_factory):
    """The same of SDXL, for 128x128."""
    pipeline = random_xl_pipeline(
        tmp_path_factory.mktemp("tokenizer"),
        sample_size=16,
        block_out_channels=(8, 16, 16),
        transformer_layers_per_block=(1, 1, 2),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    )
    return dataclasses.replace(sdkit.load(pipeline), num_inference_steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS[:5], ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_model_like_stable_diffusion_1_5(path, shell, like_sd1, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert pictures_of(path, shell, like_sd1) >= 5
    if path.name[0] in "23":  # each works out by hand what sdkit recorded
        (difference,) = re.findall(r"largest difference:? ([\d.e+-]+)", capsys.readouterr().out)
        assert float(difference) < 1e-4


@pytest.fixture(scope="module")
def lying_elsewhere():
    """The embedded model, whose weights lie on another device than the one that computes: on "meta", as accelerate
    puts them, from where it fetches each for its layer."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        Path(sdkit.__file__).parent / "tiny" / "weights", dtype=torch.float32
    )
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        accelerate.cpu_offload(part, execution_device="cpu")
        assert next(part.parameters()).device.type == "meta"
    return dataclasses.replace(sdkit.load(pipeline), num_inference_steps=20, guidance_scale=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS[:5], ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_model_whose_weights_lie_elsewhere(path, shell, lying_elsewhere, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert pictures_of(path, shell, lying_elsewhere) >= 5


@pytest.mark.slow
def test_a_notebook_runs_on_a_model_like_sdxl(shell, like_sdxl, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert pictures_of(NOTEBOOKS[4], shell, like_sdxl) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_small_and_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert any(cell.get("outputs") for cell in notebook.cells)
    title, setup = notebook.cells[0].source, next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert title.startswith(f"# {path.name[0]}. ")
    assert (title, setup) == build.head(path, title, setup), "write it anew: python notebooks/build.py heads"
    assert "# model = sdkit.load(" in setup  # one line to a real checkpoint
    assert not re.search(r"/(tmp|root|home|work)/", path.read_text(encoding="utf-8"))


def test_a_badge_opens_its_very_notebook_once_the_repository_is_known(monkeypatch):
    path = NOTEBOOKS[0]
    cells = nbformat.read(path, as_version=4).cells
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    assert build.REPOSITORY or "badge" not in cells[0].source  # nothing is a link that fails
    monkeypatch.setattr(build, "REPOSITORY", "https://github.com/someone/sdkit")
    title, setup = build.head(path, cells[0].source, first)
    assert f"colab.research.google.com/github/someone/sdkit/blob/main/notebooks/{path.name})" in title
    assert '"sdkit-stages @ git+https://github.com/someone/sdkit"' in setup
    assert build.head(path, title, setup) == (title, setup)
    monkeypatch.setattr(build, "REPOSITORY", None)
    assert build.head(path, title, setup) == build.head(path, cells[0].source, first)


def test_the_set_up_cell_runs_where_sdkit_is_and_knows_the_other_project(monkeypatch, tmp_path):
    cell = build.SETUP.replace("FETCHED", "")
    names = {}
    exec(cell, names)
    assert names["sdkit"].load
    other = tmp_path / "sdkit-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: sdkit\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "sdkit" in {one.name for one in importlib.metadata.distributions()}
    with pytest.raises(RuntimeError, match="another project is installed as sdkit"):
        exec(cell, {})
