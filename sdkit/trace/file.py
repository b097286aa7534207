"""A trace as one safetensors file: tensors, and a JSON header in its metadata. docs/trace-format.md has the details."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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


def save(path: str | Path, header: dict[str, Any], records: Sequence[Record], stepped: Mapping[int, Any]) -> Path:
    """Write a file, whole or not at all: what was there before stays until then."""
    place = trace_path(path)
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[int, torch.Size], str] = {}
    last: set[str] = set()  # tensors that lie with their channels last, in which convolutions round otherwise

    def name_of(value: Tensor, name: str) -> str:
        """The same memory is written once: without guidance what was guided is what was predicted."""
        if value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last):
            last.add(name)
        key = (value.data_ptr(), value.shape)
        if key not in names:
            names[key] = name
            tensors[name] = value.contiguous()
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
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is cut short or no safetensors file; save the trace again") from error
    text = (file.metadata() or {}).get(KEY)  # type: ignore[no-untyped-call]
    if not text:
        raise ValueError(f"{str(path)!r} holds tensors but no trace; expected a file that Trace.save wrote")
    try:
        return _parsed(_checked(json.loads(text), file, str(path)), file)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}; save the trace again") from error


def _parsed(header: dict[str, Any], file: Any) -> tuple[dict[str, Any], list[Record], dict[int, Any]]:
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


def _checked(header: Any, file: Any, source: str) -> dict[str, Any]:
    """The header, if everything in it is what it should be."""

    def must(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"its header should hold {what}")

    must(isinstance(header, dict) and _whole(header.get("format")), "the number of its format")
    if header["format"] > FORMAT:
        raise ValueError(f"it has format {header['format']}, newer than the {FORMAT} known here; update sdkit")
    tensors, stages = set(file.keys()), {stage.value for stage in Stage}
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
    return dict(header)


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
