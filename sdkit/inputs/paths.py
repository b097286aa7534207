"""Where results go and where models come from: file names, checked before any work begins."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def picture_paths(path: str | Path, pictures: int) -> list[Path]:
    """Where so many pictures go: star.png for one, star-1.png, star-2.png, ... for several.

    Raises:
        ValueError: the file name does not end in .png, the format that carries settings.
        FileNotFoundError: its folder does not exist.
    """
    if Path(path).expanduser().is_dir():
        raise ValueError(f"{str(path)!r} is a folder; give the name of a PNG in it")
    place = _checked(path, (".png",), "pictures are saved as PNG with their settings inside")
    if pictures == 1:
        return [place]
    return [place.with_stem(f"{place.stem}-{i + 1}") for i in range(pictures)]


def film_path(path: str | Path) -> Path:
    """Where a film is to be written.

    Raises:
        ValueError: the file name ends in none of .gif, .webp and .mp4, or what writes MP4 is not installed.
        FileNotFoundError: its folder does not exist.
    """
    place = _checked(path, (".gif", ".webp", ".mp4"), "a film is saved as GIF, WebP or MP4")
    if place.suffix.lower() == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ValueError('MP4 needs imageio-ffmpeg, which is not installed: pip install "sdkit-stages[plots]"')
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


def _checked(path: str | Path, endings: tuple[str, ...], what: str) -> Path:
    place = Path(path).expanduser()
    if place.suffix.lower() not in endings:
        raise ValueError(f"{what}, so {str(path)!r} must end in {' or '.join(endings)}")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(place.parent)!r} does not exist; make it first")
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
