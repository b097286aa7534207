"""Inside the U-Net: `with` scopes in which attention and blocks are shown to the hooks that name them.

Beside, not instead: the layers' own processors go on making the output, of whatever class they are. What their
projections give is overheard, and only what a hook changed is added to what they mix. Nothing is left on the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdkit.events import INNER, Event, Stage, run, show

LARGEST = 32 * 32  # places of a self-attention that is shown: one of 64x64 takes 1 GB at two pictures and eight heads
FUSED_FROM = 32 * 32  # places from which overhearing the fused kernel costs less than a softmax of one's own
FUSED = {  # kernels that give their log-sum-exp (2B, heads, h*w) as the second of what they return
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
}


@dataclass(frozen=True, eq=False)
class Look:
    """What one cross-attention layer has just worked with. Softmax of q k^T * scale are its probabilities."""

    layer: str
    step: int | None
    origin: Any  # the `Run`
    query: Tensor  # (2B, heads, h*w, d)
    key: Tensor  # (2B, heads, L, d)
    scale: float
    mask: Tensor | None = None  # broadcastable to (2B, heads, h*w, L), added before the softmax
    logsumexp: Tensor | None = None  # (2B, heads, h*w) of each row, if the kernel gave it
    probabilities: Tensor | None = None  # (2B, heads, h*w, L), if a hook has seen them: as it left them

    def rows(self, which: slice = slice(None)) -> Tensor:
        """Probabilities (b, heads, h*w, L) of some rows of the batch."""
        if self.probabilities is not None:
            return self.probabilities[which]
        # scaling the keys, which are few, spares a pass over the scores
        scores = self.query[which] @ (self.key[which] * self.scale).transpose(-1, -2)  # (b, heads, h*w, L)
        if self.mask is not None:
            scores = scores + self.mask[which]
        return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))

    def columns(self, which: slice, tokens: Sequence[int]) -> Tensor:
        """Probabilities (b, heads, h*w, len(tokens)) of some tokens: exp(q.k * scale - lse) where lse is known."""
        if self.logsumexp is None or self.probabilities is not None or self.mask is not None:
            return self.rows(which)[..., tokens]
        query, key = self.query[which], (self.key[which] * self.scale)[:, :, None, tokens]  # (b, heads, 1, tokens, d)
        # a product and a sum for each token read the queries where they lie; a matrix product would copy them first
        scores = torch.stack([(query * key[..., i, :]).sum(-1, dtype=torch.float32) for i in range(len(tokens))], -1)
        return (scores - self.logsumexp[which][..., None]).exp_()


@runtime_checkable
class Reader(Protocol):
    """A hook that asks for less than whole events, and is called after all others: `AttentionMaps` is one."""

    def choose(self, layers: list[str], step: int | None) -> Collection[str]:
        """Which of the cross-attention layers it wants to read at this step."""

    def few(self) -> bool:
        """Whether a few columns will do."""

    def read(self, look: Look) -> None:
        """One of those layers, as it was computed."""


class Inside:
    """The inside of a U-Net during one run, for hooks that name stages there.

    Example:
        >>> with Inside(unet, hooks).at(step=0, t=999):
        ...     unet(x, 999, text)
    """

    def __init__(self, unet: Any, hooks: Sequence[Any], origin: Any = None) -> None:
        self.unet, self.origin = unet, origin
        self.readers: list[Reader] = [hook for hook in hooks if isinstance(hook, Reader)]
        self.hooks = {
            stage: [hook for hook in hooks if stage in getattr(hook, "stages", ()) and not isinstance(hook, Reader)]
            for stage in INNER
        }
        self.layers: dict[str, Any] = {}
        if self.readers or self.hooks[Stage.ATTENTION] or self.hooks[Stage.SELF_ATTENTION]:
            self.layers = {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}
        self.overhearing = ExitStack()  # of a fused kernel, closed as soon as it has run
        self.step: int | None = None
        self.t: int | None = None
        self._gradients = True
        self._met: set[str] = set()  # the stages that were shown and the layers that were read

    @contextmanager
    def at(self, step: int | None = None, t: int | None = None) -> Iterator[None]:
        """While one call of the U-Net runs.

        Raises:
            ValueError: a hook asked for what nothing in this U-Net has shown.
        """
        if not self.readers and not any(self.hooks.values()):
            yield
            return
        self.step, self.t, self._gradients = step, t, torch.is_grad_enabled()
        self._met = set()
        expected = {stage.value for stage, hooks in self.hooks.items() if hooks}
        with ExitStack() as handles:
            handles.enter_context(self.overhearing)
            expected |= self._listen(handles)
            yield
        if missed := expected - self._met:
            if missed == {Stage.SELF_ATTENTION.value}:
                raise ValueError(
                    f"no layer of self-attention here has at most {LARGEST} places, the most that is shown"
                )
            raise ValueError(
                f"{', '.join(sorted(missed))} was asked for, but nothing in this U-Net has shown it; "
                f"its attention layers are {', '.join(self.layers) or 'none'}"
            )

    def _listen(self, handles: ExitStack) -> set[str]:
        """Put hooks on the modules that have something to show; the layers that readers can expect."""
        cross = [name for name, attention in self.layers.items() if attention.is_cross_attention]
        chosen = [set(reader.choose(cross, self.step)) for reader in self.readers]
        for name, attention in self.layers.items():
            stage = Stage.ATTENTION if attention.is_cross_attention else Stage.SELF_ATTENTION
            readers = [reader for reader, names in zip(self.readers, chosen, strict=True) if name in names]
            if readers or self.hooks[stage]:
                _Layer(self, name, attention, stage, readers).listen(handles)
        if self.hooks[Stage.BLOCK]:
            blocks = {f"down_blocks.{i}": block for i, block in enumerate(self.unet.down_blocks)}
            blocks |= {"mid_block": self.unet.mid_block} if self.unet.mid_block is not None else {}
            blocks |= {f"up_blocks.{i}": block for i, block in enumerate(self.unet.up_blocks)}
            for name, block in blocks.items():
                handles.callback(block.register_forward_hook(partial(self._block, name)).remove)
        return set().union(*chosen)

    def _block(self, name: str, _module: Any, _arguments: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output  # (2B, c, h', w')
        value = self.show(Stage.BLOCK, hidden, name)
        if value is hidden:
            return None
        if not isinstance(output, tuple):
            return value
        return value, tuple(value if skip is hidden else skip for skip in output[1])  # what goes down also goes across

    def show(self, stage: Stage, value: Tensor, layer: str) -> Tensor:
        """Show a value in line, and return it as the hooks left it."""
        self._met.add(stage.value)
        event = Event(stage, value, self.step, self.t, layer, self.origin)
        with torch.set_grad_enabled(self._gradients):
            value = run(show(event), self.hooks[stage])
        if self.origin is not None:
            edited_by = self.origin.record["edited_by"]
            edited_by.extend(name for name in {edit.hook: None for edit in event.edits} if name not in edited_by)
        return value

    def tell(self, reader: Reader, look: Look) -> None:
        self._met.add(look.layer)
        with torch.set_grad_enabled(self._gradients):
            reader.read(look)


@dataclass(eq=False)
class _Layer:
    """One attention layer during one call: it gathers what the projections give until they are mixed."""

    inside: Inside
    name: str
    attention: Any
    stage: Stage
    readers: list[Reader]
    found: dict[str, Tensor] = field(default_factory=dict)  # "q", "k", "v": (2B, n, heads * d)
    mask: Tensor | None = None
    kernel: _Kernel | None = None

    def listen(self, handles: ExitStack) -> None:
        layer = self.attention
        projections = [("q", layer.to_q), ("k", layer.to_k), ("v", layer.to_v)]
        if getattr(layer, "fused_projections", False):
            crossed = [("q", layer.to_q), ("kv", layer.to_kv)] if layer.is_cross_attention else None
            projections = crossed or [("qkv", layer.to_qkv)]
        for letters, module in projections:
            handles.callback(module.register_forward_hook(partial(self._projected, letters)).remove)
        handles.callback(layer.register_forward_pre_hook(self._begun, with_kwargs=True).remove)
        handles.callback(layer.to_out[0].register_forward_pre_hook(self._mixed).remove)

    def _begun(self, _module: Any, _arguments: Any, given: dict[str, Any]) -> None:
        self.found, self.mask, self.kernel = {}, given.get("attention_mask"), None

    def _projected(self, letters: str, _module: Any, _arguments: Any, output: Tensor) -> None:
        self.found.update(zip(letters, output.chunk(len(letters), dim=-1), strict=True))
        whole = self.inside.hooks[self.stage] or not all(reader.few() for reader in self.readers)
        if "v" in letters and not whole and self.found["q"].shape[1] >= FUSED_FROM:  # now the kernel comes
            self.kernel = self.inside.overhearing.enter_context(_Kernel())  # type: ignore[no-untyped-call]

    def _mixed(self, _module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Just before what was mixed, (2B, h*w, heads * d), is projected out: the moment to see, and to change."""
        self.inside.overhearing.close()
        layer, found = self.attention, self.found
        if found.keys() != {"q", "k", "v"} or (self.stage is Stage.SELF_ATTENTION and found["q"].shape[1] > LARGEST):
            return None
        query, key, value = (
            x.reshape(*x.shape[:2], layer.heads, -1).transpose(1, 2)  # (2B, heads, n, d)
            for x in (found["q"], found["k"], found["v"])
        )
        if layer.norm_q is not None:
            query = layer.norm_q(query)
        if layer.norm_k is not None:
            key = layer.norm_k(key)
        look = Look(self.name, self.inside.step, self.inside.origin, query, key, layer.scale)
        if self.mask is not None:
            mask = layer.prepare_attention_mask(self.mask, key.shape[2], len(query))
            look = replace(look, mask=mask.reshape(len(query), layer.heads, -1, mask.shape[-1]))
        if self.kernel is not None and self.kernel.logsumexp is not None:
            look = replace(look, logsumexp=self.kernel.logsumexp)
        changed = None
        if self.inside.hooks[self.stage]:
            before = look.rows().to(query.dtype)  # (2B, heads, h*w, L)
            after = self.inside.show(self.stage, before, self.name)
            look = replace(look, probabilities=after)
            if after is not before:  # the difference: what is not changed stays what it was to the last bit
                change = ((after - before) @ value).transpose(1, 2).flatten(2)  # (2B, h*w, heads * d)
                changed = (arguments[0] + change, *arguments[1:])
        for reader in self.readers:
            self.inside.tell(reader, look)
        return changed


class _Kernel(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees a fused attention go by, and keeps its log-sum-exp."""

    logsumexp: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.logsumexp is None and func in FUSED and out[1].shape == args[0].shape[:3]:
            self.logsumexp = out[1]
        return out


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
