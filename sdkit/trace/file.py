"""A trace as one safetensors file: tensors, and a JSON header in its metadata. docs/trace-format.md has the details.

It is longer than other files because whatever a stranger's file says is checked here, before anything reads it.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary, finalize

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sdkit.events import Edit, Stage
from sdkit.files import whole_file
from sdkit.inputs.paths import trace_path
from sdkit.inputs.record import check_record
from sdkit.model import schedulers
from sdkit.trace.record import Record, value_of

FORMAT = 1  # of the file; a reader refuses what is newer
KEY = "sdkit_trace"  # of the file's metadata, which holds the header as JSON
_TYPES = {  # by the names that safetensors has for them
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def save(path: str | Path, header: dict[str, Any], records: Sequence[Record], stepped: Mapping[int, Any]) -> Path:
    """Write a file, whole or not at all: what was there before stays until then."""
    place = trace_path(path)
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[int, torch.Size], str] = {}
    taken: set[int] = set()  # memory that a value lies in
    last: set[str] = set()  # tensors that lie with their channels last, in which convolutions round otherwise

    def name_of(value: Tensor, name: str) -> str:
        """What is the same is written once: without guidance what was guided is what was predicted. A part of another
        value, as a hook may give it, is written as a copy: the format has no two tensors in one memory."""
        if value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last):
            last.add(name)
        key = (value.data_ptr(), value.shape)
        if key not in names:
            memory = value.untyped_storage().data_ptr()
            names[key] = name
            tensors[name] = (
                value.clone(memory_format=torch.contiguous_format) if memory in taken else value.contiguous()
            )
            taken.add(memory)
        return names[key]

    values = [record.value for record in records]  # one object each while names are given: no address comes twice
    predictions = {step: value_of(source) for step, source in stepped.items()}
    entries = [
        {
            "stage": record.stage.value,
            "step": record.step,
            "t": record.t,
            "layer": record.layer,
            "edits": [asdict(edit) for edit in record.edits],
            "tensor": name_of(value, f"{i:05d}.{record.stage.value}"),
        }
        for i, (record, value) in enumerate(zip(records, values, strict=True))
    ]
    header = {
        "format": FORMAT,
        **header,
        "stepped": {str(step): name_of(value, f"stepped.{step}") for step, value in predictions.items()},
        "records": entries,
    }
    header["channels_last"] = sorted(last & tensors.keys())
    with whole_file(place) as part:
        try:
            save_file(tensors, part, metadata={KEY: json.dumps(header)})
        except SafetensorError as error:  # how that library says that the disk is full
            raise OSError(str(error)) from error
    return place


def load(path: str | Path) -> tuple[dict[str, Any], list[Record], dict[int, Any]]:
    """The header, the records and the predictions that edited x0 stand for, each value read when it is asked for."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no trace {str(path)!r}")
    try:
        file = _Tensors(path)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is cut short or no safetensors file; save the trace again") from error
    if not file.metadata.get(KEY):
        raise ValueError(f"{str(path)!r} holds tensors but no trace; expected a file that Trace.save wrote")
    try:
        return _parsed(_checked(json.loads(file.metadata[KEY]), file, str(path)), file)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}; save the trace again") from error


_LATENTS = (Stage.LATENT, Stage.GUIDED, Stage.DENOISED)  # of one shape in a run
_DIMENSIONS = {
    **dict.fromkeys((Stage.TOKENS, Stage.POOLED), 2),
    Stage.TEXT: 3,
    **dict.fromkeys((*_LATENTS, Stage.NOISE, Stage.PIXELS, Stage.POSTERIOR, Stage.MASK, Stage.IMAGE), 4),
}


class _Tensors:
    """The tensors of a safetensors file, read when they are asked for: not mapped into memory, where a file that is cut
    short later ends the process.

    Raises:
        ValueError: the file is not as the format has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        finalize(self, self._file.close)
        self._lock = threading.Lock()
        self._in_use: WeakValueDictionary[str, Tensor] = WeakValueDictionary()  # read once for as long as it is held
        self._as_opened = self._state()
        length, size = int.from_bytes(self._bytes(0, 8), "little"), self._as_opened[0]
        if not 2 <= length <= size - 8:
            raise ValueError("its header is longer than the file")
        header = json.loads(self._bytes(8, length))
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in self.metadata.values()):
            raise ValueError("its metadata are no texts")
        self._entries: dict[str, tuple[torch.dtype, list[int], int]] = {}
        for name, entry in header.items():
            kind, shape, (begin, end) = _TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            if not all(_whole(one) and one >= 0 for one in (*shape, begin, end)) or len(shape) > 8:
                raise ValueError(f"{name!r} has no shape or no place")
            if end - begin != math.prod(shape) * kind.itemsize or math.prod(max(1, n) for n in shape) >= 2**60:
                raise ValueError(f"{name!r} has another size than its shape")
            if 8 + length + end > size:
                raise ValueError(f"{name!r} lies beyond the end")
            self._entries[name] = kind, shape, 8 + length + begin

    def names(self) -> set[str]:
        return set(self._entries)

    def shape(self, name: str) -> list[int]:
        return self._entries[name][1]

    def floats(self, name: str) -> bool:
        return self._entries[name][0].is_floating_point

    def get_tensor(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            ValueError: the file has been changed since it was opened.
        """
        kind, shape, begin = self._entries[name]
        values = self._in_use.get(name)
        if values is None:
            memory = torch.empty(math.prod(shape) * kind.itemsize, dtype=torch.uint8)  # aligned, whatever the place
            whole = self._fill(memory.numpy().data, begin)
            if not whole or self._state() != self._as_opened:
                raise ValueError(f"{str(self.path)!r} was cut short or changed after it had been opened; open it again")
            values = self._in_use[name] = memory.view(kind).reshape(shape)
        return values

    def _bytes(self, begin: int, length: int) -> bytearray:
        into = bytearray(min(length, self._as_opened[0]))
        if not self._fill(memoryview(into), begin) or len(into) < length:
            raise ValueError("it ends too early")
        return into

    def _fill(self, into: memoryview, begin: int) -> bool:
        """Read from a place; False if the file ends before."""
        done = 0
        with self._lock:
            self._file.seek(begin)
            while done < len(into):
                count = self._file.readinto(into[done:])
                if not count:
                    return False
                done += count
        return True

    def _state(self) -> tuple[int, int]:
        now = os.fstat(self._file.fileno())
        return now.st_size, now.st_mtime_ns


def _parsed(header: dict[str, Any], file: _Tensors) -> tuple[dict[str, Any], list[Record], dict[int, Any]]:
    last = set(header.get("channels_last", []))

    def source(name: str) -> Any:
        return file, name, torch.channels_last if name in last else torch.contiguous_format

    records = [
        Record(
            stage=Stage(entry["stage"]),
            step=entry["step"],
            t=entry["t"],
            edits=[Edit(**edit) for edit in entry["edits"]],
            source=source(entry["tensor"]),
            layer=entry.get("layer"),
        )
        for entry in header["records"]
    ]
    if "levels" not in header:
        header["levels"] = _levels_from_schedule(header["settings"], records)
    return header, records, {int(step): source(name) for step, name in header["stepped"].items()}


def _checked(header: Any, file: _Tensors, source: str) -> dict[str, Any]:
    """The header, if everything in it is what it should be."""

    def must(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"its header should hold {what}")

    must(isinstance(header, dict) and _whole(header.get("format")), "the number of its format")
    if header["format"] > FORMAT:
        raise ValueError(f"it has format {header['format']}, newer than the {FORMAT} known here; update sdkit")
    tensors, stages = file.names(), {stage.value for stage in Stage}
    must(isinstance(header.get("settings"), dict), "settings")
    if header["settings"]:
        check_record(header["settings"], source)
    parent = header.get("parent")
    must(parent is None or (isinstance(parent, dict) and _whole(parent.get("step"))), "its parent, or none")
    must(_whole(header.get("every")) and header["every"] >= 1, "every how many steps it was recorded")
    for name in ("tokens", "records"):
        must(isinstance(header.get(name), list), name)
    for row in header["tokens"]:
        must(isinstance(row, list), "a list of tokens for each prompt")
        for token in row:
            must(isinstance(token, list) and len(token) == 3, "three values for each token")
            must(
                _whole(token[0]) and isinstance(token[1], str) and _whole_or_none(token[2]), "tokens as id, text, word"
            )
    for entry in header["records"]:
        must(isinstance(entry, dict) and entry.get("stage") in stages, "known stages")
        must(all(_whole_or_none(entry.get(name)) for name in ("step", "t")), "whole numbers as steps")
        must(isinstance(entry.get("layer"), str | None), "layers by name")
        must(entry.get("tensor") in tensors, "records of tensors that are in the file")
        must(isinstance(entry.get("edits"), list) and all(map(_is_edit, entry["edits"])), "edits")
    levels, stepped = header.get("levels", {}), header.get("stepped")
    must(isinstance(levels, dict) and all(map(_is_level, levels.items())), "noise levels as t, alpha, sigma")
    must(isinstance(stepped, dict) and all(k.isdecimal() and v in tensors for k, v in stepped.items()), "predictions")
    last = header.get("channels_last", [])
    must(isinstance(last, list) and all(isinstance(name, str) for name in last), "names of tensors")
    must(all(len(file.shape(name)) == 4 for name in last if name in tensors), "channels last of four dimensions")
    must(_fit_together(header["records"], stepped.values(), file), "tensors of the shapes that their stages have")
    return dict(header)


def _fit_together(entries: Sequence[Mapping[str, Any]], stepped: Iterable[str], file: _Tensors) -> bool:
    """Whether the tensors have the shapes that the stages of one run have: all that reads them goes by that."""
    shapes: dict[Stage, set[tuple[int, ...]]] = {stage: set() for stage in Stage}
    for entry in entries:
        stage, shape = Stage(entry["stage"]), tuple(file.shape(entry["tensor"]))
        if stage in _DIMENSIONS and (len(shape) != _DIMENSIONS[stage] or 0 in shape):
            return False
        if stage in (*_LATENTS, Stage.NOISE, Stage.IMAGE) and not file.floats(entry["tensor"]):
            return False
        shapes[stage].add(shape)
    latents = {tuple(file.shape(name)) for name in stepped}.union(*(shapes[stage] for stage in _LATENTS))
    maps, pictures = {shape[1:] for shape in latents | shapes[Stage.NOISE]}, shapes[Stage.IMAGE]
    if max(len(latents), len(maps), len(pictures)) > 1:
        return False
    for (rows, _, h, w), (count, channels, height, width) in product(latents, pictures):
        if (count, channels) != (rows, 3) or height % h or (height // h * w) != width:
            return False
    return True


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_or_none(value: Any) -> bool:
    return value is None or _whole(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_edit(edit: Any) -> bool:
    return (
        isinstance(edit, dict)
        and edit.keys() == {"hook", "distance", "relative"}
        and isinstance(edit["hook"], str)
        and _number(edit["distance"])
        and _number(edit["relative"])
    )


def _is_level(level: tuple[str, Any]) -> bool:
    step, numbers = level
    return step.isdecimal() and isinstance(numbers, list) and len(numbers) == 3 and all(map(_number, numbers))


def _levels_from_schedule(settings: Mapping[str, Any], records: Sequence[Record]) -> dict[str, list[float]]:
    """The noise level of each step by its timestep, up to the rounding of t: files did not always hold what the run
    itself had written down."""
    if "levels" in settings:  # of a forward process
        return {str(step): [one["t"], one["alpha"], one["sigma"]] for step, one in enumerate(settings["levels"])}
    if "scheduler" not in settings:
        return {}
    scheduler = schedulers.rebuilt(settings["scheduler"])
    schedule, unscaled = schedulers.noise_schedule(scheduler), schedulers.keeps_signal_unscaled(scheduler)
    levels = {}
    for step, t in {record.step: record.t for record in records}.items():
        if step is not None and t is not None:
            alpha, sigma = float(schedule.alphas[t]), float(schedule.sigmas[t])
            levels[str(step)] = [t, 1.0, sigma / alpha] if unscaled else [t, alpha, sigma]
    return levels
