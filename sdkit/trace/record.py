"""One entry of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdkit.events import Edit, Stage


@dataclass(eq=False)
class Record:
    """What a stage showed, as everybody left it. From a file it is read when `value` is asked for."""

    stage: Stage
    step: int | None
    t: int | None
    edits: list[Edit]
    source: Any  # a tensor, or the open file, the tensor's name in it, and how the tensor lay in memory
    layer: str | None = None  # inside the U-Net: the name of the module there

    @property
    def value(self) -> Tensor:
        return value_of(self.source)

    def __repr__(self) -> str:
        where = "" if self.step is None else f", step {self.step} (t={self.t})"
        where += "" if self.layer is None else f", layer {self.layer!r}"
        return f"<Record of stage {self.stage.value!r}{where}: {tuple(self.value.shape)}>"


def value_of(source: Any) -> Tensor:
    """The tensor of a source, from memory or from its file."""
    if isinstance(source, Tensor):
        return source
    file, name, layout = source
    tensor: Tensor = file.get_tensor(name).contiguous(memory_format=layout)
    return tensor
