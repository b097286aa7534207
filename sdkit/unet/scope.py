"""Inside the U-Net: attention and blocks, shown to the hooks that name them while one run calls the U-Net.

A run calls a twin of the U-Net: other module objects around the very same weights. Its hooks sit on the twin alone, so
no other run can see or edit by them, in another thread or within a hook, and nothing is ever put on the model. The
layers' own attention processors go on making the output, whatever their class; only what a hook changed is added.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from sdkit.events import INNER, Event, Stage, name_of, run, show, stages_of, within
from sdkit.unet.attention import Look, by_heads, probabilities

LARGEST = 32 * 32  # places of a self-attention that is shown: one of 64x64 takes 1 GB at two pictures and eight heads
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@runtime_checkable
class Reader(Protocol):
    """A hook that reads queries and keys of cross-attention and cannot edit, which costs less than an event would, and
    is called after all others: `AttentionMaps` is one."""

    def choose(self, layers: list[str], step: int | None, run: Any) -> Collection[str]:
        """A call of the U-Net begins: which of the cross-attention layers to read."""

    def read(self, look: Look) -> None:
        """One of those layers, as it was computed."""


def twin_of(module: Any, known: dict[int, Any] | None = None) -> Any:
    """A module that computes with the same weights and buffers as another, and whose hooks are its own.

    What has been put on the module before, such as the hooks by which accelerate moves its weights about, acts on the
    twin likewise.
    """
    known = {} if known is None else known
    if id(module) in known:
        return known[id(module)]
    twin = known[id(module)] = module.__class__.__new__(module.__class__)
    twin.__dict__.update(module.__dict__)
    twin.__dict__.update({name: module.__dict__[name].copy() for name in _HOOKS})
    twin.__dict__.pop("_compiled_call_impl", None)  # compiled code would not call the hooks
    for name, value in module.__dict__.items():  # methods that were put on the object itself, as accelerate does
        if isinstance(value, MethodType) and value.__self__ is module:
            twin.__dict__[name] = MethodType(value.__func__, twin)
        elif isinstance(value, partial) and value.args[:1] == (module,):
            twin.__dict__[name] = partial(value.func, twin, *value.args[1:], **value.keywords)
    children = module.__dict__["_modules"].items()
    twin.__dict__["_modules"] = {name: child if child is None else twin_of(child, known) for name, child in children}
    return twin


class Scope:
    """The inside of a U-Net for the hooks of one run.

    Example:
        >>> scope = Scope(unet, hooks)
        >>> with scope.at(step=0, t=999):
        ...     scope.unet(x, 999, text)

    Raises:
        ValueError: a hook asks for a layer that this U-Net does not have.
    """

    def __init__(self, unet: Any, hooks: Sequence[Any], run: Any = None) -> None:
        self.unet, self.run = unet, run
        self.step: int | None = None
        self.t: int | None = None
        self.gradients = False
        self.layers: list[_Layer] = []
        self._shown: set[str] = set()  # the stages that were shown and the layers that were read, in this call
        self.readers: list[Reader] = [hook for hook in hooks if isinstance(hook, Reader)]
        self.hooks = {
            stage: [hook for hook in hooks if stage in stages_of(hook) and not isinstance(hook, Reader)]
            for stage in INNER
        }
        if not self.readers and not any(self.hooks.values()):
            return
        self.unet = twin_of(getattr(unet, "_orig_mod", unet))  # of a compiled one the module that was compiled
        modules = {name: one for name, one in self.unet.named_modules() if isinstance(one, Attention)}
        self._check_layers(modules)
        for name, module in modules.items():
            layer = _Layer(self, name, module)
            if layer.hooks or (self.readers and module.is_cross_attention):
                layer.place()
                self.layers.append(layer)
        self.cross = [layer.name for layer in self.layers if layer.stage is Stage.ATTENTION]
        for name, block in self._blocks().items():
            if hooks := _narrowed(self.hooks[Stage.BLOCK], name):
                block.register_forward_hook(partial(self._block, name, hooks))

    def _blocks(self) -> dict[str, nn.Module]:
        """The blocks of the U-Net by name, if somebody wants to see any."""
        if not self.hooks[Stage.BLOCK]:
            return {}
        blocks = {f"down_blocks.{i}": block for i, block in enumerate(self.unet.down_blocks)}
        blocks |= {"mid_block": self.unet.mid_block} if self.unet.mid_block is not None else {}
        return blocks | {f"up_blocks.{i}": block for i, block in enumerate(self.unet.up_blocks)}

    def _check_layers(self, modules: dict[str, Any]) -> None:
        kinds: dict[Stage, list[str]] = {Stage.BLOCK: list(self._blocks())}
        for stage in (Stage.ATTENTION, Stage.SELF_ATTENTION):
            kinds[stage] = [n for n, one in modules.items() if one.is_cross_attention == (stage is Stage.ATTENTION)]
        for stage, hooks in self.hooks.items():
            for hook in hooks:
                part = getattr(hook, "layer", None)
                if not any(within(name, part) for name in kinds[stage]):
                    where = "in this U-Net" if part is None else f"in layer {part!r}"
                    raise ValueError(
                        f"{name_of(hook)!r} names the stage {stage.value!r}, but there is none {where}; its layers are "
                        f"{', '.join(kinds[stage]) or 'none'}"
                    )

    def close(self) -> None:
        """Let the twin go, which otherwise keeps the model's weights until Python looks for circles."""
        for layer in self.layers:
            layer.module = None
        self.layers, self.unet, self.run = [], None, None

    @contextmanager
    def at(self, step: int | None = None, t: int | None = None) -> Iterator[None]:
        """While one call of the U-Net runs.

        Raises:
            ValueError: a hook asked for what nothing in this U-Net has shown.
        """
        if not self.readers and not any(self.hooks.values()):
            yield
            return
        self.step, self.t, self.gradients, self._shown = step, t, torch.is_grad_enabled(), set()
        chosen = [(reader, set(reader.choose(self.cross, step, self.run))) for reader in self.readers]
        for layer in self.layers:
            layer.readers = [reader for reader, names in chosen if layer.name in names]
        try:
            yield
        finally:
            for layer in self.layers:
                layer.parts = {}  # so that nothing large waits for the next call
        expected = {stage.value for stage, hooks in self.hooks.items() if hooks}.union(*(names for _, names in chosen))
        if missed := expected - self._shown:
            if missed == {Stage.SELF_ATTENTION.value}:
                raise ValueError(f"no self-attention here has at most {LARGEST} places, the most that is shown")
            raise ValueError(
                f"{', '.join(sorted(missed))} was asked for, but nothing in this U-Net has shown it; "
                f"its attention layers are {', '.join(layer.name for layer in self.layers) or 'none'}"
            )

    def _block(self, name: str, hooks: Sequence[Any], _module: Any, _arguments: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output  # (2B, c, h', w')
        value = self.show(Stage.BLOCK, hidden, name, hooks)
        if value is hidden:
            return None
        if not isinstance(output, tuple):
            return value
        return value, tuple(value if skip is hidden else skip for skip in output[1])  # what goes down also goes across

    def show(self, stage: Stage, value: Tensor, layer: str, hooks: Sequence[Any]) -> Tensor:
        """Show a value in line, and return it as the hooks left it."""
        self._shown.add(stage.value)
        event = Event(stage, value, self.step, self.t, layer, self.run)
        with torch.set_grad_enabled(self.gradients):
            value = run(show(event, hooks))
        if self.run is not None:
            self.run.note(event)
        return value

    def tell(self, readers: Sequence[Reader], look: Look) -> None:
        """Hand a layer to those that read it."""
        self._shown.add(look.layer)
        for reader in readers:
            reader.read(look)


def _narrowed(hooks: Sequence[Any], layer: str) -> list[Any]:
    """The hooks that want to see a layer."""
    return [hook for hook in hooks if within(layer, getattr(hook, "layer", None))]


class _Layer:
    """One attention layer, which gathers what its projections give until it can be shown."""

    def __init__(self, scope: Scope, name: str, module: Any) -> None:
        self.scope, self.name, self.module = scope, name, module
        self.stage = Stage.ATTENTION if module.is_cross_attention else Stage.SELF_ATTENTION
        self.hooks = _narrowed(scope.hooks[self.stage], name)
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
            if letters != "v" or self.hooks:
                projection.register_forward_hook(partial(self._projected, letters))
        if self.hooks:
            module.to_out[0].register_forward_pre_hook(self._mixed)

    def _begin(self, _module: Any, _arguments: Any, options: dict[str, Any]) -> None:
        self.parts, self.mask = {}, options.get("attention_mask")

    def _projected(self, letters: str, _module: Any, _arguments: Any, output: Tensor) -> None:
        """One projection, or several in one. Keys come after queries: all that readers need."""
        self.parts.update(zip(letters, output.chunk(len(letters), dim=-1), strict=True))
        if "k" in letters and self.readers and not self.hooks:
            self.scope.tell(self.readers, self._look())

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
