"""The models of a page, which all its visitors share, and what they know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from sdkit.inputs.checks import pick, told
from sdkit.inputs.paths import TINY
from sdkit.latents.previews import latent_to_rgb
from sdkit.live import limits
from sdkit.live.kept import Shelf
from sdkit.measure import ColourMap
from sdkit.model.loading import load
from sdkit.model.model import Model
from sdkit.model.schedulers import SCHEDULERS

METHODS = ("apg", "cads", "cfg_zero", "free_u", "pag", "sag", "seg")  # hooks that need no arguments


@dataclass(eq=False)
class Studio:
    """The models that visitors share, by their names, and the runs that are kept of them."""

    sources: Mapping[str, Any] = field(default_factory=lambda: {TINY: None})  # what `load` takes
    shelf: Shelf = field(default_factory=Shelf)
    _models: dict[str, tuple[Model, ColourMap]] = field(default_factory=dict)
    _lock: Any = field(default_factory=Lock)

    def model(self, name: str = "") -> tuple[Model, ColourMap]:
        """A model, loaded when it is first asked for, and the colours of its latents. "" is the first.

        Raises:
            ValueError: there is none of this name: only those that the page was started with are ever loaded.
        """
        name = pick("model", name or next(iter(self.sources)), list(self.sources))
        with self._lock:
            if name not in self._models:
                model = load(self.sources[name])
                rgb = latent_to_rgb(model)
                self._models[name] = model, ColourMap(rgb.weight.T, rgb.bias)
            return self._models[name]

    def about(self, name: str = "") -> dict[str, Any]:
        """What a page needs to know before the first run."""
        model, _ = self.model(name)
        return {
            "models": list(self.sources),
            "vocabulary": list(model.vocabulary),
            "schedulers": list(SCHEDULERS),
            "methods": list(METHODS),
            "size": list(model.size),
            "num_inference_steps": model.num_inference_steps,
            "guidance_scale": model.guidance_scale,
            "most": {"steps": limits.STEPS, "guidance": limits.GUIDANCE, "letters": limits.LETTERS},
        }

    def wish(self, run: Any, wish: str) -> None:
        """Have a run that is on its way pause, or stop with the picture that it then predicts."""
        self.shelf.get(run).wish = pick("wish", wish, ("pause", "stop"))

    def maker(self, settings: Mapping[str, Any]) -> str:
        """Which model of this page made a file: known by its weights, whatever name the file has for it."""
        for name in self.sources:
            if self.model(name)[0].fingerprint() == settings.get("model_hash"):
                return name
        made = settings.get("model")
        raise ValueError(f"the file was made by another model, {told(made)}; start the page with it to open the file")
