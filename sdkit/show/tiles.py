"""Small pictures for pages: shrunk, side by side as one sheet, coloured by heat, and as data URIs."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

TILE = 64  # pixels of a small picture, at most
LOSSLESS = 256  # pixels of a side up to which a picture is kept exactly
# "inferno" of matplotlib at nine places: from black over purple and orange to light yellow, even to most eyes
STOPS = ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4")


def small(pixels: Tensor, side: int = TILE) -> Tensor:
    """Pictures (N, C, h, w) shrunk until no side is longer than this."""
    h, w = pixels.shape[-2:]
    share = min(1.0, side / max(h, w))
    return pixels if share == 1 else adaptive_avg_pool2d(pixels, (max(1, round(h * share)), max(1, round(w * share))))


def sheet(rows: list[Tensor], quality: int | None = 70) -> str:
    """Rows of small pictures, each (N, 3, h, w) in [0, 1], as one picture in a data URI."""
    return uri(torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2), quality)


def uri(pixels: Tensor, quality: int | None = None) -> str:
    """A picture (3, H, W) in [0, 1] as WebP in a data URI; lossless without a quality."""
    whole = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu().contiguous().numpy()
    buffer = io.BytesIO()
    picture = Image.fromarray(whole)
    if quality is None:
        picture.save(buffer, "WEBP", lossless=True, quality=60, method=4)
    else:
        picture.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_colours(heat: Tensor) -> Tensor:
    """Heat (..., h, w) in [0, 1] as colours (..., 3, h, w) in [0, 1]."""
    stops = torch.tensor([[int(one[i : i + 2], 16) / 255 for i in (0, 2, 4)] for one in STOPS])  # (S, 3)
    place = heat.float().clamp(0, 1) * (len(stops) - 1)
    low = place.floor().long().clamp(max=len(stops) - 2)
    return torch.lerp(stops[low], stops[low + 1], (place - low).unsqueeze(-1)).movedim(-1, -3)
