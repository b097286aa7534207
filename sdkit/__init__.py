"""Stable Diffusion with the lid off: generate pictures, and see, record and edit every stage on the way.

This is the table of contents. Each name is loaded from its room on first use, so that `import sdkit` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdkit.costs import cost
    from sdkit.events import Edit, Event, Hook, Stage, on, run, tap
    from sdkit.film import animate
    from sdkit.forward import diffuse
    from sdkit.generate import Result, image_to_image, rerun, stages, text_to_image
    from sdkit.interpolation import Walk, interpolate
    from sdkit.inversion import invert
    from sdkit.latents import Latents, RoundTrip, decode, encode, round_trip
    from sdkit.loading import load
    from sdkit.maps import AttentionMaps
    from sdkit.model import Model
    from sdkit.pictures import contact_sheet, read_settings
    from sdkit.previews import latent_to_rgb
    from sdkit.schedulers import SCHEDULERS
    from sdkit.statistics import Description, describe
    from sdkit.text import Reading, read_prompt
    from sdkit.trace import Trace

__version__ = "0.1.0"

_ROOMS = {
    "AttentionMaps": "maps",
    "Description": "statistics",
    "Edit": "events",
    "Event": "events",
    "Hook": "events",
    "Latents": "latents",
    "Model": "model",
    "Reading": "text",
    "Result": "generate",
    "RoundTrip": "latents",
    "SCHEDULERS": "schedulers",
    "Stage": "events",
    "Trace": "trace",
    "animate": "film",
    "Walk": "interpolation",
    "contact_sheet": "pictures",
    "cost": "costs",
    "decode": "latents",
    "describe": "statistics",
    "diffuse": "forward",
    "encode": "latents",
    "image_to_image": "generate",
    "interpolate": "interpolation",
    "invert": "inversion",
    "latent_to_rgb": "previews",
    "load": "loading",
    "on": "events",
    "read_prompt": "text",
    "read_settings": "pictures",
    "rerun": "generate",
    "round_trip": "latents",
    "run": "events",
    "stages": "generate",
    "tap": "events",
    "text_to_image": "generate",
}

__all__ = [
    "SCHEDULERS",
    "AttentionMaps",
    "Description",
    "Edit",
    "Event",
    "Hook",
    "Latents",
    "Model",
    "Reading",
    "Result",
    "RoundTrip",
    "Stage",
    "Trace",
    "Walk",
    "animate",
    "contact_sheet",
    "cost",
    "decode",
    "describe",
    "diffuse",
    "encode",
    "image_to_image",
    "interpolate",
    "invert",
    "latent_to_rgb",
    "load",
    "on",
    "read_prompt",
    "read_settings",
    "rerun",
    "round_trip",
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
