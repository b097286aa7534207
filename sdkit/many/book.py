"""The folder of a batch, which never loses a picture and never makes one twice: pictures by the key of their job, and a
row for each, written once its pictures are on the disk. What has a row is done; rows end up in one manifest."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdkit.files import whole_file
from sdkit.inputs.checks import installed
from sdkit.many.jobs import Bad, digest

MANIFEST, FAILED, BEGUN = "manifest.parquet", "failed.jsonl", "run.json"
COLUMNS = {  # of the manifest, a row for each picture, with the Arrow type of each
    "key": "string",  # of the job
    "file": "string",  # within the folder
    "index": "int32",  # of the picture among those of its job
    "function": "string",
    "prompt": "string",
    "seed": "uint64",
    "width": "int32",
    "height": "int32",
    "num_inference_steps": "int32",
    "guidance_scale": "float64",
    "scheduler": "string",  # its class
    "model": "string",
    "model_hash": "string",
    "sha256": "string",  # of the file
    "seconds": "float64",  # its share of the time of those that were made with it
    "together": "int32",  # pictures that were made in one go, itself included
    "trace": "string",  # the file of it, within the folder
    "settings": "string",  # JSON, as in the picture itself
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A job that has been carried out."""

    key: str
    function: str
    pictures: list[bytes]  # of PNG files
    sizes: list[tuple[int, int]]  # width and height of each
    settings: Mapping[str, Any]
    seconds: float
    together: int
    trace: bytes | None = None


class Book:
    """A folder on this machine, or the URL of one that fsspec knows."""

    def __init__(self, folder: str | Path) -> None:
        from fsspec.core import url_to_fs

        try:
            self.files, self.root = url_to_fs(str(Path(folder).expanduser() if isinstance(folder, Path) else folder))
        except (ValueError, ImportError) as error:
            raise ValueError(f"{str(folder)!r} is no folder that can be written to: {error}") from error
        self.local = "file" in self.files.protocol
        self.folder = str(folder)

    def place(self, name: str) -> str:
        """The path of a file in the folder, as its file system has it."""
        return posixpath.join(self.root, name)

    def write(self, name: str, content: bytes) -> None:
        """A file of the folder, whole or not at all: an object store writes so by itself."""
        place = self.place(name)
        if not self.local:
            self.files.pipe_file(place, content)
            return
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as part:
            part.write_bytes(content)

    @contextmanager
    def alone(self, made_by: Mapping[str, Any]) -> Iterator[None]:
        """The folder for one run at a time, and for one set-up of the model for good.

        Raises:
            ValueError: it belongs to another set-up, or another run is at work in it.
        """
        with self._locked():
            if not self.files.exists(self.place(BEGUN)):
                self.write(BEGUN, json.dumps(made_by, indent=2).encode())
            before = self._begun()
            for name, value in made_by.items():
                if before.get(name) != value:
                    raise ValueError(
                        f"{self.folder!r} was begun with {name} {before.get(name)!r} and not {value!r}; give that, or "
                        "another folder"
                    )
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone in a folder on this machine, for as long as this process lives."""
        if not self.local:
            yield
            return
        from filelock import FileLock, Timeout

        Path(self.root).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.place(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"another run is at work in {self.folder!r}; wait for it, or give another one") from None
        try:
            yield
        finally:
            lock.release()

    def rows(self) -> list[Row]:
        """What has been made so far: the rows of the manifest, and those that are not in it yet."""
        rows = {(row["key"], row["index"]): row for row in self._in_manifest(list(COLUMNS))}
        for place in self._loose():
            rows |= {(row["key"], row["index"]): row for row in json.loads(self.files.cat_file(place))}
        return list(rows.values())

    def done(self) -> set[str]:
        """The keys of jobs of which every picture is there."""
        wanted: dict[str, list[str]] = {}
        for row in self._in_manifest(["key", "file"]):
            wanted.setdefault(row["key"], []).append(row["file"])
        for place in self._loose():
            for row in json.loads(self.files.cat_file(place)):
                wanted.setdefault(row["key"], []).append(row["file"])
        there = {place.removeprefix(self.place("")) for place in self._find("pictures")} if wanted else set()
        return {key for key, names in wanted.items() if there.issuperset(names)}

    def keep(self, jobs: Sequence[Made]) -> None:
        """Write the pictures of jobs that were made together, and then the rows that say so."""
        rows: list[Row] = []
        for one in jobs:
            stem = f"{one.key[:2]}/{one.key}"
            trace = None if one.trace is None else f"traces/{stem}.safetensors"
            if one.trace is not None and trace is not None:
                self.write(trace, one.trace)
            for index, (content, size) in enumerate(zip(one.pictures, one.sizes, strict=True)):
                name = f"pictures/{stem}.png" if len(one.pictures) == 1 else f"pictures/{stem}-{index + 1}.png"
                self.write(name, content)
                rows.append(_row(one, index, name, size, content) | {"trace": trace})
        if rows:
            self.write(f"rows/{digest(''.join(one.key for one in jobs))}.json", json.dumps(rows).encode())

    def close(self, order: Iterable[str], bad: Sequence[Bad]) -> None:
        """Write the manifest in the order of the keys, what was made before and is not among them after it; and what
        was set aside, each on a line with its reason."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        loose, rows = self._loose(), self.rows()
        if loose or not self.files.exists(self.place(MANIFEST)):
            ranks = {key: rank for rank, key in enumerate(order)}
            rows.sort(key=lambda row: (ranks.get(row["key"], len(ranks)), row["key"], row["index"]))
            schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()])
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
            self.write(MANIFEST, sink.getvalue().to_pybytes())
        for place in loose:
            self.files.rm_file(place)
        if bad:
            lines = [json.dumps(asdict(one), ensure_ascii=False, default=str) for one in bad]
            self.write(FAILED, "".join(f"{line}\n" for line in lines).encode())
        elif self.files.exists(self.place(FAILED)):
            self.files.rm_file(self.place(FAILED))

    def _begun(self) -> Any:
        place = self.place(BEGUN)
        try:
            return json.loads(self.files.cat_file(place))
        except ValueError as error:
            raise ValueError(f"{place!r} is damaged: {error}; give another folder") from error

    def _in_manifest(self, columns: list[str]) -> list[Row]:
        if not self.files.exists(self.place(MANIFEST)):
            return []
        installed("pyarrow", "a manifest needs pyarrow", "batch")

        import pyarrow.parquet as pq

        with self.files.open(self.place(MANIFEST), "rb") as file:
            rows: list[Row] = pq.ParquetFile(file).read(columns).to_pylist()  # `read_table` would import pandas
        return rows

    def _loose(self) -> list[str]:
        """The files of rows that are not in the manifest yet."""
        return [place for place in self._find("rows") if place.endswith(".json") and "/." not in place]

    def _find(self, name: str) -> list[str]:
        found: list[str] = self.files.find(self.place(name))
        return sorted(found)


def _row(one: Made, index: int, name: str, size: tuple[int, int], content: bytes) -> Row:
    """What the manifest has of one picture."""
    settings, seeds = one.settings, one.settings.get("seed")
    prompts = settings.get("prompt")
    each = settings.get("num_images_per_prompt") or 1
    return {
        "key": one.key,
        "file": name,
        "index": index,
        "function": one.function,
        "prompt": prompts[index // each] if isinstance(prompts, list) else prompts,
        "seed": seeds[index] if isinstance(seeds, list) else seeds,
        "width": size[0],
        "height": size[1],
        **{name: settings.get(name) for name in ("num_inference_steps", "guidance_scale", "model", "model_hash")},
        "scheduler": (settings.get("scheduler") or {}).get("class"),
        "sha256": hashlib.sha256(content).hexdigest(),
        "seconds": one.seconds / len(one.pictures),
        "together": one.together,
        "settings": json.dumps({**settings, "index": index}, ensure_ascii=False),
    }
