"""Measuring: sides that take turns in rounds whose order is drawn by lot, each timed by the clock and the processor."""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Taken:
    """What one turn took."""

    wall: float  # seconds by the clock
    processor: float  # seconds, of all threads together
    said: Any = None  # what it gave, or what a process of its own printed as JSON


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    target: str
    measured: str
    met: bool | None  # None where there is no target, or it could not be measured
    remark: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)  # every turn, for the JSON


def here(work: Callable[[], Any]) -> Taken:
    """Do something in this process."""
    began, worked = time.perf_counter(), time.process_time()
    said = work()
    return Taken(time.perf_counter() - began, time.process_time() - worked, said)


def alone(*command: str, **environment: str) -> Taken:
    """Run Python with these arguments in a process of its own, from its start to its end.

    Raises:
        RuntimeError: it failed; the message has the end of what it said.
    """
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=surroundings, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    last = done.stdout.splitlines()[-1:]
    said = json.loads(last[0]) if last and last[0].startswith("{") else None
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, said)


def rounds(sides: Mapping[str, Callable[[], Taken]], times: int, seed: int = 0) -> dict[str, list[Taken]]:
    """Each side once in every round, in an order drawn by lot."""
    lot, taken = random.Random(seed), {name: [] for name in sides}
    for _ in range(times):
        for name in lot.sample(list(sides), len(sides)):
            taken[name].append(sides[name]())
    return taken


def ratios(ours: list[Taken], theirs: list[Taken], by: str = "wall") -> list[float]:
    """What ours took of theirs, round by round."""
    return [getattr(one, by) / getattr(other, by) for one, other in zip(ours, theirs, strict=True)]


def spread(values: list[float], unit: str = "x", digits: int = 2) -> str:
    """The median, and the least and the most."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle}{unit} ({low} to {high})" if len(values) > 1 else f"{middle}{unit}"


def compared(
    name: str, what: str, most: float, ours: list[Taken], theirs: list[Taken], remark: str = "", by: str = "wall"
) -> Row:
    """A row that says what ours took of theirs, and whether the median is as little as it should be."""
    clock, processor = ratios(ours, theirs), ratios(ours, theirs, "processor")
    chosen = {"wall": clock, "processor": processor}[by]
    other = spread(processor if by == "wall" else clock)
    numbers = {
        side: [{"wall": one.wall, "processor": one.processor} for one in taken]
        for side, taken in (("ours", ours), ("theirs", theirs))
    }
    measured = f"{spread(chosen)}; {'processor' if by == 'wall' else 'clock'} {other}"
    return Row(name, what, f"<= {most:.2f}x", measured, statistics.median(chosen) <= most, remark, numbers)
