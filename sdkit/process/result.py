"""The end of a run: its pictures and what made them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from sdkit.door import Shown
from sdkit.inputs.paths import PICTURES, picture_paths
from sdkit.pictures import contact_sheet, save_picture


@dataclass(frozen=True, eq=False)
class Result(Shown):
    """Pictures and what made them. It counts and gives its pictures as a list does."""

    images: list[Image.Image]
    latents: Tensor  # (B, C, h, w), what diffusers returns for output_type="latent"
    seeds: list[int] | None  # one a picture; None where generators were given instead
    settings: dict[str, Any]  # plain JSON values, all that made them but hooks
    first: int = 0  # number of the first of them among those that were made together

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]

    @property
    def page(self) -> Image.Image:
        """All of them on one page, which of a single picture is itself."""
        return self.image if len(self.images) == 1 else contact_sheet(self.images)

    def show(self) -> None:
        """Open them with this machine's viewer of pictures, or in the notebook's cell.

        Example:
            >>> sdkit.text_to_image("a red star", seed=7).show()
        """
        self.page.show()

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[index]

    def __repr__(self) -> str:
        many, (width, height) = len(self.images), self.image.size
        size = f"{many} picture{'s' * (many > 1)} of {width}x{height}"
        return f"<Result of {self.settings['prompt']!r}, seed {self.seeds}: {size}>"

    def save(self, path: str | Path) -> list[Path]:
        """Write the pictures with their settings inside: out.png, or out-1.png, out-2.png, ... for several.

        Args:
            path: its ending says the format: .png, .webp (as exact), or .jpg, which keeps the pixels only nearly.

        Returns:
            The paths, one for each picture.

        Example:
            >>> paths = sdkit.text_to_image(["a red star", "a blue fish"], seed=7).save("out.png")
            >>> [path.name for path in paths]
            ['out-1.png', 'out-2.png']
        """
        paths = picture_paths(path, len(self.images), PICTURES)
        for index, (picture, place) in enumerate(zip(self.images, paths, strict=True)):
            save_picture(picture, place, {**self.settings, "index": self.first + index})
        return paths
