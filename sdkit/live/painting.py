"""What a visitor paints on a run, as hooks: colours on the picture that a step predicts, and where a word is to act."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.hooks import paint_with_words
from sdkit.latents.autoencoder import encode

CELLS = 256 * 256  # of a painting, at most


def cells_of(painting: Any, low: int, high: int) -> Tensor:
    """The cells of a painting, (h, w) whole numbers: {"height": h, "width": w, "cells": [...]}, row by row.

    Raises:
        ValueError: it is no such thing, or a cell lies outside of `low` to `high`.
    """
    found = painting if isinstance(painting, Mapping) else {}
    h, w, cells = found.get("height"), found.get("width"), found.get("cells")
    if not (isinstance(h, int) and isinstance(w, int) and isinstance(cells, list)) or min(h, w) < 1:
        raise ValueError("a painting has height, width, and a list of cells")
    if h * w > CELLS or len(cells) != h * w:
        raise ValueError(f"a painting of {h} x {w} has as many cells, at most {CELLS}")
    if not all(type(one) is int and low <= one <= high for one in cells):
        raise ValueError(f"the cells of a painting are whole numbers from {low} to {high}")
    return torch.tensor(cells).view(h, w)


def colours(painting: Any, step: int) -> Hook:
    """Lay colours on the picture that a step predicts: decoded, painted and encoded again, it stands for x0 where there
    is paint.

    Args:
        painting: as `cells_of` takes it, each cell the number of one of "colours" (as "#a8401a"), or -1.
    """
    palette = painting.get("colours") if isinstance(painting, Mapping) else None
    if not isinstance(palette, list) or not all(re.fullmatch("#[0-9a-fA-F]{6}", str(one)) for one in palette):
        raise ValueError('the colours of a painting are a list such as ["#a8401a"]')
    cells = cells_of(painting, -1, len(palette) - 1)
    rgb = torch.tensor([[int(one[i : i + 2], 16) / 127.5 - 1 for i in (1, 3, 5)] for one in palette] or [[0.0] * 3])
    flat = rgb[cells.clamp(min=0)].movedim(-1, 0)[None]  # (1, 3, h, w) in [-1, 1]
    where = (cells >= 0).float()[None, None]  # (1, 1, h, w)

    @on(Stage.DENOISED, steps=[step])
    def painted(event: Event) -> None:
        x0, model = event.value, event.run.model
        picture = model.decode(x0).float().cpu().clamp(-1, 1)
        paint, mask = (F.interpolate(one, picture.shape[-2:], mode="nearest-exact") for one in (flat, where))
        new = encode((torch.lerp(picture, paint, mask) + 1) / 2, model=model).tensor
        event.value = torch.lerp(x0, new.to(x0), F.interpolate(where, x0.shape[-2:], mode="area").to(x0))

    return painted


def looks(painting: Any) -> Hook:
    """Have a word act where it is painted from here on.

    Args:
        painting: as `cells_of` takes it, with the "word": 1 is where it acts, -1 where it does not.
    """
    word = painting.get("word") if isinstance(painting, Mapping) else None
    if not isinstance(word, str):
        raise ValueError("a painting of attention names its word")
    return paint_with_words(word, cells_of(painting, -1, 1).float())
