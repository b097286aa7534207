"""Two runs held against each other: how far they are apart at every stage and step that both recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sdkit.door import Shown
from sdkit.events import Stage
from sdkit.measure import psnr
from sdkit.trace.record import Record


@dataclass(frozen=True)
class Difference:
    """How far two runs are apart at one stage of one step."""

    stage: Stage
    step: int | None
    cosine: float  # of the two values as vectors: 1 where they point the same way
    distance: float  # Euclidean norm of the difference
    psnr: float | None  # dB, of finished pictures; infinite where they are equal
    layer: str | None = None


@dataclass(frozen=True)
class Comparison(Sequence[Difference], Shown):
    """The differences of two runs, in the order of the run. Printed, it is a verdict and a table."""

    rows: list[Difference]

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def parting(self) -> Difference | None:
        """The first that is not zero, or None if the runs are the same."""
        return next((row for row in self.rows if row.distance), None)

    @property
    def verdict(self) -> str:
        """Where they part, in words."""
        if not self.rows:
            return "the runs recorded nothing that could be compared"
        if self.parting is None:
            return f"the runs are the same in all {len(self.rows)} values that both recorded"
        beside = ", ".join(dict.fromkeys(row.stage.value for row in self.rows if row.distance and row.step is None))
        first = next((row for row in self.rows if row.distance and row.step is not None), None)
        if first is None:
            return f"they are the same at every step that both recorded, and differ in {beside}"
        where = f"they part at step {first.step}, where {first.stage.value} differs by {first.distance:.4g}"
        return f"{where}; before and after the steps they differ in {beside}" if beside else where

    def __repr__(self) -> str:
        return f"<Comparison of {len(self.rows)} values: {self.verdict}>"

    def __str__(self) -> str:
        lines = [self.verdict, "", f"{'stage':14} {'step':>4} {'cosine':>9} {'distance':>10} {'PSNR':>7}"]
        for row in self.rows:
            step, ratio = "" if row.step is None else row.step, "" if row.psnr is None else f"{row.psnr:.2f}"
            where = f"{row.stage.value:14} {step:>4}"
            line = f"{where} {row.cosine:9.5f} {row.distance:10.4f} {ratio:>7} {row.layer or ''}"
            lines.append(line.rstrip())
        return "\n".join(lines)


def compare(records: Sequence[Record], others: Sequence[Record]) -> Comparison:
    """The differences at every stage, step and layer that both have, where they are of one shape."""
    theirs = {(record.stage, record.step, record.layer): record for record in others}
    rows = []
    for record in records:
        match = theirs.get((record.stage, record.step, record.layer))
        if match is not None and match.value.shape == record.value.shape:
            rows.append(_difference(record, match))
    return Comparison(rows)


def _difference(one: Record, other: Record) -> Difference:
    a, b = one.value.double().flatten(), other.value.double().flatten()
    lengths = (a.norm() * b.norm()).item()
    cosine = (a @ b).item() / lengths if lengths else float(torch.equal(a, b))
    ratio = psnr(a[None], b[None])[0] if one.stage is Stage.IMAGE else None
    return Difference(one.stage, one.step, cosine, (a - b).norm().item(), ratio, one.layer)
