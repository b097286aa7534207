"""The one look of all figures: colours that colour-blind people tell apart (Okabe and Ito 2008), letters that a
projector shows, light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

try:
    import matplotlib
    from cycler import cycler
    from matplotlib import figure
except ImportError as error:
    raise ImportError('figures need matplotlib, which is not installed: pip install "sdkit-stages[plots]"') from error

FIELD = "cividis"  # of values of one sign; perceptually even, and the same to most colour-blind eyes
HEAT = "inferno"


@dataclass(frozen=True)
class Ink:
    """The colours of one look."""

    paper: str
    text: str
    quiet: str  # labels and lines that stand back
    main: str
    second: str
    third: str
    signed: str  # colour map of values around zero


LIGHT = Ink("#ffffff", "#1d1d1f", "#6b6b70", "#0072b2", "#d55e00", "#009e73", "RdBu_r")
DARK = Ink("#16161a", "#ececf0", "#9a9aa4", "#56b4e9", "#e69f00", "#2fc79b", "berlin")


class Figure(figure.Figure):
    """A matplotlib figure outside of pyplot, which would keep it for ever; notebooks show it as it is."""

    ink: Ink

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


@contextmanager
def drawn(width: float, height: float, title: str, *, dark: bool = False) -> Iterator[Figure]:
    """An empty figure of so many inches, to be filled within the scope, where the look holds."""
    ink = DARK if dark else LIGHT
    with matplotlib.rc_context(_rc(ink)):
        made = Figure(figsize=(width, height), layout="constrained")
        made.ink = ink
        made.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold", color=ink.text)
        yield made


def _rc(ink: Ink) -> Any:
    return {
        "figure.facecolor": ink.paper,
        "savefig.facecolor": ink.paper,
        "axes.facecolor": ink.paper,
        "axes.edgecolor": ink.quiet,
        "axes.labelcolor": ink.text,
        "axes.titlecolor": ink.text,
        "axes.titlesize": 12,
        "axes.labelsize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=[ink.main, ink.second, ink.third]),
        "text.color": ink.text,
        "xtick.color": ink.quiet,
        "ytick.color": ink.quiet,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "legend.frameon": False,
        "legend.fontsize": 11,
        "lines.linewidth": 2.2,
        "font.family": ["DejaVu Sans"],
        "mathtext.fontset": "dejavusans",
        "image.interpolation": "nearest",
        "savefig.dpi": 130,
    }
