"""The mathematics of cross-attention on what a layer's projections give: softmax of q k^T * scale (Vaswani et al. 2017,
arXiv:1706.03762)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Look(NamedTuple):
    """Queries and keys of one layer in one call of the U-Net."""

    layer: str
    heads: int
    scale: float
    query: Tensor  # (2B, h*w, heads * d)
    key: Tensor  # (2B, L, heads * d)
    mask: Tensor | None = None  # broadcastable to (2B, heads, h*w, L), added before the softmax
    edited: Tensor | None = None  # (2B, heads, h*w, L) the probabilities as hooks left them, if any has seen them


@runtime_checkable
class Reader(Protocol):
    """A hook that reads queries and keys of cross-attention and cannot edit, which costs less than an event would, and
    is called after all others: `AttentionMaps` is one."""

    def choose(self, layers: list[str], step: int | None, run: Any) -> Collection[str]:
        """A call of the U-Net begins: which of the cross-attention layers to read."""

    def read(self, look: Look) -> None:
        """One of those layers, as it was computed."""


def by_heads(x: Tensor, heads: int) -> Tensor:
    """(B, n, heads * d) as (B, heads, n, d)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def probabilities(looks: Sequence[Look], rows: slice = slice(None)) -> Tensor:
    """How much each place attends to each token, (looks * b, heads, h*w, L), for some rows of the batch; sums to 1.

    The looks are of one layer at several steps, worked out in one operation.
    """
    one = looks[0]
    if one.edited is not None:
        return torch.cat([look.edited[rows] for look in looks if look.edited is not None])
    query, key = (
        torch.cat([by_heads(x[rows], one.heads) for x in each]).flatten(0, 1)  # (looks * b * heads, n, d)
        for each in ([look.query for look in looks], [look.key for look in looks])
    )
    scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=one.scale)
    scores = scores.view(-1, one.heads, *scores.shape[1:])  # (looks * b, heads, h*w, L)
    if one.mask is not None:
        scores = scores + torch.cat([look.mask[rows] for look in looks if look.mask is not None])
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def grid(places: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns (h, w) of a layer of so many places in a U-Net that halves latents of (height, width).

    Raises:
        ValueError: no halving leads to so many places.
    """
    h, w = height, width
    while h * w > places:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != places:
        raise ValueError(f"{places} places are no halving of latents of {height}x{width}")
    return h, w
