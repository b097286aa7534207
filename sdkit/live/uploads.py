"""Pictures and other files that a visitor sends."""

from __future__ import annotations

import base64
import binascii
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps

from sdkit.files import open_picture
from sdkit.live.files import lying
from sdkit.live.limits import FORMATS, PIXELS, UPLOAD
from sdkit.pictures import to_rgb


def uploaded(data: Any) -> bytes:
    """The bytes of a file that a page has sent, as base64 or as a data URI.

    Raises:
        ValueError: they are too many, or no base64.
    """
    if not isinstance(data, str):
        raise ValueError("a file is sent as base64")
    if len(data) > UPLOAD * 4 // 3 + 100:
        raise ValueError(f"the file is larger than {UPLOAD // 2**20} MB; make it smaller first")
    try:
        return base64.b64decode(data.rpartition(",")[2], validate=True)
    except binascii.Error:
        raise ValueError("the file came damaged; send it again") from None


def picture(data: Any) -> Image.Image:
    """A picture that a page has sent, in RGB.

    Raises:
        ValueError: it is none of `FORMATS`, damaged, or too large.
    """
    raw = uploaded(data)
    try:
        with Image.open(BytesIO(raw), formats=FORMATS) as opened:  # reads the head alone
            width, height = opened.size
    except Image.DecompressionBombError:
        raise ValueError(f"the picture has more than {PIXELS // 10**6} million pixels; make it smaller first") from None
    except Exception:
        raise ValueError(
            f"this is no picture in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or it is damaged"
        ) from None
    if width * height > PIXELS:
        raise ValueError(f"the picture has {width} x {height} pixels; {PIXELS // 10**6} million are the most here")
    with lying(raw, "picture") as path:  # the one reader of strangers' pictures takes files
        return open_picture(path)


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture cropped around its centre and scaled to a size (height, width), without transparency."""
    return ImageOps.fit(to_rgb(image), size[::-1], Image.Resampling.LANCZOS)
