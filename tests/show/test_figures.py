"""Figures of a trace: what is on them."""

import importlib
import io
import re
import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

import sdkit
from sdkit import Stage, plots
from sdkit.model.schedulers import noise_schedule
from sdkit.show.view import colours
from sdkit.tiny import drawing


def panels(figure):
    """The axes that show a picture."""
    return [axis for axis in figure.axes if axis.images]


def shown(axis, number=0):
    return torch.as_tensor(np.asarray(axis.images[number].get_array()))


ALL = {
    "film_strip": lambda of, dark: plots.film_strip(of.seen, dark=dark),
    "channels": lambda of, dark: plots.channels(of.seen, dark=dark),
    "noise_schedule": lambda of, dark: plots.noise_schedule(of.seen, dark=dark),
    "guidance": lambda of, dark: plots.guidance(of.seen, dark=dark),
    "word_maps": lambda of, dark: plots.word_maps(of.seen, of.heat, dark=dark),
    "words_over_time": lambda of, dark: plots.words_over_time(of.seen, of.heat, dark=dark),
    "histograms": lambda of, dark: plots.histograms(of.seen, dark=dark),
    "trajectory": lambda of, dark: plots.trajectory(of.seen, dark=dark),
    "compare": lambda of, dark: plots.compare(of.seen, of.seen, dark=dark),
    "journey": lambda of, dark: plots.journey(of.walk, of.seen, dark=dark),
}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_every_figure_has_a_title_and_its_paper_and_leaves_matplotlib_as_it_was(seen, heat, walk, name, dark):
    before = dict(mpl.rcParams)
    figure = ALL[name](SimpleNamespace(seen=seen, heat=heat, walk=walk), dark)
    assert figure.get_suptitle()
    assert to_hex(figure.get_facecolor()) == ("#16161a" if dark else "#ffffff")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    assert dict(mpl.rcParams) == before
    for axis in figure.axes:
        drawn = axis.lines or axis.patches
        assert not drawn or axis.get_xlabel(), f"{name} has an axis without a name"


def test_a_notebook_shows_a_figure_as_it_is(seen):
    png = Image.open(io.BytesIO(plots.channels(seen)._repr_png_()))
    assert png.format == "PNG"
    assert len(np.unique(np.asarray(png))) > 100


def test_the_film_strip_shows_both_latents_of_chosen_steps_and_the_picture(seen):
    figure = plots.film_strip(seen, columns=3)
    found = panels(figure)
    assert [axis.get_title().split("\n")[0] for axis in found[:4]] == ["step 0", "step 2", "step 5", "picture"]
    assert len(found) == 8
    paint = colours(seen)
    assert torch.allclose(shown(found[1]), paint(seen.at(2)[Stage.LATENT].value)[0].movedim(0, -1), atol=1e-5)
    assert torch.allclose(shown(found[5]), paint(seen.at(2)[Stage.DENOISED].value)[0].movedim(0, -1))
    assert torch.allclose(shown(found[3]), (seen[Stage.IMAGE][0].value[0] / 2 + 0.5).clamp(0, 1).movedim(0, -1))


def test_the_film_strip_of_a_forward_process_shows_each_level_decoded(tiny):
    trace = sdkit.diffuse(drawing.draw("a red star"), 3, model=tiny, seed=1)
    found = panels(plots.film_strip(trace))
    assert len(found) == 6
    for i in range(3):
        assert torch.allclose(
            shown(found[3 + i]), (trace.at(i)[Stage.IMAGE].value[0] / 2 + 0.5).clamp(0, 1).movedim(0, -1)
        )
    trace = sdkit.Trace(["latent"])
    sdkit.text_to_image("a star", model=tiny, num_inference_steps=1, seed=0, hooks=[trace])
    with pytest.raises(ValueError, match="a film strip needs the stages latent and denoised of a run"):
        plots.film_strip(trace)


def test_the_channels_are_the_numbers_of_the_latent(seen):
    clean = seen[Stage.LATENT][-1].value
    for figure, value in (
        (plots.channels(seen), clean),
        (plots.channels(clean), clean),
        (plots.channels(seen, step=2), seen.at(2)[Stage.LATENT].value),
    ):
        found = [axis for axis in panels(figure) if axis.get_title()]
        assert len(found) == 4
        assert all(torch.equal(shown(axis), plane) for axis, plane in zip(found, value[0], strict=True))
        assert f"mean {value[0, 1].mean():.2f}, std {value[0, 1].std():.2f}" in found[1].get_title()
    with pytest.raises(TypeError, match=r"expected a Trace, .* but got a str"):
        plots.channels("star.png")


def test_the_plotted_ratio_is_that_of_the_schedule(seen):
    left, right = plots.noise_schedule(seen).axes
    schedule = noise_schedule(seen.settings["scheduler"])
    assert np.allclose(right.lines[0].get_ydata(), schedule.log_snr.exp())
    times = [record.t for record in seen[Stage.DENOISED]]
    assert right.lines[1].get_xdata().tolist() == times
    assert np.allclose(right.lines[1].get_ydata(), schedule.log_snr.exp()[times], rtol=1e-4)
    assert np.allclose(left.lines[0].get_ydata() ** 2 + left.lines[1].get_ydata() ** 2, 1)


def test_guidance_shows_both_halves_and_how_far_they_differ(seen):
    found = panels(plots.guidance(seen, 3))[:4]
    uncond, cond = seen.at(3)[Stage.NOISE].value
    paint = colours(seen)
    assert torch.allclose(shown(found[0]), paint(uncond[None])[0].movedim(0, -1))
    assert torch.allclose(shown(found[1]), paint(cond[None])[0].movedim(0, -1))
    assert torch.allclose(shown(found[2]), (cond - uncond).norm(dim=0))
    assert torch.allclose(shown(found[3]), paint(seen.at(3)[Stage.GUIDED].value)[0].movedim(0, -1))


def test_guidance_of_a_run_without_it_is_refused(tiny):
    trace = sdkit.Trace()
    sdkit.text_to_image("a cat", model=tiny, seed=1, num_inference_steps=1, guidance_scale=1.0, hooks=[trace])
    with pytest.raises(ValueError, match="guidance_scale above 1"):
        plots.guidance(trace)


def test_word_maps_lay_the_heat_over_the_picture(seen, heat):
    found = [axis for axis in panels(plots.word_maps(seen, heat)) if axis.get_title()]
    assert [axis.get_title() for axis in found] == ["the picture", *heat.words]
    picture = seen[Stage.IMAGE][0].value[0] / 2 + 0.5
    assert torch.allclose(shown(found[0], 0), picture.clamp(0, 1).movedim(0, -1))
    assert torch.allclose(shown(found[2], 0), picture.mean(dim=0))
    assert torch.equal(shown(found[2], 1), heat.heat("star"))
    _, one = [axis for axis in panels(plots.word_maps(seen, heat, ["blue"], step=2)) if axis.get_title()]
    assert torch.equal(shown(one, 1), heat.heat("blue", step=2))


def test_words_over_time_has_a_row_for_each_word_and_a_column_for_each_step(seen, heat):
    found = [axis for axis in panels(plots.words_over_time(seen, heat, columns=4)) if len(axis.images) == 2]
    assert len(found) == 3 * 4
    assert torch.equal(shown(found[4 + 3], 1), heat.heat("star", step=5))


def test_histograms_show_all_values_against_the_normal_distribution(seen):
    first = plots.histograms(seen, columns=3).axes[0]
    heights = np.array([bar.get_height() for bar in first.patches])
    values = seen.at(0)[Stage.LATENT].value.flatten().numpy()
    assert np.allclose(heights, np.histogram(values, bins=np.linspace(-4.5, 4.5, 46), density=True)[0])
    x, y = first.lines[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=1e-3)


def test_the_trajectory_keeps_distances_and_ends_where_all_meet(seen):
    lines = plots.trajectory(seen).axes[0].lines
    walk, star, belief = (np.stack(line.get_data(), axis=1) for line in lines)
    assert len(walk) == len(belief) == 7  # six steps and the clean latent
    assert np.allclose(walk[-1], belief[-1])
    assert np.allclose(walk[-1], star[0])
    flat = torch.cat([record.value.flatten(1) for record in seen[Stage.LATENT]])
    far = (flat[0] - flat[-1]).norm().item()
    assert 0.5 * far < np.linalg.norm(walk[0] - walk[-1]) <= far * (1 + 1e-5)


def test_two_runs_compared_are_as_far_apart_as_their_latents(seen, tiny):
    other = seen.branch(2, prompt="a yellow fish on a blue background", model=tiny)
    figure = plots.compare(seen, other, columns=4)
    assert len(panels(figure)) == 8
    (axis,) = [axis for axis in figure.axes if axis.lines]
    distance = dict(zip(*axis.lines[1].get_data(), strict=True))
    assert distance[1] == 0
    a, b = (trace.at(4)[Stage.DENOISED].value for trace in (seen, other))
    assert distance[4] == pytest.approx(((a - b).norm() / a.norm()).item(), rel=1e-4)


def test_the_journey_goes_from_the_picture_to_noise_and_from_noise_to_the_picture(seen, walk):
    titles = [axis.get_title() for axis in panels(plots.journey(walk, seen, columns=4))]
    assert [title.split("\n")[0] for title in titles[:5]] == ["picture", "t = 0", "t = 300", "t = 600", "t = 999"]
    assert titles[-1] == "picture\n"
    assert [int(title.split("\n")[0][4:]) for title in titles[5:-1]] == [seen.levels[step].t for step in (0, 2, 3, 5)]


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith(("sdkit.show.figures", "sdkit.show.style"))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=re.escape('pip install "sdkit-stages[plots]"')):
        importlib.import_module("sdkit.show.figures")
