"""One attention layer of a run's U-Net: what its projections give, shown and changed on the way to its output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Stage, within
from sdkit.unet.attention import Look, Reader, by_heads, probabilities

PROJECTED = {"q": Stage.QUERY, "k": Stage.KEY, "v": Stage.VALUE}
LARGEST = 32 * 32  # places of a self-attention that is shown: one of 64x64 takes 1 GB at two pictures and eight heads


def narrowed(hooks: Sequence[Any], layer: str) -> list[Any]:
    """The hooks that want to see a layer."""
    return [hook for hook in hooks if within(layer, getattr(hook, "layer", None))]


class Layer:
    """One attention layer, which gathers what its projections give until it can be shown."""

    def __init__(self, scope: Any, name: str, module: Any) -> None:
        self.scope, self.name, self.module = scope, name, module
        self.stage = Stage.ATTENTION if module.is_cross_attention else Stage.SELF_ATTENTION
        self.hooks = narrowed(scope.hooks[self.stage], name)
        self.parts_hooks = {letter: narrowed(scope.hooks[stage], name) for letter, stage in PROJECTED.items()}
        self.readers: list[Reader] = []  # those that read it in this call
        self.parts: dict[str, Tensor] = {}  # "q", "k", "v": (2B, n, heads * d)
        self.mask: Tensor | None = None

    def place(self) -> None:
        """Put hooks on what is needed: less where nobody can change anything."""
        module = self.module
        module.register_forward_pre_hook(self._begin, with_kwargs=True)
        if module.fused_projections:
            joined = {"qkv": module.to_qkv} if not module.is_cross_attention else {"q": module.to_q, "kv": module.to_kv}
        else:
            joined = {"q": module.to_q, "k": module.to_k, "v": module.to_v}
        for letters, projection in joined.items():
            if letters != "v" or self.hooks or self.parts_hooks["k"] or self.parts_hooks["v"]:
                projection.register_forward_hook(partial(self._projected, letters))
        if self.hooks:
            module.to_out[0].register_forward_pre_hook(self._mixed)

    def _begin(self, _module: Any, _arguments: Any, options: dict[str, Any]) -> None:
        self.parts, self.mask = {}, options.get("attention_mask")

    def _projected(self, letters: str, _module: Any, _arguments: Any, output: Tensor) -> Tensor | None:
        """One projection, or several in one. Keys come after queries: all that readers need."""
        before = dict(zip(letters, output.chunk(len(letters), dim=-1), strict=True))
        for letter, value in before.items():
            if hooks := self.parts_hooks[letter]:
                value = self.scope.show(PROJECTED[letter], value, self.name, hooks)
            self.parts[letter] = value
        if "v" in letters and self.parts["v"].shape[1] != self.parts["k"].shape[1]:
            raise ValueError(
                f"layer {self.name!r}: hooks left {self.parts['k'].shape[1]} keys and {self.parts['v'].shape[1]} "
                "values; expected as many of both"
            )
        if "k" in letters and self.readers and not self.hooks:
            self.scope.tell(self.readers, self._look())
        if all(self.parts[letter] is value for letter, value in before.items()):
            return None
        return torch.cat([self.parts[letter] for letter in letters], dim=-1)

    def _look(self) -> Look:
        module, query, key, mask = self.module, self.parts["q"], self.parts["k"], self.mask
        if module.norm_q is not None:
            query = module.norm_q(by_heads(query, module.heads)).transpose(1, 2).flatten(2)
        if module.norm_k is not None:
            key = module.norm_k(by_heads(key, module.heads)).transpose(1, 2).flatten(2)
        if mask is not None:
            mask = module.prepare_attention_mask(mask, key.shape[1], len(query))
            mask = mask.reshape(len(query), module.heads, -1, key.shape[1])
        return Look(self.name, module.heads, module.scale, query, key, mask)

    def _mixed(self, _module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Just before what was mixed, (2B, h*w, heads * d), is projected out: the moment to see all, and to change."""
        if self.parts.keys() != {"q", "k", "v"}:
            return None
        if self.stage is Stage.SELF_ATTENTION and self.parts["q"].shape[1] > LARGEST:
            return None
        look = self._look()
        before = probabilities([look]).to(look.query.dtype)  # (2B, heads, h*w, L)
        after = self.scope.show(self.stage, before, self.name, self.hooks)
        self.scope.tell(self.readers, look._replace(edited=after))
        if after is before:
            return None
        # The difference alone is added: what did not change, and what an IP-Adapter mixed in, stays to the last bit.
        value = by_heads(self.parts["v"], self.module.heads)
        change = ((after - before) @ value).transpose(1, 2).flatten(2)  # (2B, h*w, heads * d)
        return arguments[0] + change, *arguments[1:]
