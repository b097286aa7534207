"""Placing: x or the noise is moved to where words are attended to as they should be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.hooks.gradients import Loss, add_to_eps, down, scale_of
from sdkit.hooks.guidance import halves, length
from sdkit.hooks.perturbed import smooth
from sdkit.inputs.checks import instance, told, typed
from sdkit.unet.attention import grid

Point = tuple[float, float]  # x and y, as shares of the picture
Box = tuple[float, float, float, float]  # left, top, right and bottom, as shares of the picture


@typed(thresholds=None, scale=(0, math.inf), until=(0, 1))
def attend_and_excite(
    *words: str, scale: float = 20.0, until: float = 0.5, thresholds: Mapping[int, float] | None = None
) -> Hook:
    """Attend-and-Excite: in the first `until` of the steps x goes to where the word that is attended to least has a
    place that attends to it (Chefer et al. 2023, arXiv:2301.13826, algorithm 1).

    Not with heun, kdpm2, dpmpp_2s, dpmpp_sde and pndm, which refuse an edit of the latent within their steps.

    Args:
        scale: alpha, the length of a step down the gradient, which falls to 0.7 of it.
        thresholds: attention that each word has to reach at some steps, in at most 20 updates; by default the paper's
            {0: 0.05, 10: 0.5, 20: 0.8}, of 50 steps. {} is quick.

    Example:
        >>> both = sdkit.hooks.attend_and_excite("star", "fish", thresholds={})
        >>> sdkit.text_to_image("a red star left of a blue fish", seed=7, hooks=[both])
    """
    if not words:
        raise ValueError("attend_and_excite needs the words that are to be there; give at least one")
    if thresholds is not None:
        instance("thresholds", thresholds, Mapping)
    least = {0: 0.05, 10: 0.5, 20: 0.8} if thresholds is None else dict(thresholds)

    @on(Stage.LATENT)
    def attend_and_excite(event: Event) -> None:
        run, step = event.run, event.step
        if step is None or step >= until * len(run.visits) or not scale:
            return
        each = run.keep(attend_and_excite, lambda: [run.places(word) for word in words])
        columns = [list(chain(*places)) for places in zip(*each, strict=True)]  # of each picture

        def losses(maps: Tensor) -> Tensor:
            return torch.stack([_unheard(one, places) for one, places in zip(maps, columns, strict=True)])  # (B,)

        pace = scale * (1 - 0.5 * step / max(len(run.visits) - 1, 1)) ** 0.5 * scale_of(event) ** 2
        x = event.value
        if step in least:
            x = _refined(run, x, losses, pace, 1 - least[step])
        event.value = x - pace * _by_attention(run, x, losses)[1]

    return attend_and_excite


@typed(boxes=None, scale=(0, math.inf), until=(0, 1), repeats=(0, math.inf))
def layout(boxes: Mapping[str, Box], scale: float = 30.0, until: float = 0.2, repeats: int = 5) -> Hook:
    """Put what words name into boxes: in the first `until` of the steps x goes to where the attention of each word lies
    within its box (Chen et al. 2023, arXiv:2304.03373, section 4.2, "backward guidance").

    Not with heun, kdpm2, dpmpp_2s, dpmpp_sde and pndm, which refuse an edit of the latent within their steps.

    Args:
        boxes: by word left, top, right and bottom, as shares of the picture: `{"cat": (0, 0.5, 0.5, 1)}`.
        scale: eta; 0 is off.
        repeats: updates of x in each of those steps.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.layout({"star": (0, 0, 0.5, 0.5)})])
    """
    _check_boxes(boxes)

    @on(Stage.LATENT)
    def layout(event: Event) -> None:
        run = event.run
        if event.step is None or event.step >= until * len(run.visits) or not scale:
            return
        places = run.keep(layout, lambda: {word: run.places(word) for word in boxes})

        def losses(maps: Tensor) -> Tensor:
            energies = [
                torch.stack([_outside(one, columns, box) for one, columns in zip(maps, places[word], strict=True)])
                for word, box in boxes.items()
            ]
            return torch.stack(energies).mean(0)  # (B,)

        pace = scale * run.levels[event.step].sigma ** 2
        for _ in range(repeats):
            event.value = event.value - pace * _by_attention(run, event.value, losses)[1]

    return layout


@typed(scale=(0, math.inf), until=(0, 1))
def self_guidance(
    word: str, scale: float = 0.1, *, centre: Point | None = None, size: float | None = None, until: float = 0.5
) -> Hook:
    """Self-guidance: eps + v * gradient in x of how far a word's attention is from where and how large it should be
    (Epstein et al. 2023, arXiv:2306.00986), in the first `until` of the steps.

    The gradient of each picture is made `scale` times as long as its eps.

    Args:
        centre: x and y of where its attention is to lie, as shares of the picture.
        size: the share of the picture that it is to cover.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.self_guidance("star", centre=(0.25, 0.25))])
    """
    if centre is None and size is None:
        raise ValueError("self_guidance needs a centre or a size to guide to; give one of them or both")

    @on(Stage.GUIDED)
    def self_guidance(event: Event) -> None:
        run = event.run
        if event.step is None or event.step >= until * len(run.visits) or not scale:
            return
        places = run.keep(self_guidance, lambda: run.places(word))

        def losses(maps: Tensor) -> Tensor:
            both = zip(maps, places, strict=True)
            return torch.stack([_misplaced(one, columns, centre, size) for one, columns in both])  # (B,)

        gradient = _by_attention(run, run.seen[Stage.LATENT], losses)[1]
        add_to_eps(event, scale * length(run.eps_of(event.value)) / length(gradient) * gradient)

    return self_guidance


def _refined(run: Any, x: Tensor, losses: Loss, pace: float, enough: float, most: int = 20) -> Tensor:
    """x after so many updates at most, each picture's until its loss is small enough, and one more."""
    more = torch.ones(len(x), dtype=torch.bool)
    for i in range(most):
        loss, gradient = _by_attention(run, x, losses)
        behind = (loss > enough).cpu()
        more = behind if i == 0 else more
        x = x - pace * gradient * more.to(gradient).view(-1, 1, 1, 1)
        more = more & behind
        if not more.any():
            break
    return x


def _by_attention(run: Any, x: Tensor, losses: Loss) -> tuple[Tensor, Tensor]:
    """Losses (B,) on the maps of cross-attention (B, h, w, L) that the prompts have in x, and their gradient in x.

    The maps are the mean over heads and layers of 16x16 places, or of the nearest that the U-Net has.
    """
    seen: list[Tensor] = []

    @on(Stage.ATTENTION)
    def look(event: Event) -> None:
        seen.append(event.value)  # (B, heads, h*w, L)

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        run.predict(x, halves(run, run.condition.text)[1], hooks=[look])
        places = min((one.shape[2] for one in seen), key=lambda n: abs(math.log(n / 256)))
        maps = torch.cat([one for one in seen if one.shape[2] == places], dim=1).mean(1)
        found = losses(maps.view(len(x), *grid(places, *x.shape[2:]), -1))
        return found.detach(), down(found.sum(), x)


def _unheard(maps: Tensor, places: Sequence[int]) -> Tensor:
    """How far the token that is attended to least is from full attention at its best place; maps are (h, w, L)."""
    heard = (100 * maps[..., 1:-1]).softmax(-1)[..., [place - 1 for place in places]]  # (h, w, tokens)
    # The official code has a Gaussian of 0.5 places, but halves its exponent once more.
    most = smooth(heard.permute(2, 0, 1)[:, None], 3, 0.5**0.5).flatten(1).amax(1)
    return 1 - most.amin() if places else 0 * maps.sum()


def _outside(maps: Tensor, places: Sequence[int], box: Box) -> Tensor:
    """The square of the share of a word's attention that lies outside a box; maps are (h, w, L)."""
    (left, top, right, bottom), (h, w) = box, maps.shape[:2]
    x, y = (torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h
    inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))  # (h, w): whose middle lies in it
    one = maps[..., places].flatten(0, 1)  # (h*w, tokens)
    within = (one * inside.flatten()[:, None].to(one)).sum(0) / one.sum(0)
    return (1 - within).square().mean() if places else 0 * maps.sum()


def _misplaced(maps: Tensor, places: Sequence[int], centre: Point | None, size: float | None) -> Tensor:
    """How far the centroid and the size of a word's attention are from what they should be; maps are (h, w, L)."""
    loss = 0 * maps.sum()
    if not places:
        return loss
    shape = _norm((10 * (_norm(maps[..., places].mean(-1)) - 0.5)).sigmoid())  # (h, w)
    if centre is not None:
        x, y = ((torch.arange(n).to(shape) + 0.5) / n for n in (shape.shape[1], shape.shape[0]))
        lies = torch.stack([(shape.sum(0) * x).sum(), (shape.sum(1) * y).sum()]) / shape.sum()
        loss = loss + (lies - lies.new_tensor(centre)).abs().sum()
    return loss if size is None else loss + (shape.mean() - size).abs()


def _norm(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)


def _check_boxes(boxes: Any) -> None:
    if not isinstance(boxes, Mapping) or not boxes:
        raise TypeError(f"boxes must be a dictionary of a box for each word, but is {told(boxes)}")
    for word, box in boxes.items():
        sides = list(box) if isinstance(box, tuple | list) else []
        if len(sides) != 4 or not 0 <= sides[0] < sides[2] <= 1 or not 0 <= sides[1] < sides[3] <= 1:
            raise ValueError(f"the box of {word!r} must be left, top, right and bottom from 0 to 1, but is {told(box)}")
