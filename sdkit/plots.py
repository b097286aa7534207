"""Figures of a `Trace`: what happened in a run, to look at, to print, to project. None needs a model.

Every function gives a matplotlib Figure of its own, which a notebook shows and `figure.savefig("x.png")` writes; `dark`
is for dark pages. Latents are drawn in the colours that fit the run's own picture best (`sdkit.reading.colours`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdkit import schedulers
from sdkit.events import Stage
from sdkit.reading import (
    Heat,
    Level,
    by_step,
    check_picture,
    colours,
    guided,
    halves,
    heats,
    levels,
    prompt_of,
    spread_out,
    standard,
)
from sdkit.style import FIELD, HEAT, Figure, drawn
from sdkit.trace import Trace

# What the U-Net predicts, by the scheduler's prediction type; otherwise the noise.
_SAID = {"v_prediction": "v", "sample": "{x_0}"}


def film_strip(trace: Trace, *, picture: int = 0, columns: int = 8, dark: bool = False) -> Figure:
    """The run as a film: x_t on its way from noise, and under it the x0 that each step believed in.

    The last column is the finished picture, over the clean latent that it was decoded from. Of a forward process, what
    `diffuse` returns, the lower row is each x_t decoded.

    Raises:
        ValueError: the trace has nothing for the lower row.
    """
    check_picture(trace, picture)
    known, paint = levels(trace), colours(trace)
    noisy, clean = by_step(trace, Stage.LATENT), by_step(trace, Stage.DENOISED)
    decoded = {} if clean else by_step(trace, Stage.IMAGE)
    steps = spread_out(_both(noisy, clean or decoded), columns)
    if not steps:
        raise ValueError("a film strip needs the stages latent and denoised of a run, or latent and image of diffuse")
    final = [record for record in trace[Stage.LATENT] if record.step is None]
    images = [record for record in trace[Stage.IMAGE] if record.step is None]
    wide = len(steps) + bool(final)
    title = f"From noise to “{prompt_of(trace, picture)}”" if clean else "A picture drowns in noise"
    with drawn(1.35 * wide + 0.9, 3.9, title, dark=dark) as figure:
        grid = figure.subplots(2, wide, squeeze=False)
        for column, step in enumerate(steps):
            _show(grid[0, column], paint(standard(noisy[step], known, picture)[None])[0], _step_title(step, known))
            below = paint(clean[step].value[picture][None])[0] if clean else decoded[step].value[picture] / 2 + 0.5
            _show(grid[1, column], below, "")
        if final:
            _show(grid[1, -1], paint(final[0].value[picture][None])[0], "")
            last = images[0].value[picture] / 2 + 0.5 if images else paint(final[0].value[picture][None])[0]
            _show(grid[0, -1], last, "picture\n" if images else "end\n")
        for row, name in enumerate(("$x_t$", "$x_0$" if clean else "decoded")):
            grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=16 if name[0] == "$" else 11)
        figure.supxlabel(_colour_note(paint.true), fontsize=10, color=figure.ink.quiet)
    return figure


def channels(source: Any, *, step: int | None = None, picture: int = 0, dark: bool = False) -> Figure:
    """The channels of a latent, each as a field of numbers with its own mean and spread.

    Args:
        source: a Trace, of which the latent before `step` is shown, or the clean one; what `encode` returns; or
            latents (B, C, h, w).
    """
    value, name = _latent_of(source, step)
    if not 0 <= picture < len(value):
        raise ValueError(f"there are {len(value)} pictures, counted from 0, but picture is {picture}")
    z = value[picture].float().cpu()  # (C, h, w)
    reach = float(z.abs().max()) or 1.0
    with drawn(2.9 * len(z) + 1, 3.7, f"The {len(z)} channels of {name}", dark=dark) as figure:
        axes = figure.subplots(1, len(z), squeeze=False)[0]
        for number, (axis, plane) in enumerate(zip(axes, z, strict=True)):
            shown = axis.imshow(plane, cmap=figure.ink.signed, vmin=-reach, vmax=reach)
            axis.set_title(f"channel {number}\nmean {plane.mean():.2f}, std {plane.std():.2f}")
            axis.set_xlabel("column")
        axes[0].set_ylabel("row")
        figure.colorbar(shown, ax=axes, label="value", shrink=0.85)
    return figure


def noise_schedule(trace: Trace, *, dark: bool = False) -> Figure:
    """How much of a noised picture is signal and how much is noise at each training timestep, and the signal-to-noise
    ratio, with the steps that the run took as dots (Ho et al. 2020, arXiv:2006.11239)."""
    schedule, known = schedulers.noise_schedule(trace.settings["scheduler"]), levels(trace)
    times = [level.t for level in known.values()]
    with drawn(12, 4.6, f"The noise schedule, and the {len(times)} levels of this run", dark=dark) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(schedule.alphas, label=r"signal $\alpha_t = \sqrt{\bar\alpha_t}$")
        left.plot(schedule.sigmas, label=r"noise $\sigma_t = \sqrt{1-\bar\alpha_t}$", linestyle="--")
        left.plot(times, [level.alpha / level.scale for level in known.values()], "o", color=figure.ink.main)
        left.plot(times, [level.sigma / level.scale for level in known.values()], "s", color=figure.ink.second)
        left.set(title="Share of signal and noise in $x_t$", xlabel="training timestep $t$", ylabel="factor")
        left.legend(loc="lower center")
        right.plot(schedule.log_snr.exp(), color=figure.ink.third)
        right.plot(times, [level.snr for level in known.values()], "o", color=figure.ink.third)
        right.axhline(1, color=figure.ink.quiet, linewidth=1, linestyle=":")
        right.annotate("as much noise as signal", (0.98, 1.2), xycoords=("axes fraction", "data"), ha="right")
        right.set(
            title="Signal-to-noise ratio", xlabel="training timestep $t$", ylabel=r"SNR $= \alpha_t^2/\sigma_t^2$"
        )
        right.set_yscale("log")
    return figure


def guidance(trace: Trace, step: int | None = None, *, picture: int = 0, dark: bool = False) -> Figure:
    """Classifier-free guidance at one step: what the U-Net predicts without the words and with them, where the two
    differ, and what is followed (Ho and Salimans 2022, arXiv:2207.12598).

    Args:
        step: by default the one in the middle of the run.

    Raises:
        ValueError: the run was not guided, or the step was not recorded.
    """
    if not guided(trace):
        raise ValueError("the trace holds no two halves to compare; record a run with guidance_scale above 1")
    check_picture(trace, picture)
    found = by_step(trace, Stage.NOISE)
    step = sorted(found)[len(found) // 2] if step is None else step
    both = halves(trace.at(step)[Stage.NOISE], True, picture)
    assert both is not None  # it is guided
    uncond, cond = both
    followed = by_step(trace, Stage.GUIDED).get(step)
    scale = trace.settings.get("guidance_scale", math.nan)
    result = followed.value[picture].float() if followed else uncond + scale * (cond - uncond)
    level, paint = levels(trace).get(step), colours(trace)
    said = _SAID.get(trace.settings.get("scheduler", {}).get("prediction_type", ""), r"\epsilon")
    planes = [
        (f"without words\n${said}_u$", uncond),
        (f"with words\n${said}_c$", cond),
        (f"guided\n${said}_u + {scale:g}\\,({said}_c - {said}_u)$", result),
    ]
    with drawn(13.5, 4.4, f"Guidance at step {step}" + (f", t = {level.t}" if level else ""), dark=dark) as figure:
        axes = figure.subplots(1, 4)
        for axis, (title, plane) in zip(axes[[0, 1, 3]], planes, strict=True):
            _show(axis, paint(plane[None])[0], title)
        shown = axes[2].imshow((cond - uncond).norm(dim=0), cmap=FIELD)
        axes[2].set_title("what the words change\n" + rf"$\|{said}_c - {said}_u\|$")
        _bare(axes[2])
        figure.colorbar(shown, ax=axes[2], label="length over the channels", shrink=0.8)
    return figure


def word_maps(
    trace: Trace,
    maps: Heat,
    words: Sequence[str] | None = None,
    *,
    step: int | None = None,
    picture: int = 0,
    dark: bool = False,
) -> Figure:
    """Where each word of the prompt acts in the picture: its cross-attention as heat over it (DAAM, Tang et al. 2022,
    arXiv:2210.04885).

    Args:
        words: which ones; by default all.
        step: of that step; by default over the whole run.
    """
    words = list(words or (heats(maps, list(maps.steps)[-1:], picture=picture)))
    behind = _behind(trace, picture)
    rows = math.ceil(len(words) / 5)
    columns = math.ceil(len(words) / rows)
    when = "over the whole run" if step is None else f"at step {step}"
    with drawn(2.7 * columns + 1, 2.9 * rows + 0.8, f"Where each word acts, {when}", dark=dark) as figure:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, word in zip(axes, words, strict=False):
            _lay_over(axis, behind, maps.heat(word, step=step, picture=picture))
            axis.set_title(word)
        for axis in axes[len(words) :]:
            axis.set_axis_off()
        _heat_bar(figure, axes)
    return figure


def words_over_time(
    trace: Trace,
    maps: Heat,
    words: Sequence[str] | None = None,
    *,
    columns: int = 8,
    picture: int = 0,
    dark: bool = False,
) -> Figure:
    """How the heat of words moves during the run: a row for each word, a column for each step, over the x0 that the
    step believed in."""
    steps = spread_out(maps.steps, columns)
    found = heats(maps, steps, words=words or (), picture=picture)
    if missing := [word for word in words or () if word not in found]:
        raise ValueError(f"the maps hold no word {missing[0]!r}; there are {', '.join(found) or 'none'}")
    known, paint = levels(trace), colours(trace)
    clean = by_step(trace, Stage.DENOISED)
    size = (1.45 * len(steps) + 1.9, 1.45 * len(found) + 1.1)
    with drawn(*size, "What the words look at, step by step", dark=dark) as figure:
        axes = figure.subplots(len(found), len(steps), squeeze=False)
        for row, (word, planes) in enumerate(found.items()):
            for column, step in enumerate(steps):
                axis, record = axes[row, column], clean.get(step)
                under = _behind(trace, picture) if record is None else paint(record.value[picture][None])[0]
                _lay_over(axis, under, planes[column])
                if row == 0:
                    axis.set_title(_step_title(step, known), fontsize=11)
            axes[row, 0].set_ylabel(word, rotation=0, ha="right", va="center", labelpad=8)
        _heat_bar(figure, list(axes.flat))
    return figure


def histograms(trace: Trace, *, columns: int = 5, picture: int = 0, dark: bool = False) -> Figure:
    """How the values of x_t are spread at some steps, against the standard normal distribution that the run starts
    from."""
    check_picture(trace, picture)
    known, noisy = levels(trace), by_step(trace, Stage.LATENT)
    last = [record for record in trace[Stage.LATENT] if record.step is None]
    shown = [noisy[step] for step in spread_out(sorted(noisy), columns)] + last
    edges = np.linspace(-4.5, 4.5, 46)
    bell = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    with drawn(2.35 * len(shown) + 0.8, 3.7, "The values of $x_t$ against $N(0, 1)$", dark=dark) as figure:
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axis, record in zip(axes, shown, strict=True):
            values = standard(record, known, picture).flatten().numpy()
            axis.hist(values, bins=edges, density=True, color=figure.ink.main, alpha=0.75)
            axis.plot(edges, bell, color=figure.ink.second, linewidth=2)
            title = "clean latent\n" if record.step is None else _step_title(record.step, known)
            axis.set_title(title + f"\nmean {values.mean():.2f}, std {values.std():.2f}", fontsize=11)
            axis.set_xlabel("value")
        axes[0].set_ylabel("density")
        axes[0].annotate("N(0, 1)", (0.03, 0.93), xycoords="axes fraction", color=figure.ink.second, fontsize=11)
    return figure


def trajectory(*traces: Trace, picture: int = 0, dark: bool = False) -> Figure:
    """The way of runs through latent space, seen in the two directions in which they move most: x_t walks from the
    noise to the picture, x0 says at each step where it believes the walk ends."""
    if not traces:
        raise ValueError("trajectory() needs at least one trace")
    paths = [path for trace in traces for path in _paths(trace, picture)]
    flat = torch.cat(paths).double()
    mean = flat.mean(dim=0)
    basis, part = _two_directions(flat - mean)
    names = {Stage.LATENT: "$x_t$", Stage.DENOISED: "$x_0$ as believed"}
    with drawn(8.6, 6.4, "The way through latent space", dark=dark) as figure:
        axis = figure.subplots()
        inks = [figure.ink.main, figure.ink.second, figure.ink.third]
        for number, trace in enumerate(traces):
            ink = inks[number % len(inks)]
            for path, (stage, name) in zip(paths[2 * number : 2 * number + 2], names.items(), strict=True):
                walk = (path.double() - mean) @ basis  # (N, 2)
                told = f"{name}, “{prompt_of(trace, picture)}”" if len(traces) > 1 else name
                dotted = stage is Stage.DENOISED
                axis.plot(*walk.T, "o:" if dotted else "o-", ms=3.5, lw=1.4 if dotted else 2.2, color=ink, label=told)
                if not dotted:
                    axis.annotate("start", tuple(walk[0].tolist()), xytext=(6, 6), textcoords="offset points")
                    axis.plot(*walk[-1], "*", color=ink, ms=17, mec=figure.ink.paper, zorder=5)
        axis.set(
            xlabel=f"first principal component ({part[0]:.0%} of the variance)",
            ylabel=f"second principal component ({part[1]:.0%})",
        )
        figure.legend(title="★ clean latent", alignment="left", loc="outside lower left")
    return figure


def compare(trace: Trace, other: Trace, *, picture: int = 0, columns: int = 8, dark: bool = False) -> Figure:
    """Two runs side by side: what each believed at the same steps, and how far apart they are."""
    ours, theirs = by_step(trace, Stage.DENOISED), by_step(other, Stage.DENOISED)
    common = _both(ours, theirs)
    if not common:
        raise ValueError("the two traces have no step of stage 'denoised' in common; record both with the same steps")
    known, steps = levels(trace), spread_out(common, columns)
    paint = colours(trace, other)  # one map for both, so that what is the same looks the same
    with drawn(1.5 * len(steps) + 1.6, 6.6, "Two runs compared", dark=dark) as figure:
        parts: Any = figure.subfigures(2, 1, height_ratios=[3, 2.2])
        upper, lower = parts
        grid = upper.subplots(2, len(steps), squeeze=False)
        for row, found in enumerate((ours, theirs)):
            for column, step in enumerate(steps):
                title = _step_title(step, known) if row == 0 else ""
                _show(grid[row, column], paint(found[step].value[picture][None])[0], title)
            grid[row, 0].set_ylabel("AB"[row], rotation=0, ha="right", va="center", fontsize=16, fontweight="bold")
        axis = lower.subplots()
        for stage, name, style in ((Stage.LATENT, "$x_t$", "o-"), (Stage.DENOISED, "$x_0$", "s--")):
            a, b = by_step(trace, stage), by_step(other, stage)
            at = _both(a, b)
            apart = [_relative(a[step].value[picture], b[step].value[picture]) for step in at]
            axis.plot(at, apart, style, label=name, ms=5)
        axis.set(xlabel="step", ylabel="distance / length of A", ylim=(0, None))
        axis.locator_params(axis="x", integer=True)
        axis.set_title(f"A “{prompt_of(trace, picture)}”   B “{prompt_of(other, picture)}”", loc="left")
        axis.legend()
    return figure


def journey(forward: Trace, reverse: Trace, *, picture: int = 0, columns: int = 6, dark: bool = False) -> Figure:
    """The forward and the reverse process as one picture: a picture drowns in noise, and from noise a picture comes.

    Args:
        forward: what `diffuse` returns, or any trace whose first latents are a picture that is noised.
        reverse: a run.
    """
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
                _show(axis, rgb, title)
    return figure


# ---------------------------------------------------------------------------------------------------------------------


def _show(axis: Any, rgb: Tensor, title: str) -> None:
    """A picture (3, H, W) in [0, 1]."""
    axis.imshow(rgb.float().clamp(0, 1).movedim(0, -1).cpu().numpy())
    axis.set_title(title, fontsize=11)
    _bare(axis)


def _bare(axis: Any) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _lay_over(axis: Any, behind: Tensor, heat: Tensor) -> None:
    """Heat (H, W) in [0, 1] over a grey picture (3, h, w) in [0, 1]."""
    grey = behind.float().mean(dim=0).cpu().numpy()
    extent = (0.0, 1.0, 1.0, 0.0)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent)
    axis.imshow(
        heat.float().cpu().numpy(), cmap=HEAT, vmin=0, vmax=1, alpha=0.65, extent=extent, interpolation="bilinear"
    )
    _bare(axis)


def _heat_bar(figure: Figure, axes: list[Any]) -> None:
    from matplotlib.cm import ScalarMappable

    figure.colorbar(ScalarMappable(cmap=HEAT), ax=axes, label="attention", shrink=0.8, ticks=[0, 0.5, 1])


def _behind(trace: Trace, picture: int) -> Tensor:
    """The finished picture (3, H, W) in [0, 1], or what stands in for it."""
    end = _end_of(trace, picture)
    if end is not None:
        return end
    return colours(trace)((trace[Stage.DENOISED] or trace[Stage.LATENT])[-1].value[picture][None])[0]


def _end_of(trace: Trace, picture: int, *, first: bool = False) -> Tensor | None:
    """The picture (3, H, W) in [0, 1] that a run ends with, or starts from."""
    found = trace[Stage.PIXELS] if first else [record for record in trace[Stage.IMAGE] if record.step is None]
    return found[0].value[picture].float() / 2 + 0.5 if found else None


def _cleaner(trace: Trace, picture: int, columns: int) -> list[tuple[Tensor, str]]:
    """The noised latents of a trace in its order, and the picture that it ends with."""
    known, paint, found = levels(trace), colours(trace), by_step(trace, Stage.LATENT)
    panels = []
    for step in spread_out(list(found), columns):
        told = f"\nnoise {known[step].noise:.0%}" if step in known else "\n"
        panels.append((paint(standard(found[step], known, picture)[None])[0], f"t = {found[step].t}{told}"))
    end = _end_of(trace, picture)
    return panels if end is None else [*panels, (end, "picture\n")]


def _noisier(trace: Trace, picture: int, columns: int) -> list[tuple[Tensor, str]]:
    """The picture that a forward walk starts from, and its noised latents."""
    start = _end_of(trace, picture, first=True)
    walk = _cleaner(trace, picture, columns)
    return walk if start is None else [(start, "picture\n"), *walk]


def _step_title(step: int, known: dict[int, Level]) -> str:
    return f"step {step}" + (f"\nt = {known[step].t}" if step in known else "\n")


def _colour_note(true: bool) -> str:
    if true:
        return "latents in the colours that fit the run's own picture best, by least squares"
    return "false colours: the trace holds no picture to fit them to"


def _both(one: dict[int, Any], other: dict[int, Any]) -> list[int]:
    return sorted(one.keys() & other.keys())


def _latent_of(source: Any, step: int | None) -> tuple[Tensor, str]:
    if isinstance(source, Trace):
        if step is not None:
            return source.at(step)[Stage.LATENT].value, f"$x_t$ before step {step}"
        return source[Stage.LATENT][-1].value, "the clean latent"
    value = source if isinstance(source, Tensor) else getattr(source, "tensor", None)
    if not isinstance(value, Tensor) or value.ndim != 4:
        kind = type(source).__name__
        raise TypeError(f"expected a Trace, what encode returns, or latents (B, C, h, w), but got a {kind}")
    return value, "the latent"


def _paths(trace: Trace, picture: int) -> list[Tensor]:
    """x_t and x0 (N, C * h * w) over the steps, each ending in the clean latent."""
    known, end = levels(trace), [r.value[picture].float() for r in trace[Stage.LATENT] if r.step is None]
    noisy = [standard(r, known, picture) for r in by_step(trace, Stage.LATENT).values()]
    clean = [r.value[picture].float() for r in by_step(trace, Stage.DENOISED).values()]
    return [torch.stack([*walk, *end]).flatten(1) for walk in (noisy, clean)]


def _two_directions(centred: Tensor) -> tuple[Tensor, list[float]]:
    """The two principal directions (D, 2) of rows (N, D), and their shares of the variance."""
    _, spread, rows = torch.linalg.svd(centred, full_matrices=False)
    share = spread.square() / spread.square().sum()
    return rows[:2].T, share[:2].tolist()


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / a.double().norm())
