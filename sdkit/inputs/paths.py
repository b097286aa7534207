"""Where results go and where models come from: file names, checked before any work begins."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

from sdkit.inputs.checks import installed

TINY = "sdkit/tiny"  # the embedded model's name in settings
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # that carry settings
FPS = (0.01, 1000.0)  # what films can hold


def picture_paths(path: str | Path, pictures: int, endings: tuple[str, ...] = PICTURES[:1]) -> list[Path]:
    """Where so many pictures go: star.png for one, star-1.png, star-2.png, ... for several.

    Raises:
        ValueError: the file name does not end in .png, or whatever else is allowed.
        FileNotFoundError: its folder does not exist.
    """
    if Path(path).expanduser().is_dir():
        raise ValueError(f"{str(path)!r} is a folder; give the name of a PNG in it")
    what = "a page of pictures is a PNG" if endings == PICTURES[:1] else "pictures are saved with their settings inside"
    return numbered(_checked(path, endings, what), pictures)


def numbered(place: Path, many: int) -> list[Path]:
    """A file name for each of so many."""
    return [place] if many == 1 else [place.with_stem(f"{place.stem}-{i + 1}") for i in range(many)]


def chosen(path: str | None, default: str, many: int = 1) -> str:
    """The name that was given, or the default, with -2, -3, ... after it where one of so many files is there before."""
    if path is not None:
        return path
    others = (str(Path(default).with_stem(f"{Path(default).stem}-{i}")) for i in count(2))
    return next(one for one in chain([default], others) if not any(map(os.path.lexists, numbered(Path(one), many))))


def film_path(path: str | Path) -> Path:
    """Where a film is to be written.

    Raises:
        ValueError: the file name ends in none of .gif, .webp and .mp4, or what writes MP4 is not installed.
        FileNotFoundError: its folder does not exist.
    """
    place = _checked(path, (".gif", ".webp", ".mp4"), "a film is saved as GIF, WebP or MP4")
    if place.suffix.lower() == ".mp4":
        installed("imageio_ffmpeg", "MP4 needs imageio-ffmpeg", "plots")
    return place


def report_path(path: str | Path) -> Path:
    """Where a report is to be written.

    Raises:
        ValueError: the file name does not end in .html.
        FileNotFoundError: its folder does not exist.
    """
    return _checked(path, (".html", ".htm"), "a report is a page")


def trace_path(path: str | Path) -> Path:
    """Where a trace is to be written.

    Raises:
        ValueError: the file name does not end in .safetensors.
        FileNotFoundError: its folder does not exist.
    """
    return _checked(path, (".safetensors",), "a trace is saved as safetensors")


def apart(written: Iterable[str | Path], read: Iterable[str | Path], what: str = "a picture to be read") -> None:
    """Refuse to write over what is read, or twice to one file."""
    written = list(written)
    inputs, outputs = ([os.path.realpath(Path(one).expanduser()) for one in each] for each in (read, written))
    for path, place in zip(written, outputs, strict=True):
        if place in inputs:
            raise ValueError(f"{str(path)!r} is {what}; give the new one another name with -o")
        if outputs.count(place) > 1:
            raise ValueError(f"{str(path)!r} would be written twice; give each file a name of its own")


def _checked(path: str | Path, endings: tuple[str, ...], what: str) -> Path:
    place = Path(path).expanduser()
    if place.suffix.lower() not in endings:
        raise ValueError(f"{what}, so {str(path)!r} must end in {' or '.join(endings)}")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(place.parent)!r} does not exist; make it first")
    if not os.access(place.parent, os.W_OK):
        raise PermissionError(f"nothing can be written to the folder {str(place.parent)!r}; choose another")
    return place


def model_source(model: str | Path, *, allow_pickle: bool = False) -> Path | None:
    """The file or the folder that a model's name stands for, or None for an id on the hub.

    Raises:
        FileNotFoundError: it is neither a file, nor a folder in diffusers' layout, nor an id.
        ValueError: it is a pickle, or a file of another kind.
    """
    place = Path(model).expanduser()
    if place.is_file():
        if place.suffix in PICKLES and not allow_pickle:
            raise ValueError(
                f"{str(model)!r} is a pickle, which may run code when it is read; fetch its .safetensors, or call "
                "sdkit.load(..., allow_pickle=True) if you trust it"
            )
        if place.suffix not in (".safetensors", *PICKLES):
            raise ValueError(f"{str(model)!r} is a file of an unknown kind; expected .safetensors, or a folder")
        return place
    if place.is_dir():
        if not (place / "model_index.json").is_file():
            raise FileNotFoundError(f"the folder {str(model)!r} has no model_index.json; expected diffusers' layout")
        return place
    if place.suffix in (".safetensors", *PICKLES) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(model)):
        raise FileNotFoundError(
            f"there is no file or folder {str(model)!r}, nor is that an id of the form owner/name on the hub"
        )
    return None
