"""Figures of latents and predictions: channels, histograms, guidance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from sdkit.events import Stage
from sdkit.inputs.checks import typed
from sdkit.show.figures.panels import bare, show_picture, step_title
from sdkit.show.style import FIELD, Figure, drawn
from sdkit.show.view import by_step, check_picture, colours, guided, halves, spread_out, standard
from sdkit.trace.trace import Trace

# The letter of what the U-Net predicts, by the scheduler's prediction type; otherwise that of the noise.
_LETTERS = {"v_prediction": "v", "sample": "{x_0}"}


@typed()
def channels(source: Any, *, step: int | None = None, picture: int = 0, dark: bool = False) -> Figure:
    """The channels of a latent, each as a field of numbers with its own mean and spread.

    Args:
        source: a Trace, of which the latent before `step` is shown, or the clean one; what `encode` returns; or
            latents (B, C, h, w).

    Example:
        >>> sdkit.plots.channels(sdkit.encode(picture)).savefig("channels.png")
    """
    value, name = _latent_of(source, step)
    if not 0 <= picture < len(value):
        raise ValueError(f"there are {len(value)} pictures, counted from 0, but picture is {picture}")
    z = value[picture].float().cpu()  # (C, h, w)
    reach = float(z.abs().max()) or 1.0
    with drawn(2.9 * len(z) + 1, 3.7, f"The {len(z)} channels of {name}", dark=dark) as figure:
        axes = figure.subplots(1, len(z), squeeze=False)[0]
        for number, (axis, plane) in enumerate(zip(axes, z, strict=True)):
            shown = axis.imshow(plane.numpy(), cmap=figure.ink.signed, vmin=-reach, vmax=reach)
            axis.set_title(f"channel {number}\nmean {plane.mean():.2f}, std {plane.std():.2f}")
            axis.set_xlabel("column")
        axes[0].set_ylabel("row")
        figure.colorbar(shown, ax=axes, label="value", shrink=0.85)
    return figure


@typed()
def guidance(trace: Trace, step: int | None = None, *, picture: int = 0, dark: bool = False) -> Figure:
    """Classifier-free guidance at one step: what the U-Net predicts without the words and with them, where the two
    differ, and what is followed (Ho and Salimans 2022, arXiv:2207.12598).

    Args:
        step: by default the one in the middle of the run.

    Raises:
        ValueError: the run was not guided, or the step was not recorded.

    Example:
        >>> sdkit.plots.guidance(trace, step=6).savefig("guidance.png")
    """
    if not guided(trace):
        raise ValueError("the trace holds no two halves to compare; record a run with guidance_scale above 1")
    check_picture(trace, picture)
    predicted = by_step(trace, Stage.NOISE)
    step = sorted(predicted)[len(predicted) // 2] if step is None else step
    both = halves(trace.at(step)[Stage.NOISE], True, picture)
    assert both is not None  # it is guided
    uncond, cond = both
    followed = by_step(trace, Stage.GUIDED).get(step)
    scale = trace.settings.get("guidance_scale", math.nan)
    result = followed.value[picture].float() if followed else uncond + scale * (cond - uncond)
    level, paint = trace.levels.get(step), colours(trace)
    letter = _LETTERS.get(trace.settings.get("scheduler", {}).get("prediction_type", ""), r"\epsilon")
    planes = [
        (f"without words\n${letter}_u$", uncond),
        (f"with words\n${letter}_c$", cond),
        (f"guided\n${letter}_u + {scale:g}\\,({letter}_c - {letter}_u)$", result),
    ]
    with drawn(13.5, 4.4, f"Guidance at step {step}" + (f", t = {level.t}" if level else ""), dark=dark) as figure:
        axes = figure.subplots(1, 4)
        for axis, (title, plane) in zip(axes[[0, 1, 3]], planes, strict=True):
            show_picture(axis, paint(plane[None])[0], title)
        shown = axes[2].imshow((cond - uncond).norm(dim=0).numpy(), cmap=FIELD)
        axes[2].set_title("what the words change\n" + rf"$\|{letter}_c - {letter}_u\|$")
        bare(axes[2])
        figure.colorbar(shown, ax=axes[2], label="length over the channels", shrink=0.8)
    return figure


@typed(columns=(1, math.inf))
def histograms(trace: Trace, *, columns: int = 5, picture: int = 0, dark: bool = False) -> Figure:
    """How the values of x_t are spread at some steps, against the standard normal distribution that the run starts
    from.

    Example:
        >>> sdkit.plots.histograms(trace).savefig("histograms.png")
    """
    check_picture(trace, picture)
    noisy = by_step(trace, Stage.LATENT)
    last = [record for record in trace[Stage.LATENT] if record.step is None]
    shown = [noisy[step] for step in spread_out(sorted(noisy), columns)] + last
    if not shown:
        raise ValueError("the trace holds no latents to draw; record a run with the stage 'latent'")
    edges = np.linspace(-4.5, 4.5, 46)
    bell = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    with drawn(2.35 * len(shown) + 0.8, 3.7, "The values of $x_t$ against $N(0, 1)$", dark=dark) as figure:
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axis, record in zip(axes, shown, strict=True):
            values = standard(trace, record, picture).flatten().numpy()
            axis.hist(values, bins=edges, density=True, color=figure.ink.main, alpha=0.75)
            axis.plot(edges, bell, color=figure.ink.second, linewidth=2)
            title = "clean latent\n" if record.step is None else step_title(record.step, trace)
            axis.set_title(title + f"\nmean {values.mean():.2f}, std {values.std():.2f}", fontsize=11)
            axis.set_xlabel("value")
        axes[0].set_ylabel("density")
        axes[0].annotate("N(0, 1)", (0.03, 0.93), xycoords="axes fraction", color=figure.ink.second, fontsize=11)
    return figure


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
