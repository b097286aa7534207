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
    _models: dict[str, Model] = field(default_factory=dict)
    _loading: Any = field(default_factory=Lock)
    _fitting: Any = field(default_factory=Lock)

    def model(self, name: str = "") -> Model:
        """A model, loaded when it is first asked for. "" is the first.

        Raises:
            ValueError: there is none of this name: only those that the page was started with are ever loaded.
        """
        name = pick("model", name or next(iter(self.sources)), list(self.sources))
        with self._loading:
            if name not in self._models:
                self._models[name] = load(self.sources[name])
            return self._models[name]

    def colours(self, name: str = "") -> ColourMap:
        """The colours of a model's latents: a second's work, which the page does not wait for."""
        model = self.model(name)
        with self._fitting:
            rgb = latent_to_rgb(model)
        return ColourMap(rgb.weight.T, rgb.bias)

    def about(self, name: str = "") -> dict[str, Any]:
        """What a page needs to know before the first run."""
        model = self.model(name)
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
            if self.model(name).fingerprint() == settings.get("model_hash"):
                return name
        made = settings.get("model")
        raise ValueError(f"the file was made by another model, {told(made)}; start the page with it to open the file")
