"""Guidance away from what the model predicts when it is weakened: attention that sees less, a worse model."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.hooks.guidance import halves
from sdkit.inputs.checks import typed
from sdkit.model.model import Model
from sdkit.unet.attention import Look, grid, probabilities

_MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn1"  # the first self-attention of the coarsest block


@typed(scale=(0, math.inf))
def pag(scale: float = 3.0, layer: str = "mid_block") -> Hook:
    """Perturbed-attention guidance: away from what the model predicts when each place attends to itself alone (Ahn et
    al. 2024, arXiv:2403.17377), with and without classifier-free guidance.

    Args:
        layer: where in the U-Net; self-attention of more than 32x32 places is left as it is.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.pag(3.0)])
    """

    @on(Stage.SELF_ATTENTION, layer=layer)
    def see_itself_alone(event: Event) -> None:
        event.value = torch.eye(event.value.shape[-1]).to(event.value).expand_as(event.value)  # (B, heads, n, n)

    @on(Stage.GUIDED)
    def pag(event: Event) -> None:
        _away_from(event, scale, hooks=[see_itself_alone])

    return pag


@typed(scale=(0, math.inf), sigma=(0.01, math.inf))
def seg(scale: float = 3.0, sigma: float = math.inf, layer: str = "mid_block") -> Hook:
    """Smoothed energy guidance: away from what the model predicts when the queries of self-attention are blurred (Hong
    2024, arXiv:2408.00760, section 4).

    Args:
        sigma: of the Gaussian, in places; infinity makes all queries their mean.
        layer: where in the U-Net.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.seg(3.0)])
    """

    @on(Stage.QUERY, layer=layer)
    def blur(event: Event) -> None:
        if event.layer is not None and event.layer.endswith("attn1"):
            h, w = grid(event.value.shape[1], *event.run.shape[2:])
            query = event.value.reshape(-1, h, w, event.value.shape[2])  # (B, h, w, heads * d)
            rows, columns = (_gaussian(n, sigma).to(query) for n in (h, w))
            event.value = torch.einsum("yi,xj,bijc->byxc", rows, columns, query).flatten(1, 2)

    @on(Stage.GUIDED)
    def seg(event: Event) -> None:
        _away_from(event, scale, hooks=[blur])

    return seg


@typed(scale=(0, math.inf))
def sag(scale: float = 0.75) -> Hook:
    """Self-attention guidance: away from what the model predicts when x0 is blurred where self-attention looks (Hong et
    al. 2022, arXiv:2210.00939), with and without classifier-free guidance.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.sag(0.75)])
    """

    @on(Stage.CONTEXT, Stage.GUIDED)
    def sag(event: Event) -> None:
        run = event.run
        if scale and event.stage is Stage.CONTEXT and event.layer is None:
            run.hold(f"{_MIDDLE}.to_q", f"{_MIDDLE}.to_k")
        elif scale and event.stage is Stage.GUIDED:
            (pred, _), level = halves(run, run.seen[Stage.NOISE]), run.levels[event.step]
            looked_at = _self_attention(run).mean(1).sum(1) > 1  # (B, n): by more than a place's share
            mask = looked_at.view(-1, 1, *grid(looked_at.shape[1], *run.shape[2:])).to(pred)
            x0 = run.x0_of(pred)
            x0 = torch.lerp(x0, smooth(x0, 9, 1.0), F.interpolate(mask, run.shape[2:]))
            x = level.alpha * x0 + level.sigma * run.eps_of(pred)
            weak, _ = halves(run, run.predict(x, run.condition.text[: 2 * len(x)]))
            event.value = event.value + scale * (pred - weak)

    return sag


@typed(scale=(1, math.inf))
def autoguidance(model: Model, scale: float = 2.0) -> Hook:
    """Autoguidance: away from what a worse version of the model predicts from the same words (Karras et al. 2024,
    arXiv:2406.02507), with and without classifier-free guidance.

    Args:
        model: trained less, or smaller, as `sdkit.load` gives it; of the same anatomy and type of prediction.
        scale: w; 1 is off.

    Example:
        >>> import copy
        >>> worse = copy.deepcopy(sdkit.load())
        >>> for weight in worse.unet.parameters():
        ...     weight.data += 0.1 * weight.std(correction=0) * torch.randn_like(weight)
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.autoguidance(worse)])
    """

    @on(Stage.GUIDED)
    def autoguidance(event: Event) -> None:
        _away_from(event, scale - 1, model=model)

    return autoguidance


def smooth(x: Tensor, width: int, sigma: float) -> Tensor:
    """x (B, C, h, w) under a Gaussian of `width` places, mirrored at the rim."""
    kernel = _gaussian(width, sigma)[width // 2].to(x)
    both = (kernel[:, None] * kernel).expand(x.shape[1], 1, width, width)
    return F.conv2d(F.pad(x, [width // 2] * 4, mode="reflect"), both, groups=x.shape[1])


def _gaussian(n: int, sigma: float) -> Tensor:
    """How much of each place (n) a blurred place (n) has; rows sum to 1."""
    places = torch.arange(n)
    weights = (-0.5 * ((places[:, None] - places) / sigma) ** 2).exp()
    return weights / weights.sum(1, keepdim=True)


def _away_from(event: Event, scale: float, **weakened: Any) -> None:
    """Add scale * (cond - weak), where `weak` is what the U-Net so weakened predicts from the prompts."""
    run = event.run
    if scale:
        (_, cond), (_, text) = halves(run, run.seen[Stage.NOISE]), halves(run, run.condition.text)
        event.value = event.value + scale * (cond - run.predict(text=text, **weakened))


def _self_attention(run: Any) -> Tensor:
    """Of the first half, in the middle of the U-Net, (B, heads, n, n)."""
    layer = run.model.unet.get_submodule(_MIDDLE)
    query, key = (halves(run, run.held[f"{_MIDDLE}.{part}"])[0] for part in ("to_q", "to_k"))
    return probabilities([Look(_MIDDLE, layer.heads, layer.scale, query, key)])
