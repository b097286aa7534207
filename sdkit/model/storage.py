"""Weights that are kept in half precision and computed with in float32: they take half the memory on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WideLinear(nn.Linear):
    """A linear layer that widens its weight while it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias)


class WideConv2d(nn.Conv2d):
    """A convolution that widens its weight while it computes."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self._conv_forward(x, self.weight.to(x.dtype), self.bias)
        return made


WIDE: dict[type, type] = {nn.Linear: WideLinear, nn.Conv2d: WideConv2d}


def widen(pipeline: Any, dtype: torch.dtype) -> Any:
    """Have a pipeline that was loaded in a narrower precision compute in `dtype`.

    The weights of linear layers and convolutions, nearly all that there are, stay as narrow as they are. All else is
    widened once, and so is the first layer of each part, by which libraries tell what the part computes in.
    """
    for part in pipeline.components.values():
        if not isinstance(part, nn.Module):
            continue
        first = next(part.parameters())
        for layer in part.modules():
            wide = WIDE.get(type(layer))
            for name, weight in layer.named_parameters(recurse=False):
                if wide is None or name != "weight" or weight is first:
                    weight.data = weight.data.to(dtype)
                else:
                    layer.__class__ = wide  # which has the same state, so that hooks and adapters find what they know
        for buffer in part.buffers():
            buffer.data = buffer.data.to(dtype) if buffer.is_floating_point() else buffer.data
    return pipeline
