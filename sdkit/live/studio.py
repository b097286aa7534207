"""The models of a page, which all its visitors share, and what they know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from sdkit.inputs.checks import pick, told
from sdkit.latents.previews import latent_to_rgb
from sdkit.live import limits
from sdkit.live.kept import Shelf
from sdkit.measure import ColourMap
from sdkit.model.loading import TINY, load
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
        known = vocabulary(model)
        return {
            "models": list(self.sources),
            "vocabulary": None if known is None else sorted(known),
            "schedulers": list(SCHEDULERS),
            "methods": list(METHODS),
            "size": list(model.size),
            "num_inference_steps": model.num_inference_steps,
            "guidance_scale": model.guidance_scale,
            "most": {"steps": limits.STEPS, "guidance": limits.GUIDANCE, "letters": limits.LETTERS},
        }

    def maker(self, settings: Mapping[str, Any]) -> str:
        """Which model of this page made a file: known by its weights, whatever name the file has for it."""
        for name in self.sources:
            if self.model(name)[0].fingerprint() == settings.get("model_hash"):
                return name
        made = settings.get("model")
        raise ValueError(f"the file was made by another model, {told(made)}; start the page with it to open the file")


def vocabulary(model: Model) -> frozenset[str] | None:
    """The words that a model knows, or None where every word is one: checkpoints have read the web."""
    if model.name != TINY:
        return None
    whole_words = (piece.removesuffix("</w>") for piece in model.tokenizer.get_vocab() if piece.endswith("</w>"))
    return frozenset(word for word in whole_words if len(word) > 1 and word.isalpha()) | {"a"}


def unknown_words(model: Model, prompt: str) -> list[str]:
    """The words of a prompt that the model has never read."""
    known = vocabulary(model)
    words = ("".join(letter for letter in word if letter.isalnum()) for word in prompt.lower().split())
    return [] if known is None else [word for word in dict.fromkeys(words) if word and word not in known]
