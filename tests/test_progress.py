"""Bars of progress: where somebody sees them, and nowhere else."""

import io
import os
import pty
import subprocess
import sys
import termios
from contextlib import contextmanager, redirect_stderr

import numpy as np
import pytest

import sdkit


class Terminal(io.StringIO):
    def isatty(self):
        return True


@contextmanager
def terminal():
    seen = Terminal()
    with redirect_stderr(seen):
        yield seen


def test_a_run_shows_its_steps_in_a_terminal_and_takes_the_bar_away(tiny):
    with terminal() as seen:
        sdkit.text_to_image("a red star", model=tiny, seed=7, num_inference_steps=4)
    assert "| 0/4 [" in seen.getvalue()
    assert seen.getvalue().endswith(" \r")


def test_a_run_from_a_picture_counts_the_steps_that_it_takes(tiny):
    with terminal() as seen:
        picture = sdkit.text_to_image("a red star", model=tiny, seed=7, num_inference_steps=1, progress=False).image
    assert seen.getvalue() == ""
    with terminal() as seen:
        sdkit.image_to_image(picture, "a red star", model=tiny, seed=7, num_inference_steps=10, strength=0.5)
    assert "| 0/5 [" in seen.getvalue()


def test_a_pipeline_whose_own_bar_is_off_shows_none(sd1):
    trace = sdkit.Trace()
    with terminal() as seen:
        sdkit.text_to_image("a red star", model=sd1, seed=7, num_inference_steps=2, hooks=[trace])
        trace.branch(1, prompt="a blue star")
        sdkit.invert(np.zeros((64, 64, 3)), model=sd1, num_inference_steps=2, refinements=0)
    assert seen.getvalue() == ""


def test_a_branch_counts_the_steps_that_it_takes(tiny):
    trace = sdkit.Trace()
    sdkit.text_to_image("a red star", model=tiny, seed=7, num_inference_steps=5, hooks=[trace])
    with terminal() as seen:
        trace.branch(2, prompt="a blue star")
    assert "| 0/3 [" in seen.getvalue()


def test_an_inversion_counts_its_steps_and_a_walk_its_frames(tiny):
    with terminal() as seen:
        sdkit.invert(np.zeros((64, 64, 3)), model=tiny, num_inference_steps=2, refinements=0)
        sdkit.interpolate("a red star", "a blue star", frames=3, num_inference_steps=1, model=tiny)
    assert "| 0/2 [" in seen.getvalue()
    assert "| 0/3 [" in seen.getvalue()


def test_nothing_is_written_where_nobody_looks(tiny, capsys):
    sdkit.text_to_image("a red star", model=tiny, seed=7, num_inference_steps=2)
    assert capsys.readouterr().err == ""


def test_progress_is_true_or_false(tiny):
    with pytest.raises(TypeError, match="progress must be True or False, but is 'no'"):
        sdkit.text_to_image("a red star", model=tiny, progress="no")


@pytest.mark.slow
def test_the_command_line_says_what_it_does_in_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    command = [
        sys.executable,
        "-m",
        "sdkit",
        "generate",
        "a red giraffe",
        "--seed",
        "7",
        "--num-inference-steps",
        "2",
    ]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.stdout.decode().startswith("out.png  'a red giraffe', seed 7")
    assert shown.index("sdkit: loading the embedded model ...") < shown.index("does not know 'giraffe'")
    assert "| 0/2 [" in shown
