"""Files of visitors: what they download of a run, and what they bring of an earlier one. Each lies in a folder of its
own, under a name of ours, for as long as it takes to write or to read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdkit.live.kept import Kept
from sdkit.pictures import save_picture
from sdkit.show.film import animate
from sdkit.show.report import write_report
from sdkit.tasks.again import read_settings
from sdkit.trace.record import value_of
from sdkit.trace.trace import Trace

BRANCH = "a branch"  # what is said to have edited a picture that the settings beside it would not make alone


def _picture(kept: Kept, path: Path) -> None:
    if not kept.trace.images:
        raise ValueError("this run was left before its picture; go on with it first")
    settings = {**kept.trace.settings, "index": 0}
    if kept.branched:
        settings["edited_by"] = [*settings["edited_by"], BRANCH]
    save_picture(kept.trace.images[0], path, settings)


DOWNLOADS: dict[str, tuple[Callable[[Kept, Path], Any], str]] = {
    "picture.png": (_picture, "image/png"),
    "trace.safetensors": (lambda kept, path: kept.trace.save(path), "application/octet-stream"),
    "report.html": (lambda kept, path: write_report(kept.trace, path, maps=kept.maps), "text/html"),
    "film.gif": (lambda kept, path: animate(kept.trace, path), "image/gif"),
}


def download(kept: Kept, what: str) -> tuple[bytes, str]:
    """One of `DOWNLOADS` of a run as bytes, and its kind.

    Raises:
        ValueError: the run has not come to it.
    """
    write, kind = DOWNLOADS[what]
    with TemporaryDirectory() as folder:
        path = Path(folder, what)
        write(kept, path)
        return path.read_bytes(), kind


@contextmanager
def lying(raw: bytes, name: str) -> Iterator[Path]:
    """Bytes as a file, for readers that take nothing else; what they say of it names it "the file"."""
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(raw)
        try:
            yield path
        except ValueError as error:
            raise ValueError(str(error).replace(repr(str(path)), "the file").replace(str(path), "the file")) from None


def settings_in(raw: bytes) -> dict[str, Any]:
    """The settings that a picture of sdkit carries."""
    with lying(raw, "picture.png") as path:
        return read_settings(path)


def trace_in(raw: bytes) -> Trace:
    """A trace, all of it in memory."""
    with lying(raw, "trace.safetensors") as path:
        trace = Trace.load(path)
        trace.records = [replace(record, source=record.value) for record in trace.records]
        trace.stepped = {step: value_of(source) for step, source in trace.stepped.items()}
        return trace
