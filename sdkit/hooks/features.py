"""Features: what blocks and heads of the U-Net make is strengthened, moved, left out, kept or used again."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor

from sdkit.events import Hook, Stage, on
from sdkit.inputs.checks import typed


@typed()
def free_u(s1: float = 0.9, s2: float = 0.2, b1: float = 1.5, b2: float = 1.6) -> Hook:
    """FreeU: in the first two up blocks the hidden state counts `b` times in half of its channels, and the skip's low
    frequencies `s` times (Si et al. 2023, arXiv:2309.11497). The defaults are those for SD 1.5.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.free_u(b1=1.2, b2=1.4)])
    """

    @on(Stage.INPUT, layer="up_blocks")
    def free_u(event: Any) -> None:
        block, number = (int(part) for part in event.layer.split(".")[1::2])  # up_blocks.1.resnets.0
        widths = event.run.model.unet.config.block_out_channels[::-1]
        hidden = widths[block if number else max(block - 1, 0)]
        if block < 2:
            parts = apply_freeu(
                block, event.value[:, :hidden].clone(), event.value[:, hidden:], s1=s1, s2=s2, b1=b1, b2=b2
            )
            event.value = torch.cat(parts, dim=1)

    return free_u


@typed()
def h_space(direction: Tensor, scale: float = 1.0) -> Hook:
    """Move the output of the U-Net's middle block, its h-space, along a direction (c, h, w) or (c, 1, 1) (Kwon et al.
    2022, arXiv:2210.10960, here without its asymmetry): the difference of two prompts' means, say.

    Example:
        >>> inside = sdkit.Trace(["block"])
        >>> pair = sdkit.text_to_image(["a red star", "a blue star"], seed=[7, 7], hooks=[inside])
        >>> means = torch.stack([one.value for one in inside if one.layer == "mid_block"]).mean(0)  # (4, c, h, w)
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.h_space(means[3] - means[2], 5.0)])
    """

    @on(Stage.BLOCK, layer="mid_block")
    def h_space(event: Any) -> None:
        event.value = event.value + scale * direction.to(event.value)

    return h_space


@typed(head=(0, math.inf))
def ablate(layer: str, head: int | None = None) -> Hook:
    """Leave out what one head of an attention layer adds, or the whole layer or block: what changes in the picture is
    what it was for. A layer's name is that in `Trace` and in `unet.named_modules()`.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.ablate("up_blocks.1")])
    """
    attention = Stage.SELF_ATTENTION if layer.endswith("attn1") else Stage.ATTENTION

    @on(attention if head is not None else Stage.BLOCK, layer=layer)
    def ablate(event: Any) -> None:
        kept = torch.ones(event.value.shape[1], device=event.value.device)
        if head is not None and head >= len(kept):
            raise ValueError(f"head must be one of the layer's {len(kept)}, from 0, but is {head}")
        kept[slice(None) if head is None else head] = 0
        event.value = event.value * kept.view(-1, *[1] * (event.value.ndim - 2)).to(event.value)

    return ablate


@typed(interval=(1, math.inf))
def deep_cache(interval: int = 3) -> Hook:
    """DeepCache: compute the whole U-Net at every `interval`-th step only, and at the others its last layer alone, from
    what the layer before gave then and from the outermost skip connection (Ma et al. 2023, arXiv:2312.00858, section
    3.2).

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.deep_cache(interval=3)])
    """

    @on(Stage.CONTEXT)
    def deep_cache(event: Any) -> None:
        run, unet = event.run, event.run.model.unet
        if event.layer is not None:
            return
        last = len(unet.up_blocks) - 1
        deep = [f"down_blocks.{i}" for i in range(last + 1)] + ["mid_block"] + [f"up_blocks.{i}" for i in range(last)]
        for kind in ("resnets", "attentions"):
            layers = getattr(unet.up_blocks[last], kind, ())
            deep += [f"up_blocks.{last}.{kind}.{i}" for i in range(len(layers) - 1)]
        if event.step % interval == 0:
            run.hold(*deep)
            return
        for part in deep:
            run.give(part, run.held[part])

    return deep_cache


@typed(gate=(1, math.inf))
def t_gate(gate: int) -> Hook:
    """T-GATE: from step `gate` on cross-attention is not computed: it gives the mean of what it gave both halves in the
    step before, and the words' half is asked alone (Zhang et al. 2024, arXiv:2404.02747, section 4).

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.t_gate(gate=10)])
    """

    @on(Stage.CONTEXT)
    def t_gate(event: Any) -> None:
        run = event.run
        if event.layer is not None or not run.guided or event.step < gate - 1:
            return
        crosses = [name for name, _ in run.model.unet.named_modules() if name.endswith("attn2")]
        if event.step == gate - 1:
            run.hold(*crosses)
            return
        event.value = event.value[-run.shape[0] :]
        for name in crosses:
            uncond, cond = run.held[name].chunk(2)
            run.give(name, (uncond + cond) / 2)

    return t_gate
