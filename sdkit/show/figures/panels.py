"""Single panels of figures: a picture, heat over a picture, the titles of steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkit.events import Stage
from sdkit.show.style import HEAT, Figure
from sdkit.show.view import colours
from sdkit.trace.trace import Trace


def literal(text: str) -> str:
    """Text for a figure as it is: matplotlib takes what stands between two $ for mathematics."""
    return text.replace("$", r"\$")


def show_picture(axis: Any, rgb: Tensor, title: str) -> None:
    """A picture (3, H, W) in [0, 1]."""
    axis.imshow(rgb.float().clamp(0, 1).movedim(0, -1).cpu().numpy())
    axis.set_title(title, fontsize=11)
    bare(axis)


def bare(axis: Any) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def lay_over(axis: Any, behind: Tensor, heat: Tensor) -> None:
    """Heat (H, W) in [0, 1] over a grey picture (3, h, w) in [0, 1]."""
    grey = behind.float().mean(dim=0).cpu().numpy()
    extent = (0.0, 1.0, 1.0, 0.0)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent)
    axis.imshow(
        heat.float().cpu().numpy(), cmap=HEAT, vmin=0, vmax=1, alpha=0.65, extent=extent, interpolation="bilinear"
    )
    bare(axis)


def heat_bar(figure: Figure, axes: list[Any]) -> None:
    from matplotlib.cm import ScalarMappable

    figure.colorbar(ScalarMappable(cmap=HEAT), ax=axes, label="attention", shrink=0.8, ticks=[0, 0.5, 1])


def behind(trace: Trace, picture: int) -> Tensor:
    """The finished picture (3, H, W) in [0, 1], or what stands in for it."""
    end = end_of(trace, picture)
    if end is not None:
        return end
    return colours(trace)((trace[Stage.DENOISED] or trace[Stage.LATENT])[-1].value[picture][None])[0]


def end_of(trace: Trace, picture: int, *, first: bool = False) -> Tensor | None:
    """The picture (3, H, W) in [0, 1] that a run ends with, or starts from."""
    records = trace[Stage.PIXELS] if first else [record for record in trace[Stage.IMAGE] if record.step is None]
    return records[0].value[picture].float() / 2 + 0.5 if records else None


def step_title(step: int, trace: Trace) -> str:
    name = "level" if trace.settings.get("process") == "forward" else "step"
    return f"{name} {step}" + (f"\nt = {trace.levels[step].t}" if step in trace.levels else "\n")


def colour_note(true: bool) -> str:
    if true:
        return "latents in the colours that fit the run's own picture best, by least squares"
    return "false colours: the trace holds no picture to fit them to"


def steps_of_both(one: dict[int, Any], other: dict[int, Any]) -> list[int]:
    return sorted(one.keys() & other.keys())
