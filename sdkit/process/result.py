"""The end of a run: its pictures and what made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from sdkit.door import ask
from sdkit.inputs.paths import PICTURES, picture_paths
from sdkit.pictures import save_picture


@dataclass(frozen=True, eq=False)
class Result:
    """Pictures and what made them."""

    images: list[Image.Image]
    latents: Tensor  # (B, C, h, w), what diffusers returns for output_type="latent"
    seeds: list[int] | None  # one a picture; None where generators were given instead
    settings: dict[str, Any]  # plain JSON values, all that made them but hooks
    first: int = 0  # number of the first of them among those that were made together

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]

    def __repr__(self) -> str:
        many, (width, height) = len(self.images), self.image.size
        size = f"{many} picture{'s' * (many > 1)} of {width}x{height}"
        return f"<Result of {self.settings['prompt']!r}, seed {self.seeds}: {size}>"

    def save(self, path: str | Path) -> list[Path]:
        """Write the pictures with their settings inside: out.png, or out-1.png, out-2.png, ... for several.

        Args:
            path: its ending says the format: .png, .webp (as exact), or .jpg, which keeps the pixels only nearly.
        """
        paths = picture_paths(path, len(self.images), PICTURES)
        for index, (picture, place) in enumerate(zip(self.images, paths, strict=True)):
            save_picture(picture, place, {**self.settings, "index": self.first + index})
        return paths

    def _repr_html_(self) -> str:
        html: str = ask("show_html", self)
        return html
