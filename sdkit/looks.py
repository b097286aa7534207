"""What a layer of cross-attention works with, overheard, and the probabilities that follow: softmax of q k^T * scale
(Vaswani et al. 2017, arXiv:1706.03762)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Look(NamedTuple):
    """Queries and keys of one layer, as its projections gave them."""

    layer: str
    heads: int
    scale: float
    query: Tensor  # (2B, h*w, heads * d)
    key: Tensor  # (2B, L, heads * d)
    mask: Tensor | None = None  # broadcastable to (2B, heads, h*w, L), added before the softmax
    logsumexp: Tensor | None = None  # (2B, heads, h*w) of each row before the softmax, if the kernel gave it
    probabilities: Tensor | None = None  # (2B, heads, h*w, L) as the hooks left them, if any has seen them


def by_heads(x: Tensor, heads: int) -> Tensor:
    """(B, n, heads * d) as (B, heads, n, d)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def rows(looks: Sequence[Look], which: slice = slice(None)) -> Tensor:
    """Probabilities (looks * b, heads, h*w, L) of some rows of the batch, of layers that are alike."""
    known = [look.probabilities[which] for look in looks if look.probabilities is not None]
    if known:
        return torch.cat(known)
    one = looks[0]
    query, key = (
        torch.cat([by_heads(part[which], one.heads) for part in parts]).flatten(0, 1)  # (looks * b * heads, n, d)
        for parts in ([look.query for look in looks], [look.key for look in looks])
    )
    scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=one.scale)
    scores = scores.view(-1, one.heads, *scores.shape[1:])  # (looks * b, heads, h*w, L)
    if one.mask is not None:
        scores = scores + torch.cat([look.mask[which] for look in looks if look.mask is not None])
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def columns(looks: Sequence[Look], which: slice, tokens: Sequence[int]) -> Tensor:
    """The same of some tokens (looks * b, heads, h*w, tokens): exp(q.k * scale - lse) where that is known."""
    look = looks[0]
    if len(looks) > 1 or look.logsumexp is None or look.probabilities is not None or look.mask is not None:
        return rows(looks, which).index_select(-1, torch.tensor(tokens, device=look.query.device))
    query = by_heads(look.query[which], look.heads)  # (b, heads, h*w, d)
    key = by_heads(look.key[which] * look.scale, look.heads)[:, :, None, tokens]  # (b, heads, 1, tokens, d)
    # a product and a sum for each token read the queries where they lie; a matrix product would copy them first
    scores = torch.stack([(query * key[..., i, :]).sum(-1, dtype=torch.float32) for i in range(len(tokens))], -1)
    return (scores - look.logsumexp[which][..., None]).exp_()


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
