"""The figure of a profile: which stage takes the time, and which the memory."""

from __future__ import annotations

from typing import Any

from sdkit.show.style import Figure, drawn


def draw_profile(profile: Any, *, dark: bool = False) -> Figure:
    """Seconds of each stage, and by how much the peak of memory rose in it."""
    stages = [one.stage for one in profile.spent][::-1]
    title = f"{profile.seconds:.2f} s on {profile.device}, at most {profile.peak / 1e6:.0f} MB"
    with drawn(10, 1.5 + 0.36 * len(stages), title, dark=dark) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axis, values, label, colour in (
            (left, [one.seconds for one in profile.spent], "seconds", figure.ink.main),
            (right, [one.memory / 1e6 for one in profile.spent], "MB by which the peak rose", figure.ink.second),
        ):
            bars = axis.barh(stages, values[::-1], color=colour)
            axis.bar_label(bars, fmt="%.3g", padding=3)
            axis.set_xlabel(label)
            axis.margins(x=0.18)
    return figure
