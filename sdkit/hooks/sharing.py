"""Sharing: pictures that are made together look at one another, or at another run's features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Hook, Stage, on
from sdkit.inputs.checks import typed
from sdkit.trace.trace import Trace


@typed(first_step=(0, math.inf))
def masactrl(first_step: int = 4, layer: str = "up_blocks") -> Hook:
    """MasaCtrl: from a step on, all pictures of a run take keys and values of self-attention from the first, and so
    its things and texture, in a layout of their own (Cao et al. 2023, arXiv:2304.08465, section 3.2).

    Example:
        >>> sdkit.text_to_image(["a red star", "a red star on the left"], seed=7, hooks=[sdkit.hooks.masactrl()])
    """

    @on(Stage.KEY, Stage.VALUE, layer=layer)
    def masactrl(event: Any) -> None:
        if event.step >= first_step and event.layer.endswith("attn1"):
            event.value = _first(event)

    return masactrl


@typed()
def style_aligned() -> Hook:
    """StyleAligned: every picture's self-attention sees the first one's keys and values beside its own, queries and
    keys brought to the first one's mean and spread (Hertz et al. 2023, arXiv:2312.02133).

    Example:
        >>> sdkit.text_to_image(["a red star", "a fish"], seed=7, hooks=[sdkit.hooks.style_aligned()])
    """

    @on(Stage.QUERY, Stage.KEY, Stage.VALUE)
    def style_aligned(event: Any) -> None:
        own, first = event.value, _first(event)
        if not event.layer.endswith("attn1"):
            return
        if event.stage is not Stage.VALUE:
            own = adain(own, first)
        event.value = own if event.stage is Stage.QUERY else torch.cat([own, first], dim=1)

    return style_aligned


@typed(until=(0, 1))
def plug_and_play(trace: Trace, until: float = 0.8, block: str = "up_blocks.1") -> Hook:
    """Plug-and-play: the run keeps the shapes of another, of which `trace` has recorded "block", "query" and "key": for
    a share of the steps, the output of one up block and the queries and keys of self-attention in the up blocks are
    its own (Tumanyan et al. 2022, arXiv:2211.12572, section 4).

    Example:
        >>> source = sdkit.Trace(["block", "query", "key"])
        >>> red = sdkit.text_to_image("a red star", seed=7, hooks=[source])
        >>> blue = sdkit.text_to_image("a blue star", seed=7, hooks=[sdkit.hooks.plug_and_play(source)])
    """
    known = {(one.stage, one.step, one.layer): one for one in trace}

    @on(Stage.BLOCK, Stage.QUERY, Stage.KEY)
    def plug_and_play(event: Any) -> None:
        within = event.layer == block if event.stage is Stage.BLOCK else event.layer.endswith("attn1")
        if not within or not event.layer.startswith("up_blocks") or event.step >= until * len(event.run.visits):
            return
        one = known.get((event.stage, event.step, event.layer))
        if one is None or one.value.shape != event.value.shape:
            raise ValueError(
                f"the trace has no {event.stage} of step {event.step}, layer {event.layer!r} and shape "
                f'{tuple(event.value.shape)}; record as many pictures and steps with Trace(["block", "query", "key"])'
            )
        event.value = one.value.to(event.value)

    return plug_and_play


def adain(x: Tensor, like: Tensor) -> Tensor:
    """x (B, n, c) with the mean and the spread over its places that another has (arXiv:1703.06868, equation 8)."""
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
    return (x - mean) / std * (like.std(1, keepdim=True) + 1e-5) + like.mean(1, keepdim=True)


def _first(event: Any) -> Tensor:
    """The first picture's rows for all pictures, in each half."""
    pictures = event.run.shape[0]
    return torch.cat([half[:1].expand_as(half) for half in event.value.split(pictures)])
