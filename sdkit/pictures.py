"""Pictures as people handle them: whatever they hand in, PIL, PNG files that carry settings, contact sheets.

It is longer than other files because pictures are handed in in many forms.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sdkit.files import COMMENT, EXIF, METADATA_KEY, USER_COMMENT, open_picture, whole_file

AnyArray = TypeVar("AnyArray", Tensor, np.ndarray)
_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}  # of formats


def to_pixels(
    image: Any,
    height: int | None = None,
    width: int | None = None,
    *,
    signed: bool = True,
    latent_channels: int | None = None,
) -> Tensor:
    """What people hand in as a picture, or a list of such, as (N, 3, H, W) float32 in [-1, 1].

    Args:
        image: PIL of any mode (turned as its EXIF data says, transparency laid on white, 16 bits and floats taken down
            to 8 bits), a path, an array (H, W), (H, W, 3) or (H, W, 4) of 0..255 or of floats, several (N, H, W, 3), a
            tensor (3, H, W) or (N, 3, H, W) of floats; or a list of these. Floats lie in [0, 1], or in [-1, 1] where
            some are negative.
        height, width: to fit it to; by default its own size, cut down to a multiple of 8, which a warning says.
        signed: False for values in [0, 1]; floats are then taken as they are.
        latent_channels: a tensor with so many channels is no picture but latents, and is returned as it is.

    Raises:
        TypeError: it is nothing of these.
        ValueError: its values or its shape are not, or pictures of a list differ in size.
        FileNotFoundError: there is no such file.
    """
    if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] == latent_channels:
        return image.detach().cpu()
    several = isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)
    every = list(image) if several else [image]
    if not every:
        raise ValueError("image is an empty list; give at least one picture")
    pictures = [_fit(one, height, width, signed) for one in every]
    sizes = {picture.shape[-2:] for picture in pictures}
    if len(sizes) > 1:
        listed = ", ".join(sorted(f"{w}x{h}" for h, w in sizes))
        raise ValueError(f"the pictures have different sizes ({listed}); give height and width to fit them to")
    return torch.cat(pictures)  # cat keeps the memory layout, in which convolutions round as they do in diffusers


def to_mask(image: Any, height: int, width: int) -> Tensor:
    """A mask, or a list of such, fitted to a size: (M, 1, H, W) float32, 1 where it is at least half white, else 0.

    Args:
        image: PIL or a path, of which transparency is left out of account, as diffusers does; an array or a tensor of
            truth values, of 0 and 1, of 0..255, or of floats in [0, 1], of shape (H, W), with one or three channels
            last or first, and for a tensor several masks (M, 1, H, W).

    Raises:
        ValueError: its values or its shape are not those of a mask.
    """
    masks = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    every = [one for each in (image if isinstance(image, list | tuple) else [image]) for one in _single_masks(each)]
    if not every:
        raise ValueError("mask_image is an empty list; give at least one mask")
    return torch.cat([masks.preprocess(one.convert("L"), height, width) for one in every])


def crop_to_mask(
    image: Any, mask: Any, height: int, width: int, padding: int
) -> tuple[Tensor, Tensor, Callable[[Image.Image], Image.Image]]:
    """The part of one picture around what a mask marks, with so many pixels beside it, enlarged to a size: pixels
    (1, 3, H, W) in [-1, 1], mask (1, 1, H, W), and what lays the part, painted anew, back into the whole."""
    whole, marked = to_rgb(image), _single_masks(mask)[0].convert("L")
    pictures = VaeImageProcessor()
    masks = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    if not marked.getbbox():
        raise ValueError("the mask is black, so there is no part of the picture to paint; leave padding_mask_crop out")
    box = masks.get_crop_region(marked, width, height, pad=padding)
    pixels, small = (
        one.preprocess(part, height, width, resize_mode="fill", crops_coords=box)
        for one, part in ((pictures, whole), (masks, marked))
    )
    return pixels, small, lambda part: pictures.apply_overlay(marked, whole, part, box)


def _single_masks(mask: Any) -> list[Image.Image]:
    if not isinstance(mask, Tensor | np.ndarray):
        return [_to_pil(mask)]
    array = mask.detach().float().cpu().numpy() if isinstance(mask, Tensor) and mask.is_floating_point() else mask
    array = np.asarray(array.cpu() if isinstance(array, Tensor) else array)
    if array.ndim == 4:
        return [one for each in array for one in _single_masks(each)]
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)  # channels first
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)) or not array.size:
        raise ValueError(f"a mask is (H, W), or has one or three channels, but is {array.shape}")
    low, high = float(array.min()), float(array.max())
    floats = np.issubdtype(array.dtype, np.floating)
    if not (low >= 0 and high <= (1 if floats else 255)) or (not floats and 1 < high < 128):
        raise ValueError(
            f"a mask holds truth values, 0 and 1, 0 to 255, or floats in [0, 1], but goes from {low:g} to {high:g}; "
            "of labels, compare with the one that is meant, as in labels == 3"
        )
    whole = (array * (1 if high > 1 else 255)).round().astype(np.uint8)
    return [Image.fromarray(whole[..., 0] if whole.shape[2:] == (1,) else whole)]


def _fit(image: Any, height: int | None, width: int | None, signed: bool) -> Tensor:
    """One picture, or a tensor of several, as (N, 3, H, W) in [-1, 1] or [0, 1], the sides multiples of 8."""
    if isinstance(image, Tensor):
        image = _in_range(_check_shape(image).detach().float().cpu(), signed)
        h, w = image.shape[-2:]
    elif isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating) and image.shape[2:] == (3,):
        image = _in_range(image.astype(np.float32), signed)  # not taken to 8 bits: floats keep their precision
        h, w = image.shape[:2]
    else:
        image = to_rgb(image)
        w, h = image.size
    to = height or h - h % 8, width or w - w % 8
    if min(to) < 8:
        raise ValueError(f"the picture is {w}x{h} pixels; expected at least 8x8")
    if to != (h, w) and (height, width) == (None, None):
        warnings.warn(f"the picture is {w}x{h}, which 8 does not divide; fitted to {to[1]}x{to[0]}", stacklevel=4)
    # Floats with negative values are in [-1, 1] already.
    normalise = signed and (isinstance(image, Image.Image) or float(image.min()) >= 0)
    pixels: Tensor = VaeImageProcessor(do_normalize=normalise).preprocess(image, *to)
    return pixels


def _check_shape(image: Tensor) -> Tensor:
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
        kind = f"{image.dtype} {tuple(image.shape)}"
        raise ValueError(f"a picture tensor is floats (3, H, W) or (N, 3, H, W), but is {kind}")
    return image


def _in_range(image: AnyArray, signed: bool = True) -> AnyArray:
    low, high = float(image.min()), float(image.max())
    if not (low >= -1 and high <= 1) and (signed or not math.isfinite(high - low)):
        raise ValueError(f"a picture of floats lies in [0, 1], or in [-1, 1], but goes from {low:g} to {high:g}")
    return image


def to_rgb(image: Any) -> Image.Image:
    """One picture as PIL in RGB, as `to_pixels` says."""
    image = _to_pil(_from_array(image) if isinstance(image, np.ndarray) else image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb: Image.Image = image.convert("RGB")
    return rgb


def _to_pil(image: Any) -> Any:
    """A picture or a path as PIL, turned as its EXIF data says, of 8 bits."""
    if isinstance(image, str | Path):
        image = open_picture(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"a picture is PIL, a path, an array or a tensor, but is a {type(image).__name__}")
    try:
        image.load()
    except Exception as error:  # of a file that somebody opened and nobody has read yet
        raise ValueError(f"the picture {getattr(image, 'filename', '')!r} is damaged: {error}") from error
    with suppress(Exception), warnings.catch_warnings(action="ignore"):  # of metadata that is broken
        image = ImageOps.exif_transpose(image)
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):
        raise ValueError(
            f"a picture of mode {image.mode!r} lies in [0, 1], 0..255 or 0..65535, but goes from {low:g} to {high:g}"
        )
    if image.mode.startswith("I;16") or high > 255:
        values = values / 257
    elif image.mode == "F" and high <= 1:
        values = values * 255
    return Image.fromarray(values.round().astype(np.uint8))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(f"a picture array is (H, W), (H, W, 3) or (H, W, 4), but is {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if _in_range(array).min() < 0:
            raise ValueError(f"an array of floats that is not (H, W, 3) lies in [0, 1], but has {array.min():g}")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"a picture array holds uint8 or floats, but is {array.dtype}")
    return Image.fromarray(array)


def to_pil(image: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] to RGB pictures, rounded as diffusers does.

    Raises:
        ValueError: the picture is not all finite numbers, which would come out black.
    """
    if not image.isfinite().all():
        raise ValueError(
            f"the decoded picture holds NaN or infinity (in {image.dtype}); with half precision, load the model with "
            "dtype='float32' or dtype='bfloat16', and otherwise look at what the hooks put in"
        )
    pictures: list[Image.Image] = VaeImageProcessor().postprocess(image, output_type="pil")
    return pictures


def hash_of(pictures: Any) -> str | None:
    """SHA-256 of the bytes of pictures, tensors or PIL, or of lists of them, one after another; None of None."""
    if pictures is None:
        return None
    digest = hashlib.sha256()
    rest = [pictures]
    while rest:
        one = rest.pop(0)
        if isinstance(one, list | tuple):
            rest = [*one, *rest]
        elif one is not None:
            digest.update(one.cpu().float().numpy().tobytes() if isinstance(one, Tensor) else one.tobytes())
    return digest.hexdigest()


def save_picture(picture: Image.Image, path: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Write what `picture_bytes` gives."""
    content = picture_bytes(picture, path, settings)
    with whole_file(path) as part:
        part.write_bytes(content)


def picture_bytes(picture: Image.Image, path: str | Path, settings: Mapping[str, Any] | None = None) -> bytes:
    """A picture as PNG, JPEG or lossless WebP, by the ending, with the settings that made it inside if any, as JSON in
    a PNG's text under the key "sdkit", otherwise in EXIF's comment after that word.

    Raises:
        ValueError: they are longer than a JPEG can hold.
    """
    kind = Image.registered_extensions()[Path(path).suffix.lower()]
    options = dict(_OPTIONS[kind])
    if settings is not None and kind == "PNG":
        options["pnginfo"] = info = PngInfo()
        info.add_itxt(METADATA_KEY, json.dumps(settings, ensure_ascii=False, allow_nan=False))
    elif settings is not None:
        options["exif"] = exif = Image.Exif()
        exif.get_ifd(EXIF)[USER_COMMENT] = comment = COMMENT + json.dumps(settings, allow_nan=False).encode()
        if kind == "JPEG" and len(comment) > 65_000:
            raise ValueError(f"the settings are longer than {str(path)!r} can hold as a JPEG; save it as PNG or WebP")
    content = BytesIO()
    picture.save(content, format=kind, **options)
    return content.getvalue()


def same_pixels(path: str | Path, picture: Image.Image) -> bool:
    """Whether a file holds a picture, as its format keeps it."""
    opened, kept = open_picture(path), BytesIO()
    kind = opened.format or "PNG"
    picture.save(kept, kind, **_OPTIONS.get(kind, {}))
    return np.array_equal(np.asarray(to_rgb(opened)), np.asarray(to_rgb(Image.open(kept))))


def contact_sheet(pictures: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """All pictures on one page, row by row, `gap` pixels apart; about as wide as high unless `columns` is given.

    Example:
        >>> result = sdkit.text_to_image("a red star", seed=7, num_images_per_prompt=4)
        >>> sdkit.contact_sheet(result.images).size
        (268, 268)
    """
    if not isinstance(pictures, list | tuple) or not all(isinstance(one, Image.Image) for one in pictures):
        raise TypeError("a contact sheet takes a list of PIL pictures, such as result.images; open files with PIL")
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture, but none was given")
    for name, value, least in (("columns", 1 if columns is None else columns, 1), ("gap", gap, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= 10_000:
            raise ValueError(f"{name} must be a whole number from {least} to 10000, but is {value!r:.80}")
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = (max(sizes) + gap for sizes in zip(*(picture.size for picture in pictures), strict=True))
    page = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture, (gap + i % columns * width, gap + i // columns * height))
    return page
