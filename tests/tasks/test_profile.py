"""Where the time and the memory of a run go."""

import time

import pytest
import torch
from matplotlib.colors import to_hex

import sdkit
from sdkit import Stage

RUN = {"seed": 7, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def found(tiny):
    return sdkit.profile("a red star", model=tiny, **RUN)


def test_it_tells_every_stage_that_the_run_shows_as_often_as_it_shows_it(tiny, found):
    trace = sdkit.Trace()
    sdkit.text_to_image("a red star", model=tiny, hooks=[trace], **RUN)
    times = {one.stage: one.times for one in found.spent}
    assert times.pop("end") == 1
    assert times.pop("context") == 2
    assert times == {stage: len(trace[stage]) for stage in map(Stage, times)}


def test_its_picture_is_that_of_the_run_without_it(tiny, found):
    result = sdkit.text_to_image("a red star", model=tiny, **RUN)
    assert torch.equal(found.result.latents, result.latents)


def test_time_that_a_hook_takes_is_told_with_its_stage_and_all_of_it_adds_up(tiny):
    @sdkit.on(Stage.GUIDED)
    def slow(event):
        time.sleep(0.2)

    began = time.perf_counter()
    found = sdkit.profile("a red star", model=tiny, hooks=[slow], **RUN)
    whole = time.perf_counter() - began
    guided = next(one for one in found.spent if one.stage == "guided")
    assert guided.seconds >= 0.4
    assert guided.median >= 0.2
    assert 0.4 <= found.seconds <= whole


def test_memory_that_a_hook_takes_is_told_with_its_stage(tiny):
    @sdkit.on(Stage.DENOISED, steps=[0])
    def large(event):
        torch.ones(2**28)  # a gibibyte, more than anything else here takes

    found = sdkit.profile("a red star", model=tiny, hooks=[large], **RUN)
    assert max(found.spent, key=lambda one: one.memory).stage == "denoised"


def test_a_picture_to_start_from_has_its_encoder_told(tiny, found):
    again = sdkit.profile("a red star", image=found.result.image, strength=0.5, model=tiny, **RUN)
    assert {"pixels", "posterior"} <= {one.stage for one in again.spent}


def test_printed_it_is_a_table_with_the_share_of_each_stage(found):
    first, _, *lines = str(found).splitlines()
    assert first.startswith("sdkit/tiny on cpu: ")
    assert [line.split()[0] for line in lines] == [one.stage for one in found.spent]
    assert sum(float(line.split()[3].rstrip("%")) for line in lines) == pytest.approx(100, abs=1)


def test_the_figure_has_a_bar_for_each_stage_as_long_as_its_time(found):
    figure = found.figure(dark=True)
    assert to_hex(figure.get_facecolor()) == "#16161a"
    assert [bar.get_width() for bar in figure.axes[0].patches] == [one.seconds for one in found.spent][::-1]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [one.stage for one in found.spent][::-1]


def test_what_is_no_argument_is_said():
    with pytest.raises(TypeError, match="num_inference_steps is meant"):
        sdkit.profile("a red star", steps=3)
