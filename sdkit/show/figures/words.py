"""Figures of attention: where each word acts, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdkit.events import Stage
from sdkit.inputs.checks import typed
from sdkit.show.figures.panels import behind, heat_bar, lay_over, literal, show_picture, step_title
from sdkit.show.style import Figure, drawn
from sdkit.show.view import Heat, by_step, check_picture, colours, heats, spread_out
from sdkit.trace.trace import Trace


@typed()
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

    Example:
        >>> sdkit.plots.word_maps(trace, maps, ["red", "star"]).savefig("words.png")
    """
    check_picture(trace, picture)
    if words is not None and not words:
        raise ValueError("words is an empty list; give at least one, or None for all")
    words = list(words or (heats(maps, list(maps.steps)[-1:], picture=picture)))
    if not words:
        raise ValueError("the maps hold no words to draw; give them to a run whose prompt has some")
    picture_behind = behind(trace, picture)
    rows = math.ceil((len(words) + 1) / 5)
    columns = math.ceil((len(words) + 1) / rows)
    when = "over the whole run" if step is None else f"at step {step}"
    with drawn(2.7 * columns + 1, 2.9 * rows + 0.8, f"Where each word acts, {when}", dark=dark) as figure:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        show_picture(axes[0], picture_behind, "the picture")
        for axis, word in zip(axes[1:], words, strict=False):
            lay_over(axis, picture_behind, maps.heat(word, step=step, picture=picture))
            axis.set_title(literal(word))
        for axis in axes[len(words) + 1 :]:
            axis.set_axis_off()
        heat_bar(figure, axes)
    return figure


@typed(columns=(1, math.inf))
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
    step predicted.

    Example:
        >>> sdkit.plots.words_over_time(trace, maps, ["red", "star"]).savefig("words.png")
    """
    check_picture(trace, picture)
    if words is not None and not words:
        raise ValueError("words is an empty list; give at least one, or None for all")
    steps = spread_out(maps.steps, columns)
    shown = heats(maps, steps, words=words or (), picture=picture)
    if missing := [word for word in words or () if word not in shown]:
        raise ValueError(f"the maps hold no word {missing[0]!r}; there are {', '.join(shown) or 'none'}")
    if not shown:
        raise ValueError("the maps hold no words to draw; give them to a run whose prompt has some")
    paint = colours(trace)
    clean = by_step(trace, Stage.DENOISED)
    size = (1.45 * len(steps) + 1.9, 1.45 * len(shown) + 1.1)
    with drawn(*size, "What the words look at, step by step", dark=dark) as figure:
        axes = figure.subplots(len(shown), len(steps), squeeze=False)
        for row, (word, planes) in enumerate(shown.items()):
            for column, step in enumerate(steps):
                axis, record = axes[row, column], clean.get(step)
                under = behind(trace, picture) if record is None else paint(record.value[picture][None])[0]
                lay_over(axis, under, planes[column])
                if row == 0:
                    axis.set_title(step_title(step, trace), fontsize=11)
            axes[row, 0].set_ylabel(literal(word), rotation=0, ha="right", va="center", labelpad=8)
        heat_bar(figure, list(axes.flat))
    return figure
