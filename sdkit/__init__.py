"""Stable Diffusion with the lid off: generate pictures, and see, record and edit every stage on the way.

This is the table of contents. Each name is loaded from its room on first use, so that `import sdkit` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdkit import hooks
    from sdkit.events import Edit, Event, Hook, Stage, on, run, tap
    from sdkit.latents.autoencoder import Latents, RoundTrip, decode, encode, round_trip
    from sdkit.latents.previews import latent_to_rgb
    from sdkit.latents.statistics import Description, describe
    from sdkit.live.app import app
    from sdkit.many.batch import Batch, batch
    from sdkit.model.loading import load
    from sdkit.model.model import Model
    from sdkit.model.schedulers import SCHEDULERS
    from sdkit.pictures import contact_sheet
    from sdkit.process.result import Result
    from sdkit.show import figures as plots
    from sdkit.show.film import animate
    from sdkit.tasks.again import read_settings, rerun
    from sdkit.tasks.cost import cost
    from sdkit.tasks.diffuse import diffuse
    from sdkit.tasks.generate import image_to_image, stages, text_to_image
    from sdkit.tasks.interpolate import Walk, interpolate
    from sdkit.tasks.invert import invert
    from sdkit.tasks.profile import Profile, profile
    from sdkit.tasks.read_prompt import Reading, read_prompt
    from sdkit.trace.trace import Trace
    from sdkit.unet.maps import AttentionMaps

_ROOMS = {
    "SCHEDULERS": "model.schedulers",
    "AttentionMaps": "unet.maps",
    "Batch": "many.batch",
    "Description": "latents.statistics",
    "Edit": "events",
    "Event": "events",
    "Hook": "events",
    "Latents": "latents.autoencoder",
    "Model": "model.model",
    "Profile": "tasks.profile",
    "Reading": "tasks.read_prompt",
    "Result": "process.result",
    "RoundTrip": "latents.autoencoder",
    "Stage": "events",
    "Trace": "trace.trace",
    "Walk": "tasks.interpolate",
    "animate": "show.film",
    "app": "live.app",
    "batch": "many.batch",
    "contact_sheet": "pictures",
    "cost": "tasks.cost",
    "decode": "latents.autoencoder",
    "describe": "latents.statistics",
    "diffuse": "tasks.diffuse",
    "encode": "latents.autoencoder",
    "hooks": "hooks",
    "image_to_image": "tasks.generate",
    "interpolate": "tasks.interpolate",
    "invert": "tasks.invert",
    "latent_to_rgb": "latents.previews",
    "load": "model.loading",
    "on": "events",
    "plots": "show.figures",
    "profile": "tasks.profile",
    "read_prompt": "tasks.read_prompt",
    "read_settings": "tasks.again",
    "rerun": "tasks.again",
    "round_trip": "latents.autoencoder",
    "run": "events",
    "stages": "tasks.generate",
    "tap": "events",
    "text_to_image": "tasks.generate",
}
_MODULES = ("hooks", "plots")  # the names that are modules of their own

__all__ = [
    "SCHEDULERS",
    "AttentionMaps",
    "Batch",
    "Description",
    "Edit",
    "Event",
    "Hook",
    "Latents",
    "Model",
    "Profile",
    "Reading",
    "Result",
    "RoundTrip",
    "Stage",
    "Trace",
    "Walk",
    "animate",
    "app",
    "batch",
    "contact_sheet",
    "cost",
    "decode",
    "describe",
    "diffuse",
    "encode",
    "hooks",
    "image_to_image",
    "interpolate",
    "invert",
    "latent_to_rgb",
    "load",
    "on",
    "plots",
    "profile",
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
    if name == "__version__":
        from importlib.metadata import version

        return version("sdkit-stages")
    if name not in _ROOMS:
        raise AttributeError(f"module 'sdkit' has no attribute {name!r}")
    from sdkit.collecting import paused

    with paused():
        room = import_module(f"sdkit.{_ROOMS[name]}")
    value = globals()[name] = room if name in _MODULES else getattr(room, name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
