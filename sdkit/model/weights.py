"""What weights are, in few digits: by some of their values, or by all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sdkit.model.allowed import uncompiled

SMALL = 2**16  # values of a weight up to which it is summed with others in one operation


def fingerprint(parts: Sequence[Any]) -> str:
    """16 hexadecimal digits that change with the weights of modules: of up to 16 values of each parameter, evenly
    spaced."""
    names, values = list[str](), list[Tensor | bytes]()
    for part in parts:
        for name, weight in uncompiled(part).named_parameters():
            names.append(f"{name} {tuple(weight.shape)}")
            values.append(_few(weight.detach()))
    digest = hashlib.sha256()
    for name, few in zip(names, _bytes_of(values), strict=True):
        digest.update(name.encode() + few)
    return digest.hexdigest()[:16]


@torch.no_grad()
def sum_of(part: Any) -> int:
    """A sum over every value of a module in float32, which any single change changes: half a second for the U-Net of
    Stable Diffusion 1.5. It is one of whole numbers, so that it is the same in any order."""
    flat = [one.reshape(-1).float() for one in (*part.parameters(), *part.buffers())]
    small, large = list[Tensor](), list[Tensor]()
    for one in flat:
        (small if len(one) <= SMALL or len(one) % 2 or one.storage_offset() % 2 else large).append(one)
    odd = sum(map(len, small)) % 2  # two values make one number of 64 bits
    return sum(int(one.view(torch.int64).sum()) for one in [torch.cat([*small, flat[0].new_zeros(odd)]), *large])


def _few(weight: Tensor) -> Tensor | bytes:
    """Up to 16 values of a weight, evenly spaced; numpy is thrice as fast where it can read them."""
    step = max(1, weight.numel() // 16)
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return weight.numpy().reshape(-1)[::step].tobytes()
    if weight.device.type == "meta":  # where it is while the pipeline offloads it
        return b""
    return weight.reshape(-1)[::step].float()


def _bytes_of(vectors: Sequence[Tensor | bytes]) -> Iterator[bytes]:
    """The bytes of vectors, all those of a device in one copy, as each copy waits for a GPU."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for vector in vectors:
        if isinstance(vector, Tensor):
            by_device.setdefault(vector.device, []).append(vector)
    copied = {device: torch.cat(some).cpu().numpy() for device, some in by_device.items()}
    begin = dict.fromkeys(copied, 0)
    for vector in vectors:
        if isinstance(vector, bytes):
            yield vector
            continue
        start = begin[vector.device]
        begin[vector.device] += len(vector)
        yield copied[vector.device][start : start + len(vector)].tobytes()
