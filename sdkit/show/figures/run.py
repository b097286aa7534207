"""Figures of a run as a whole: its steps side by side, its way through latent space, two runs compared."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Stage
from sdkit.inputs.checks import typed
from sdkit.model import schedulers
from sdkit.show.figures.panels import colour_note, end_of, literal, show_picture, step_title, steps_of_both
from sdkit.show.style import Figure, drawn
from sdkit.show.view import by_step, check_finite, check_picture, colours, noise_share, prompt_of, spread_out, standard
from sdkit.trace.trace import Trace


@typed(columns=(1, math.inf))
def film_strip(trace: Trace, *, picture: int = 0, columns: int = 8, dark: bool = False) -> Figure:
    """The run as a film: x_t on its way from noise, and under it the x0 that each step predicted.

    The last column is the finished picture, over the clean latent that it was decoded from. Of a forward process, what
    `diffuse` returns, the lower row is each x_t decoded.

    Raises:
        ValueError: the trace has nothing for the lower row.

    Example:
        >>> sdkit.plots.film_strip(trace).savefig("strip.png")
    """
    check_picture(trace, picture)
    paint = colours(trace)
    noisy, clean = by_step(trace, Stage.LATENT), by_step(trace, Stage.DENOISED)
    decoded = {} if clean else by_step(trace, Stage.IMAGE)
    steps = spread_out(steps_of_both(noisy, clean or decoded), columns)
    if not steps:
        raise ValueError("a film strip needs the stages latent and denoised of a run, or latent and image of diffuse")
    final = [record for record in trace[Stage.LATENT] if record.step is None]
    images = [record for record in trace[Stage.IMAGE] if record.step is None]
    wide = len(steps) + bool(final)
    title = f"From noise to “{literal(prompt_of(trace, picture))}”" if clean else "A picture drowns in noise"
    with drawn(1.35 * wide + 0.9, 3.9, title, dark=dark) as figure:
        grid = figure.subplots(2, wide, squeeze=False)
        for column, step in enumerate(steps):
            show_picture(
                grid[0, column], paint(standard(trace, noisy[step], picture)[None])[0], step_title(step, trace)
            )
            below = paint(clean[step].value[picture][None])[0] if clean else decoded[step].value[picture] / 2 + 0.5
            show_picture(grid[1, column], below, "")
        if final:
            show_picture(grid[1, -1], paint(final[0].value[picture][None])[0], "")
            last = images[0].value[picture] / 2 + 0.5 if images else paint(final[0].value[picture][None])[0]
            show_picture(grid[0, -1], last, "picture\n" if images else "end\n")
        for row, name in enumerate(("$x_t$", "$x_0$" if clean else "decoded")):
            grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=16 if name[0] == "$" else 11)
        figure.supxlabel(colour_note(paint.true), fontsize=10, color=figure.ink.quiet)
    return figure


@typed()
def noise_schedule(trace: Trace, *, dark: bool = False) -> Figure:
    """How much of a noised picture is signal and how much is noise at each training timestep, and the signal-to-noise
    ratio, with the steps that the run took as dots (Ho et al. 2020, arXiv:2006.11239).

    Example:
        >>> sdkit.plots.noise_schedule(trace).savefig("schedule.png")
    """
    if "scheduler" not in trace.settings:
        raise ValueError("the trace holds no scheduler; take one that recorded a run")
    schedule, levels = schedulers.noise_schedule(trace.settings["scheduler"]), list(trace.levels.values())
    times = [level.t for level in levels]
    with drawn(12, 4.6, f"The noise schedule, and the {len(times)} levels of this run", dark=dark) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(schedule.alphas, label=r"signal $\alpha_t = \sqrt{\bar\alpha_t}$")
        left.plot(schedule.sigmas, label=r"noise $\sigma_t = \sqrt{1-\bar\alpha_t}$", linestyle="--")
        left.plot(times, [level.alpha / level.scale for level in levels], "o", color=figure.ink.main)
        left.plot(times, [level.sigma / level.scale for level in levels], "s", color=figure.ink.second)
        left.set(title="Share of signal and noise in $x_t$", xlabel="training timestep $t$", ylabel="factor")
        left.legend(loc="lower center")
        right.plot(schedule.log_snr.exp(), color=figure.ink.third)
        right.plot(times, [level.snr for level in levels], "o", color=figure.ink.third)
        right.axhline(1, color=figure.ink.quiet, linewidth=1, linestyle=":")
        right.annotate("as much noise as signal", (0.98, 1.2), xycoords=("axes fraction", "data"), ha="right")
        right.set(
            title="Signal-to-noise ratio", xlabel="training timestep $t$", ylabel=r"SNR $= \alpha_t^2/\sigma_t^2$"
        )
        right.set_yscale("log")
    return figure


@typed()
def trajectory(*traces: Trace, picture: int = 0, dark: bool = False) -> Figure:
    """The way of runs through latent space, seen in the two directions in which they move most: x_t walks from the
    noise to the picture, x0 is at each step the end that it predicts.

    Example:
        >>> blue = trace.branch(6, prompt="a blue star on a blue background")
        >>> sdkit.plots.trajectory(trace, blue).savefig("trajectory.png")
    """
    if not traces:
        raise ValueError("trajectory() needs at least one trace")
    for trace in traces:
        check_picture(trace, picture)
        check_finite(trace)
    paths = [path for trace in traces for path in _paths(trace, picture)]
    if len({path.shape[1] for path in paths}) > 1:
        raise ValueError("the traces hold latents of different sizes; record runs of the same height and width")
    flat = torch.cat(paths).double()
    mean = flat.mean(dim=0)
    basis, part = _two_directions(flat - mean)
    names = {Stage.LATENT: "$x_t$", Stage.DENOISED: "$x_0$ as predicted"}
    with drawn(8.6, 6.4, "The way through latent space", dark=dark) as figure:
        axis = figure.subplots()
        inks = [figure.ink.main, figure.ink.second, figure.ink.third]
        for number, trace in enumerate(traces):
            ink = inks[number % len(inks)]
            for path, (stage, name) in zip(paths[2 * number : 2 * number + 2], names.items(), strict=True):
                walk = (path.double() - mean) @ basis  # (N, 2)
                label = f"{name}, “{literal(prompt_of(trace, picture))}”" if len(traces) > 1 else name
                dotted = stage is Stage.DENOISED
                axis.plot(*walk.T, "o:" if dotted else "o-", ms=3.5, lw=1.4 if dotted else 2.2, color=ink, label=label)
                if not dotted:
                    axis.annotate("start", tuple(walk[0].tolist()), xytext=(6, 6), textcoords="offset points")
                    axis.plot(*walk[-1], "*", color=ink, ms=17, mec=figure.ink.paper, zorder=5)
        axis.set(
            xlabel=f"first principal component ({part[0]:.0%} of the variance)",
            ylabel=f"second principal component ({part[1]:.0%})",
        )
        figure.legend(title="★ clean latent", alignment="left", loc="outside lower left")
    return figure


@typed(columns=(1, math.inf))
def compare(trace: Trace, other: Trace, *, picture: int = 0, columns: int = 8, dark: bool = False) -> Figure:
    """Two runs side by side: what each predicted at the same steps, and how far apart they are.

    Example:
        >>> blue = trace.branch(6, prompt="a blue star on a blue background")
        >>> sdkit.plots.compare(trace, blue).savefig("compare.png")
    """
    ours, theirs = by_step(trace, Stage.DENOISED), by_step(other, Stage.DENOISED)
    common = steps_of_both(ours, theirs)
    for one in (trace, other):
        check_picture(one, picture)
    if common and ours[common[0]].value.shape[1:] != theirs[common[0]].value.shape[1:]:
        raise ValueError("the two traces hold latents of different sizes; record both with the same height and width")
    if not common:
        raise ValueError("the two traces have no step of stage 'denoised' in common; record both with the same steps")
    steps = spread_out(common, columns)
    paint = colours(trace, other)  # one map for both, so that what is the same looks the same
    with drawn(1.5 * len(steps) + 1.6, 6.6, "Two runs compared", dark=dark) as figure:
        parts: Any = figure.subfigures(2, 1, height_ratios=[3, 2.2])
        upper, lower = parts
        grid = upper.subplots(2, len(steps), squeeze=False)
        for row, records in enumerate((ours, theirs)):
            for column, step in enumerate(steps):
                title = step_title(step, trace) if row == 0 else ""
                show_picture(grid[row, column], paint(records[step].value[picture][None])[0], title)
            grid[row, 0].set_ylabel("AB"[row], rotation=0, ha="right", va="center", fontsize=16, fontweight="bold")
        axis = lower.subplots()
        for stage, name, style in ((Stage.LATENT, "$x_t$", "o-"), (Stage.DENOISED, "$x_0$", "s--")):
            a, b = by_step(trace, stage), by_step(other, stage)
            at = steps_of_both(a, b)
            apart = [_relative(a[step].value[picture], b[step].value[picture]) for step in at]
            axis.plot(at, apart, style, label=name, ms=5)
        axis.set(xlabel="step", ylabel="distance / length of A", ylim=(0, None))
        axis.locator_params(axis="x", integer=True)
        axis.set_title(
            f"A “{literal(prompt_of(trace, picture))}”   B “{literal(prompt_of(other, picture))}”", loc="left"
        )
        axis.legend()
    return figure


@typed(columns=(1, 100))
def journey(forward: Trace, reverse: Trace, *, picture: int = 0, columns: int = 6, dark: bool = False) -> Figure:
    """The forward and the reverse process as one picture: a picture drowns in noise, and from noise a picture comes.

    Args:
        forward: what `diffuse` returns, or any trace whose first latents are a picture that is noised.
        reverse: a run.

    Example:
        >>> sdkit.plots.journey(sdkit.diffuse(picture, seed=7), trace).savefig("journey.png")
    """
    for one in (forward, reverse):
        check_picture(one, picture)
    added = r"Forward: noise is added   $x_t = \alpha_t\, x_0 + \sigma_t\, \epsilon$"
    taken = r"Reverse: noise is predicted and taken away   $x_0 \approx (x_t - \sigma_t\, \epsilon_\theta) / \alpha_t$"
    rows = ((forward, added), (reverse, taken))
    with drawn(1.55 * (columns + 1) + 0.4, 5.6, "There and back: the two processes of diffusion", dark=dark) as figure:
        inks = (figure.ink.second, figure.ink.main)
        parts: Any = figure.subfigures(2, 1)
        for part, ink, (trace, name) in zip(parts, inks, rows, strict=True):
            part.suptitle(name, x=0.01, ha="left", fontsize=13, color=ink)
            panels = _noisier(trace, picture, columns) if trace is forward else _cleaner(trace, picture, columns)
            for axis, (rgb, title) in zip(part.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
                show_picture(axis, rgb, title)
    return figure


def _cleaner(trace: Trace, picture: int, columns: int) -> list[tuple[Tensor, str]]:
    """The noised latents of a trace in its order, and the picture that it ends with."""
    paint, noisy = colours(trace), by_step(trace, Stage.LATENT)
    panels = []
    for step in spread_out(list(noisy), columns):
        title = f"t = {noisy[step].t}\n{noise_share(trace, step)}"
        panels.append((paint(standard(trace, noisy[step], picture)[None])[0], title))
    end = end_of(trace, picture)
    return panels if end is None else [*panels, (end, "picture\n")]


def _noisier(trace: Trace, picture: int, columns: int) -> list[tuple[Tensor, str]]:
    """The picture that a forward walk starts from, and its noised latents."""
    start = end_of(trace, picture, first=True)
    walk = _cleaner(trace, picture, columns)
    return walk if start is None else [(start, "picture\n"), *walk]


def _paths(trace: Trace, picture: int) -> list[Tensor]:
    """x_t and x0 (N, C * h * w) over the steps, each ending in the clean latent."""
    end = [r.value[picture].float() for r in trace[Stage.LATENT] if r.step is None]
    noisy = [standard(trace, r, picture) for r in by_step(trace, Stage.LATENT).values()]
    clean = [r.value[picture].float() for r in by_step(trace, Stage.DENOISED).values()]
    if not noisy or not clean:
        raise ValueError("a way through latent space needs the stages latent and denoised; record both")
    return [torch.stack([*walk, *end]).flatten(1) for walk in (noisy, clean)]


def _two_directions(centred: Tensor) -> tuple[Tensor, list[float]]:
    """The two principal directions (D, 2) of rows (N, D), and their shares of the variance."""
    _, spread, rows = torch.linalg.svd(centred, full_matrices=False)
    share = spread.square() / spread.square().sum()
    return rows[:2].T, share[:2].tolist()


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / a.double().norm())
