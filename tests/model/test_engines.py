"""Engines in the place of the U-Net and the decoder: what they compute, what they leave to torch, what they say."""

import json
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import random_pipeline, random_xl_pipeline

import sdkit
from sdkit import Stage
from sdkit.model import static
from sdkit.model.weights import sum_of

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
RUN = {"num_inference_steps": 3, "seed": 7, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def by_openvino():
    return sdkit.load(engine="openvino")


def pipeline(tmp_path, **options):
    made = random_pipeline(tmp_path, **options)
    made.set_progress_bar_config(disable=True)
    return made


def apart(one, other):
    return float((one.latents - other.latents).norm() / other.latents.norm())


def converted(cache):
    return {path.name for path in (cache / "sdkit" / "openvino").iterdir()}


@needs_openvino
@pytest.mark.parametrize(
    "asked",
    [
        {},
        pytest.param({"height": 96, "width": 136}, marks=pytest.mark.slow),
        pytest.param({"prompt": ["a red star", "a cat"]}, marks=pytest.mark.slow),
        {"guidance_scale": 1.0},
    ],
    ids=["square", "of odd latents", "two", "unguided"],
)
def test_openvino_draws_what_torch_draws_to_a_ten_thousandth(asked, tiny, by_openvino):
    asked = {"prompt": "a red star", **RUN, **asked}
    plain, made = sdkit.text_to_image(model=tiny, **asked), sdkit.text_to_image(model=by_openvino, **asked)
    assert apart(made, plain) < 1e-4
    for one, other in zip(made, plain, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
    assert made.settings["engine"] == "openvino"
    assert "engine" not in plain.settings


@pytest.mark.slow
@needs_openvino
def test_openvino_computes_sdxl_with_its_sizes_and_pooled_words(tmp_path):
    xl = random_xl_pipeline(tmp_path)
    plain = sdkit.text_to_image("a red star", model=sdkit.load(xl), **RUN)
    made = sdkit.text_to_image("a red star", model=sdkit.load(xl, engine="openvino"), **RUN)
    assert apart(made, plain) < 1e-4
    assert made.settings["engine"] == "openvino"


@pytest.mark.slow
@needs_openvino
def test_what_was_converted_is_kept_and_serves_other_shapes(cache, by_openvino):
    sdkit.text_to_image("a red star", model=by_openvino, **RUN)
    before = converted(cache)
    sdkit.text_to_image("a red star", model=by_openvino, height=64, width=64, **RUN)
    static._MADE.clear()  # as in another process
    sdkit.text_to_image("a red star", model=by_openvino, **RUN)
    assert converted(cache) == before


@needs_openvino
def test_changed_weights_are_converted_anew(tmp_path):
    model = sdkit.load(pipeline(tmp_path), engine="openvino")
    before = sdkit.text_to_image("a red star", model=model, **RUN)
    with torch.no_grad():
        model.unet.conv_out.weight.data.view(-1)[7] += 1  # one value, which torch does not hear of
    made = sdkit.text_to_image("a red star", model=model, **RUN)
    plain = sdkit.text_to_image("a red star", model=sdkit.load(model.pipeline), **RUN)
    assert made.settings["engine"] == "openvino"
    assert apart(made, plain) < 1e-4 < apart(made, before)


@needs_openvino
def test_hooks_that_look_inside_have_torch_compute_the_run_to_the_bit(tiny, by_openvino):
    plain = sdkit.text_to_image("a red star", model=tiny, **RUN)
    seen = []
    look = sdkit.on(Stage.BLOCK)(lambda event: seen.append(event.layer))
    with pytest.warns(UserWarning, match="hooks cannot see into compiled code: this run calls the U-Net uncompiled"):
        looked = sdkit.text_to_image("a red star", model=by_openvino, hooks=[look], **RUN)
    assert seen
    assert looked.settings["engine"] == "torch"
    assert torch.equal(looked.latents, plain.latents)
    assert looked.image.tobytes() == plain.image.tobytes()


@needs_openvino
def test_a_hook_that_asks_for_gradients_gets_them_from_torch(by_openvino):
    slopes = []

    @sdkit.on(Stage.NOISE, steps=[1])
    def steep(event):
        with torch.enable_grad():
            x = event.run.seen[Stage.LATENT].clone().requires_grad_()
            slopes.append(torch.autograd.grad(event.run.predict(x).sum(), x)[0])

    with pytest.warns(UserWarning, match="torch computes the U-Net, and not openvino: gradients are asked for"):
        made = sdkit.text_to_image("a red star", model=by_openvino, hooks=[steep], **RUN)
    assert float(slopes[0].norm()) > 0
    assert made.settings["engine"] == "openvino and torch"


@needs_openvino
def test_what_openvino_cannot_compute_is_left_to_torch_and_said_once(tmp_path):
    loaded = pipeline(tmp_path)
    plain = sdkit.text_to_image("a red star", model=sdkit.load(loaded), **RUN)
    handle = loaded.unet.mid_block.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="something is hooked on its modules") as said:
        made = sdkit.text_to_image("a red star", model=sdkit.load(loaded, engine="openvino"), **RUN)
    handle.remove()
    assert len([one for one in said if "torch computes" in str(one.message)]) == 1
    assert torch.equal(made.latents, plain.latents)
    assert made.settings["engine"] == "openvino and torch"  # which decoded


@needs_openvino
def test_a_decoder_in_tiles_is_left_to_torch(tmp_path):
    loaded = pipeline(tmp_path)
    loaded.vae.enable_tiling()
    with pytest.warns(UserWarning, match="torch computes the decoder, and not openvino: it takes use_tiling"):
        sdkit.text_to_image("a red star", model=sdkit.load(loaded, engine="openvino"), **RUN)


@needs_openvino
def test_rerun_says_that_another_engine_made_the_picture(tmp_path, tiny, by_openvino):
    path = tmp_path / "star.png"
    sdkit.text_to_image("a red star", model=by_openvino, **RUN).save(path)
    with pytest.warns(UserWarning, match="engine was openvino and is torch"):
        sdkit.rerun(path, model=tiny)
    with warnings.catch_warnings(action="error"):
        assert sdkit.rerun(path, model=by_openvino).settings["engine"] == "openvino"


@needs_openvino
def test_importing_openvino_reports_it_to_nobody():
    code = (
        "import sys\nfrom sdkit.model import static\nwith static._unreported():\n    import openvino\n"
        "import json; print(json.dumps([name for name in sys.modules if name.startswith('openvino_telemetry')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@needs_openvino
def test_what_was_used_longest_ago_goes_when_the_cache_is_full(cache, by_openvino, monkeypatch):
    sdkit.text_to_image("a red star", model=by_openvino, **RUN)
    monkeypatch.setattr(static, "MOST", 0)
    newest = max((cache / "sdkit" / "openvino").iterdir(), key=lambda one: one.stat().st_mtime)
    static._tidy(keep=newest)
    assert converted(cache) == {newest.name}


@needs_openvino
def test_openvino_refuses_a_model_in_half_precision():
    with pytest.raises(ValueError, match=r"computes in float32 on a CPU, but the model is in torch\.float16 on cpu"):
        sdkit.load(dtype="float16", engine="openvino")


def test_an_unknown_engine_is_answered_with_those_that_there_are():
    with pytest.raises(ValueError, match="unknown engine 'onnx'"):
        sdkit.load(engine="onnx")


def test_an_engine_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("sdkit.inputs.checks.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'pip install "sdkit-stages\[openvino\]"'):
        sdkit.load(engine="openvino")


def test_a_model_keeps_its_engine_and_can_be_given_another(tmp_path):
    model = sdkit.load(random_pipeline(tmp_path), engine="compile")
    assert sdkit.load(model) is model
    assert model.weakly()().engine == "compile"
    assert sdkit.load(model, engine="torch").engine == "torch"


def test_the_sum_of_weights_changes_with_any_value(tmp_path):
    unet = random_pipeline(tmp_path).unet
    sums = {sum_of(unet)}
    for weight in (unet.conv_in.weight, unet.conv_out.bias, unet.mid_block.resnets[0].conv1.weight):
        weight.data.view(-1)[-1] += 1e-3
        sums.add(sum_of(unet))
    assert len(sums) == 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU by g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's, of its own calls
def test_compiled_blocks_draw_what_torch_draws_and_leave_nothing_on_the_model(tmp_path):
    loaded = random_pipeline(tmp_path)
    plain = sdkit.text_to_image("a red star", model=sdkit.load(loaded), **RUN)
    made = sdkit.text_to_image("a red star", model=sdkit.load(loaded, engine="compile"), **RUN)
    assert apart(made, plain) < 1e-4
    assert made.settings["engine"] == "compile"
    assert all(one._compiled_call_impl is None for one in loaded.unet.modules())
    assert torch.equal(sdkit.text_to_image("a red star", model=sdkit.load(loaded), **RUN).latents, plain.latents)
