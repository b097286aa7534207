"""Inside the U-Net: `with` scopes in which attention and blocks are shown to the hooks that name them.

Beside, not instead: the layers' own processors go on making the output, of whatever class they are. What their
projections give is overheard, and only what a hook changed is added to what they mix. Nothing is left on the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdkit.events import INNER, Event, Stage, run, show
from sdkit.looks import Look, by_heads, rows

LARGEST = 32 * 32  # places of a self-attention that is shown: one of 64x64 takes 1 GB at two pictures and eight heads
FUSED_FROM = 2**17  # queries from which overhearing the fused kernel costs less than a softmax of one's own
FUSED = {  # kernels that give their log-sum-exp (2B, heads, h*w) as the second of what they return
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
}
MASKS = ("attention_mask", "encoder_attention_mask")


@runtime_checkable
class Reader(Protocol):
    """A hook that asks for less than whole events, and is called after all others: `AttentionMaps` is one."""

    def choose(self, layers: list[str], step: int | None, origin: Any) -> Collection[str]:
        """A step begins: which of the cross-attention layers it wants to read."""

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
        self.layers: list[_Layer] = []
        if self.readers or self.hooks[Stage.ATTENTION] or self.hooks[Stage.SELF_ATTENTION]:
            named = unet.named_modules()
            self.layers = [_Layer(self, name, module) for name, module in named if isinstance(module, Attention)]
        self.cross = [layer.name for layer in self.layers if layer.stage is Stage.ATTENTION]
        self.handles: list[Any] = []  # of the hooks before modules
        self.placed: list[tuple[dict[Any, Any], Any]] = []  # those behind modules, and among which they are
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
        try:
            expected |= self._listen()
            yield
        finally:
            self.overhearing.close()
            for handle in self.handles:
                handle.remove()
            for among, hook in self.placed:
                del among[hook]
            self.handles, self.placed = [], []
        if missed := expected - self._met:
            if missed == {Stage.SELF_ATTENTION.value}:
                raise ValueError(f"no self-attention here has at most {LARGEST} places, the most that is shown")
            raise ValueError(
                f"{', '.join(sorted(missed))} was asked for, but nothing in this U-Net has shown it; "
                f"its attention layers are {', '.join(layer.name for layer in self.layers) or 'none'}"
            )

    def _listen(self) -> set[str]:
        """Put hooks on the modules that have something to show; the layers that readers can expect."""
        chosen = [(reader, set(reader.choose(self.cross, self.step, self.origin))) for reader in self.readers]
        active = []
        for layer in self.layers:
            layer.readers = [reader for reader, names in chosen if layer.name in names]
            if layer.readers or self.hooks[layer.stage]:
                layer.listen()
                active.append(layer)

        def called(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
            if any(given.get(name) is not None for name in MASKS):
                for layer in active:
                    layer.listen_to_masks()

        if active:
            self.handles.append(self.unet.register_forward_pre_hook(called, with_kwargs=True))
        if self.hooks[Stage.BLOCK]:
            blocks = {f"down_blocks.{i}": block for i, block in enumerate(self.unet.down_blocks)}
            blocks |= {"mid_block": self.unet.mid_block} if self.unet.mid_block is not None else {}
            blocks |= {f"up_blocks.{i}": block for i, block in enumerate(self.unet.up_blocks)}
            for name, block in blocks.items():
                self.place(block, partial(self._block, name))
        return set().union(*(names for _, names in chosen))

    def place(self, module: Any, hook: Any) -> None:
        """As `register_forward_hook` does, but without a handle: making and removing one for each layer at each step
        would be half of what looking costs a small model."""
        module._forward_hooks[hook] = hook
        self.placed.append((module._forward_hooks, hook))

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

    def tell(self, readers: Sequence[Reader], look: Look) -> None:
        self._met.add(look.layer)
        for reader in readers:
            reader.read(look)


class _Layer:
    """One attention layer, which gathers what its projections give until it can be shown."""

    def __init__(self, inside: Inside, name: str, module: Any) -> None:
        self.inside, self.name, self.module = inside, name, module
        self.stage = Stage.ATTENTION if module.is_cross_attention else Stage.SELF_ATTENTION
        self.readers: list[Reader] = []  # those that read it at this step
        self.found: dict[str, Tensor] = {}  # "q", "k", "v": (2B, n, heads * d)
        self.mask: Tensor | None = None
        self.kernel: _Kernel | None = None

    def listen(self) -> None:
        """Put hooks on what is needed at this step: less where nobody can change anything."""
        module, place = self.module, self.inside.place
        self.found, self.mask, self.kernel = {}, None, None
        self.whole = bool(self.inside.hooks[self.stage])
        if module.fused_projections and not module.is_cross_attention:
            place(module.to_qkv, partial(self._projected, "qkv"))
        else:
            place(module.to_q, self._query)
            if module.fused_projections:
                place(module.to_kv, partial(self._projected, "kv"))
            else:
                place(module.to_k, self._key)
                if self.whole:
                    place(module.to_v, partial(self._projected, "v"))
        if self.whole:
            self._catch()

    def listen_to_masks(self) -> None:
        def begun(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
            self.mask = given.get("attention_mask")

        self.inside.handles.append(self.module.register_forward_pre_hook(begun, with_kwargs=True))

    def _catch(self) -> None:
        self.inside.handles.append(self.module.to_out[0].register_forward_pre_hook(self._mixed))

    def _query(self, _module: Any, _arguments: Any, output: Tensor) -> None:
        self.found["q"] = output

    def _key(self, _module: Any, _arguments: Any, output: Tensor) -> None:
        """Keys come after queries: all that readers need."""
        self.found["k"] = output
        if self.whole or "q" not in self.found:
            return
        if self.found["q"].numel() >= FUSED_FROM and all(reader.few() for reader in self.readers):
            self.kernel = self.inside.overhearing.enter_context(_Kernel())  # type: ignore[no-untyped-call]
            self._catch()  # now the kernel comes
        else:
            self.inside.tell(self.readers, self._look())

    def _projected(self, letters: str, _module: Any, _arguments: Any, output: Tensor) -> None:
        """Several projections in one, or the values."""
        found = dict(zip(letters, output.chunk(len(letters), dim=-1), strict=True))
        key = found.pop("k", None)
        self.found.update(found)
        if key is not None:
            self._key(_module, _arguments, key)

    def _look(self) -> Look:
        module, query, key, mask = self.module, self.found["q"], self.found["k"], self.mask
        if module.norm_q is not None:
            query = module.norm_q(by_heads(query, module.heads)).transpose(1, 2).flatten(2)
        if module.norm_k is not None:
            key = module.norm_k(by_heads(key, module.heads)).transpose(1, 2).flatten(2)
        if mask is not None:
            mask = module.prepare_attention_mask(mask, key.shape[1], len(query))
            mask = mask.reshape(len(query), module.heads, -1, key.shape[1])
        logsumexp = None if self.kernel is None else self.kernel.logsumexp
        return Look(self.name, module.heads, module.scale, query, key, mask, logsumexp)

    def _mixed(self, _module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Just before what was mixed, (2B, h*w, heads * d), is projected out: the moment to see all, and to change."""
        self.inside.overhearing.close()
        if not self.whole:
            self.inside.tell(self.readers, self._look())
            return None
        if self.found.keys() != {"q", "k", "v"}:
            return None
        if self.stage is Stage.SELF_ATTENTION and self.found["q"].shape[1] > LARGEST:
            return None
        look = self._look()
        before = rows([look]).to(look.query.dtype)  # (2B, heads, h*w, L)
        after = self.inside.show(self.stage, before, self.name)
        self.inside.tell(self.readers, look._replace(probabilities=after))
        if after is before:
            return None
        # The difference alone is added: what did not change, and what an IP-Adapter mixed in, stays to the last bit.
        change = (
            ((after - before) @ by_heads(self.found["v"], self.module.heads)).transpose(1, 2).flatten(2)
        )  # (2B, h*w, heads * d)
        return arguments[0] + change, *arguments[1:]


class _Kernel(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees a fused attention go by, and keeps its log-sum-exp."""

    logsumexp: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.logsumexp is None and func in FUSED and out[1].shape == args[0].shape[:3]:
            self.logsumexp = out[1]
        return out
