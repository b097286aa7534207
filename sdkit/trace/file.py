"""A trace as one safetensors file: tensors, and a JSON header in its metadata. docs/trace-format.md has the details."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdkit.events import Edit, Stage
from sdkit.inputs.paths import trace_path
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
    handle, part_name = tempfile.mkstemp(dir=place.parent, prefix=place.stem, suffix=".part")
    os.close(handle)
    part = Path(part_name)
    try:
        save_file(tensors, part, metadata={KEY: json.dumps(header)})
        with part.open("rb+") as opened:
            os.fsync(opened.fileno())
        part.replace(place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
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
    header = json.loads((file.metadata() or {}).get(KEY, "{}"))  # type: ignore[no-untyped-call]
    if not header:
        raise ValueError(f"{str(path)!r} holds tensors but no trace; expected a file that Trace.save wrote")
    if header["format"] > FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {header['format']}, newer than the {FORMAT} known here; update sdkit"
        )
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
