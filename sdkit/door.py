"""The one way up. A value knows that it can be shown, and a trace that it can be branched, but neither knows how: the
rooms that do it stand above them, and are asked for here, by name, when somebody calls."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS = {
    "show_html": "sdkit.show.notebook",  # a value as a notebook shows it
    "draw_profile": "sdkit.show.figures.profile",  # what a run took, as a figure
    "write_report": "sdkit.show.report",  # a trace as a page
    "branch": "sdkit.tasks.again",  # a recorded run from one of its steps on
}


def ask(name: str, *arguments: Any, **options: Any) -> Any:
    """Call a function of a room above by its name."""
    return getattr(import_module(_ROOMS[name]), name)(*arguments, **options)


class Shown:
    """A value that shows itself in a notebook."""

    def _repr_html_(self) -> str:
        html: str = ask("show_html", self)
        return html
