"""Attention: which places attend to which words and to which places, taken from another run or changed."""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.inputs.checks import told, typed
from sdkit.trace.trace import Trace
from sdkit.unet.attention import grid
from sdkit.unet.maps import AttentionMaps


@typed()
def reweight(word: str, factor: float) -> Hook:
    """Multiply the attention that a word gets by `factor`: above 1 there is more of it, below 1 less (Hertz et al.
    2022, arXiv:2208.01626, section 3).

    Example:
        >>> sdkit.text_to_image("a red star on a blue background", seed=7, hooks=[sdkit.hooks.reweight("blue", 2.0)])
    """

    @on(Stage.ATTENTION)
    def reweight(event: Event) -> None:
        scale = torch.ones(len(event.value), 1, 1, event.value.shape[-1])
        run = event.run
        for row, places in enumerate(run.keep(reweight, lambda: run.places(word)), start=-run.shape[0]):
            scale[row, ..., places] = factor
        event.value = event.value * scale.to(event.value)

    return reweight


@typed(strength=(0, 20), until=(0, 1))
def paint_with_words(word: str, where: Tensor, strength: float = 2.0, until: float = 1.0) -> Hook:
    """Have places attend to a word more or less, in the first `until` of the steps: their attention to it is multiplied
    by exp(strength * where), and still sums to 1 (paint with words; eDiff-I, Balaji et al. 2022, arXiv:2211.01324,
    section 5, which adds as much to the queries times keys).

    Args:
        where: (H, W) in [-1, 1], of any size: 1 where the word is to act, -1 where it is not, 0 where nothing changes.

    Example:
        >>> where = torch.zeros(128, 128)
        >>> where[:, 64:] = 1
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.paint_with_words("star", where)])
    """
    if where.ndim != 2 or not bool((where.abs() <= 1).all()):
        raise ValueError(f"where must be (H, W) in [-1, 1], but is {told(where)}")

    @on(Stage.ATTENTION)
    def paint_with_words(event: Event) -> None:
        if not _early(event, until):
            return
        run, (many, _, places, _) = event.run, event.value.shape
        size = grid(places, *run.shape[2:])
        painted = F.interpolate(where.float()[None, None], size, mode="area").flatten().to(event.value)  # (h*w,)
        weights = event.value.clone()  # (2B, heads, h*w, L)
        for row, columns in enumerate(run.keep(paint_with_words, lambda: run.places(word)), start=many - run.shape[0]):
            weights[row][..., columns] *= (strength * painted).exp()[:, None]
        event.value = weights / weights.sum(-1, keepdim=True)

    return paint_with_words


@typed(until=(0, 1))
def keep_layout(trace: Trace, until: float = 0.8) -> Hook:
    """Use the attention of another run, in the first `until` of the steps: another word in the same place makes the
    same layout with another thing in it (prompt-to-prompt, Hertz et al. 2022, arXiv:2208.01626).

    Tokens that both prompts share get the attention that they had; one instead of another takes over its attention;
    those that are new keep their own.

    Args:
        trace: of a run from the same seed with as many steps, recorded with `Trace(["tokens", "attention"])`.

    Example:
        >>> source = sdkit.Trace(["tokens", "attention"])
        >>> star = sdkit.text_to_image("a red star", seed=7, hooks=[source])
        >>> cat = sdkit.text_to_image("a red cat", seed=7, hooks=[sdkit.hooks.keep_layout(source)])
    """
    source = _recorded(trace, Stage.ATTENTION)

    @on(Stage.ATTENTION)
    def keep_layout(event: Event) -> None:
        if not _early(event, until):
            return
        run = event.run
        moves, free = run.keep(keep_layout, lambda: _alignment(trace, run))  # (B, L', L), (B, 1, 1, L)
        pictures = len(moves)
        theirs = source(event)[-pictures:].to(event.value)  # (B, heads, h*w, L')
        ours = event.value[-pictures:]
        moved = theirs @ moves.to(ours)[:, None] + ours * free.to(ours)
        event.value = torch.cat([event.value[:-pictures], moved])

    return keep_layout


@typed(until=(0, 1))
def keep_self_attention(trace: Trace, until: float = 0.5) -> Hook:
    """Use the self-attention of another run, in the first `until` of the steps: shapes stay (Tumanyan et al. 2022,
    arXiv:2211.12572).

    Args:
        trace: of a run with as many pictures, the same size and as many steps, recorded with
            `Trace(["self_attention"])`. Of a run without guidance it serves both halves of one with guidance.

    Example:
        >>> source = sdkit.Trace(["self_attention"])
        >>> red = sdkit.text_to_image("a red star", seed=7, hooks=[source])
        >>> blue = sdkit.text_to_image("a blue star", seed=7, hooks=[sdkit.hooks.keep_self_attention(source, 0.8)])
    """
    source = _recorded(trace, Stage.SELF_ATTENTION)

    @on(Stage.SELF_ATTENTION)
    def keep_self_attention(event: Event) -> None:
        if _early(event, until):
            theirs, pictures, seeds = source(event).to(event.value), event.run.shape[0], trace.settings.get("seed")
            if len(event.value) % len(theirs) or (isinstance(seeds, list) and len(seeds) != pictures):
                raise ValueError(
                    f"the trace has self-attention of {len(theirs)} rows, but this run of {len(event.value)}, for "
                    f"{pictures} pictures; record a run of as many pictures, with guidance only if this one has it"
                )
            event.value = torch.cat([theirs] * (len(event.value) // len(theirs)))

    return keep_self_attention


@typed(threshold=(0, 1))
def local_blend(trace: Trace, maps: AttentionMaps, word: str, threshold: float = 0.3) -> Hook:
    """Change another run's picture only where a word acts: elsewhere each x0 is that of its trace (local blend of
    prompt-to-prompt, arXiv:2208.01626, section 4). Use it with `keep_layout`, so that the word acts at the same place.

    Args:
        trace: of a run from the same seed with as many steps, recorded with "denoised".
        maps: of that run, or those that this run is recording, among its hooks.
        threshold: of `maps.heat(word)`, in [0, 1].

    Example:
        >>> blend = sdkit.hooks.local_blend(trace, maps, "star")
        >>> sdkit.text_to_image("a green star on a blue background", seed=7, hooks=[blend])
    """
    source = _recorded(trace, Stage.DENOISED)

    @on(Stage.DENOISED)
    def local_blend(event: Event) -> None:
        x0 = event.value
        heats = torch.stack([maps.heat(word, picture=i) for i in range(len(x0))])[:, None]  # (B, 1, H, W)
        mask = (F.interpolate(heats, x0.shape[2:], mode="area") >= threshold).to(x0)  # (B, 1, h, w)
        event.value = torch.lerp(source(event).to(x0), x0, mask)

    return local_blend


def _early(event: Event, until: float) -> bool:
    return event.step is not None and event.step < until * len(event.run.visits)


def _recorded(trace: Trace, stage: Stage) -> Callable[[Event], Tensor]:
    """What a trace holds of the same step and layer as an event."""
    records = {(record.step, record.layer): record for record in trace[stage]}

    def get(event: Event) -> Tensor:
        if (event.step, event.layer) not in records:
            how = f"record that run with Trace([{stage.value!r}])"
            if steps := sorted({step for step, _ in records if step is not None}):
                how = f"it has steps {steps} of it: record as many as this run makes, with a larger budget if need be"
            raise ValueError(f"the trace has nothing of {event}; {how}")
        value = records[event.step, event.layer].value
        size = {Stage.ATTENTION: slice(1, 3), Stage.SELF_ATTENTION: slice(1, 4)}.get(stage, slice(4))
        if value.shape[size] != event.value.shape[size]:  # other rows and other tokens are made to fit
            raise ValueError(
                f"the trace holds {tuple(value.shape)} of {event}, where this run has {tuple(event.value.shape)}; "
                "record a run of as many pictures and of the same size"
            )
        return value

    return get


def _alignment(trace: Trace, run: Any) -> tuple[Tensor, Tensor]:
    """For each picture, how tokens of a trace (L') become tokens of a run (L): (B, L', L), and those that have none.

    The attention of one span of tokens is spread evenly over the span that stands in its stead.
    """
    pictures, guided = run.shape[0], trace.settings.get("guidance_scale", 1.0) > 1
    rows = trace.tokens[len(trace.tokens) // 2 if guided else 0 :]  # the negative prompts come first
    ours, theirs = run.token_ids[-pictures:].tolist(), [[token.id for token in row] for row in rows]
    if len(theirs) != len(ours):
        raise ValueError(f"the trace has tokens of {len(theirs)} prompts for {len(ours)} pictures; record as many")
    moves = torch.zeros(pictures, len(theirs[0]), len(ours[0]))
    for move, a, b in zip(moves, theirs, ours, strict=True):
        for what, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
            if what == "equal" or (what == "replace" and a1 - a0 == b1 - b0):
                move[range(a0, a1), range(b0, b1)] = 1
            elif what == "replace":
                move[a0:a1, b0:b1] = 1 / (b1 - b0)
    return moves, (moves.sum(1) == 0)[:, None, None].float()
