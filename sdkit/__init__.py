"""Stable Diffusion with the lid off: generate pictures, and see, record and edit every stage on the way.

This is the table of contents. Each name is loaded from its room on first use, so that `import sdkit` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdkit.events import Edit, Event, Hook, Stage, on, run, tap
    from sdkit.film import animate
    from sdkit.generate import Result, image_to_image, rerun, stages, text_to_image
    from sdkit.loading import load
    from sdkit.maps import AttentionMaps
    from sdkit.model import Model
    from sdkit.pictures import contact_sheet, read_settings
    from sdkit.schedulers import SCHEDULERS
    from sdkit.text import Reading, read_prompt
    from sdkit.trace import Trace

__version__ = "0.1.0"

_ROOMS = {
    "AttentionMaps": "maps",
    "Edit": "events",
    "Event": "events",
    "Hook": "events",
    "Model": "model",
    "Reading": "text",
    "Result": "generate",
    "SCHEDULERS": "schedulers",
    "Stage": "events",
    "Trace": "trace",
    "animate": "film",
    "contact_sheet": "pictures",
    "image_to_image": "generate",
    "load": "loading",
    "on": "events",
    "read_prompt": "text",
    "read_settings": "pictures",
    "rerun": "generate",
    "run": "events",
    "stages": "generate",
    "tap": "events",
    "text_to_image": "generate",
}

__all__ = [
    "SCHEDULERS",
    "AttentionMaps",
    "Edit",
    "Event",
    "Hook",
    "Model",
    "Reading",
    "Result",
    "Stage",
    "Trace",
    "animate",
    "contact_sheet",
    "image_to_image",
    "load",
    "on",
    "read_prompt",
    "read_settings",
    "rerun",
    "run",
    "stages",
    "tap",
    "text_to_image",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'sdkit' has no attribute {name!r}")
    value = getattr(import_module(f"sdkit.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
