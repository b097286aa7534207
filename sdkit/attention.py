"""Inside the U-Net: `with` scopes in which attention and blocks are shown to the hooks that name them.

Beside, not instead: the layers' own processors go on making the output, of whatever class they are. What their
projections give is overheard, and only what a hook changed is added to what they mix. Nothing is left on the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdkit.events import INNER, Event, Stage, run, show

LARGEST = 32 * 32  # places of a self-attention that is shown: one of 64x64 takes 1 GB at two pictures and eight heads
LARGE = 32 * 32  # places from which a layer is read at once; smaller ones wait, to be read together in fewer operations
FUSED = {  # kernels that give their log-sum-exp (2B, heads, h*w) as the second of what they return
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
}
MASKS = ("attention_mask", "encoder_attention_mask")


@dataclass(frozen=True, eq=False)
class Look:
    """What one cross-attention layer works with. Its probabilities are the softmax of q k^T * scale + mask."""

    layer: str
    query: Tensor  # (2B, heads, h*w, d)
    key: Tensor  # (2B, heads, L, d)
    scale: float
    mask: Tensor | None = None  # broadcastable to (2B, heads, h*w, L)
    logsumexp: Tensor | None = None  # (2B, heads, h*w) of each row before the softmax, if the kernel gave it
    probabilities: Tensor | None = None  # (2B, heads, h*w, L) as the hooks left them, if any has seen them


def rows(looks: Sequence[Look], which: slice = slice(None)) -> Tensor:
    """Probabilities (looks * b, heads, h*w, L) of some rows of the batch, of layers that are alike."""
    known = [look.probabilities[which] for look in looks if look.probabilities is not None]
    if known:
        return torch.cat(known)
    query = torch.cat([look.query[which] for look in looks]) if len(looks) > 1 else looks[0].query[which]
    key = torch.cat([look.key[which] for look in looks]) if len(looks) > 1 else looks[0].key[which]
    q, k = query.flatten(0, 1), key.flatten(0, 1)  # (looks * b * heads, h*w, d), (looks * b * heads, L, d)
    scores: Tensor = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=looks[0].scale)
    scores = scores.reshape(*query.shape[:2], *scores.shape[1:])  # (looks * b, heads, h*w, L)
    if looks[0].mask is not None:
        scores = scores + torch.cat([look.mask[which] for look in looks if look.mask is not None])
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def columns(looks: Sequence[Look], which: slice, tokens: Sequence[int]) -> Tensor:
    """The same of some tokens (looks * b, heads, h*w, tokens): exp(q.k * scale - lse) where that is known."""
    (look, *more) = looks
    if more or look.logsumexp is None or look.probabilities is not None or look.mask is not None:
        return rows(looks, which)[..., tokens]
    query, key = look.query[which], (look.key[which] * look.scale)[:, :, None, tokens]  # (b, heads, 1, tokens, d)
    # a product and a sum for each token read the queries where they lie; a matrix product would copy them first
    scores = torch.stack([(query * key[..., i, :]).sum(-1, dtype=torch.float32) for i in range(len(tokens))], -1)
    return (scores - look.logsumexp[which][..., None]).exp_()


@runtime_checkable
class Reader(Protocol):
    """A hook that asks for less than whole events, and is called after all others: `AttentionMaps` is one."""

    def choose(self, layers: list[str], step: int | None, origin: Any) -> Collection[str]:
        """A step begins: which of the cross-attention layers it wants to read."""

    def few(self) -> bool:
        """Whether a few columns will do."""

    def read(self, looks: Sequence[Look]) -> None:
        """One or more of those layers, as they were computed."""


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
        self.handles = ExitStack()  # of all that was put on modules
        self.overhearing = ExitStack()  # of a fused kernel, closed as soon as it has run
        self.step: int | None = None
        self.t: int | None = None
        self._gradients = True
        self._met: set[str] = set()  # the stages that were shown and the layers that were read
        self._waiting: dict[int, list[Look]] = {}  # small layers, by the number of their reader

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
        self._met, self._waiting = set(), {}
        expected = {stage.value for stage, hooks in self.hooks.items() if hooks}
        with self.handles, self.overhearing:
            expected |= self._listen()
            yield
        for i, looks in self._waiting.items():
            self.readers[i].read(looks)
        if missed := expected - self._met:
            if missed == {Stage.SELF_ATTENTION.value}:
                raise ValueError(f"no self-attention here has at most {LARGEST} places, the most that is shown")
            raise ValueError(
                f"{', '.join(sorted(missed))} was asked for, but nothing in this U-Net has shown it; "
                f"its attention layers are {', '.join(layer.name for layer in self.layers) or 'none'}"
            )

    def _listen(self) -> set[str]:
        """Put hooks on the modules that have something to show; the layers that readers can expect."""
        cross = [layer.name for layer in self.layers if layer.stage is Stage.ATTENTION]
        chosen = [set(reader.choose(cross, self.step, self.origin)) for reader in self.readers]
        active = []
        for layer in self.layers:
            layer.readers = [i for i, names in enumerate(chosen) if layer.name in names]
            if layer.readers or self.hooks[layer.stage]:
                layer.listen()
                active.append(layer)

        def called(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
            if any(given.get(name) is not None for name in MASKS):
                for layer in active:
                    layer.listen_to_masks()

        if active:
            self.handles.callback(self.unet.register_forward_pre_hook(called, with_kwargs=True).remove)
        if self.hooks[Stage.BLOCK]:
            blocks = {f"down_blocks.{i}": block for i, block in enumerate(self.unet.down_blocks)}
            blocks |= {"mid_block": self.unet.mid_block} if self.unet.mid_block is not None else {}
            blocks |= {f"up_blocks.{i}": block for i, block in enumerate(self.unet.up_blocks)}
            for name, block in blocks.items():
                self.handles.callback(block.register_forward_hook(partial(self._block, name)).remove)
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

    def tell(self, readers: Sequence[int], look: Look) -> None:
        """Let readers read a layer: at once if it is large, so that nothing of it has to be kept."""
        self._met.add(look.layer)
        for i in readers:
            if look.query.shape[2] >= LARGE:
                self.readers[i].read([look])
            else:
                self._waiting.setdefault(i, []).append(look)


class _Layer:
    """One attention layer, which gathers what its projections give until it can be shown."""

    def __init__(self, inside: Inside, name: str, module: Any) -> None:
        self.inside, self.name, self.module = inside, name, module
        self.stage = Stage.ATTENTION if module.is_cross_attention else Stage.SELF_ATTENTION
        self.readers: list[int] = []  # numbers of those that read it at this step
        self.found: dict[str, Tensor] = {}  # "q", "k", "v": (2B, n, heads * d)
        self.mask: Tensor | None = None
        self.kernel: _Kernel | None = None

    def listen(self) -> None:
        """Put hooks on what is needed at this step: less where nobody can change anything."""
        module = self.module
        self.found, self.mask, self.kernel = {}, None, None
        self.whole = bool(self.inside.hooks[self.stage])
        self.few = all(self.inside.readers[i].few() for i in self.readers)
        projections = {"q": "to_q", "k": "to_k", "v": "to_v"}
        if getattr(module, "fused_projections", False):
            projections = {"q": "to_q", "kv": "to_kv"} if module.is_cross_attention else {"qkv": "to_qkv"}
        for letters, name in projections.items():
            if letters != "v" or self.whole:
                hook = getattr(module, name).register_forward_hook(partial(self._projected, letters))
                self.inside.handles.callback(hook.remove)
        if self.whole:
            self._catch()

    def listen_to_masks(self) -> None:
        def begun(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
            self.mask = given.get("attention_mask")

        self.inside.handles.callback(self.module.register_forward_pre_hook(begun, with_kwargs=True).remove)

    def _catch(self) -> None:
        self.inside.handles.callback(self.module.to_out[0].register_forward_pre_hook(self._mixed).remove)

    def _projected(self, letters: str, _module: Any, _arguments: Any, output: Tensor) -> None:
        parts = output.chunk(len(letters), dim=-1) if len(letters) > 1 else (output,)
        self.found.update(zip(letters, parts, strict=True))
        if "k" not in letters or self.whole or "q" not in self.found:
            return
        if self.few and self.found["q"].shape[1] >= LARGE:  # now the kernel comes
            self.kernel = self.inside.overhearing.enter_context(_Kernel())  # type: ignore[no-untyped-call]
            self._catch()
        else:
            self.inside.tell(self.readers, self._look())

    def _look(self) -> Look:
        module = self.module
        query, key = (self._heads(self.found[letter]) for letter in "qk")
        if module.norm_q is not None:
            query = module.norm_q(query)
        if module.norm_k is not None:
            key = module.norm_k(key)
        mask = self.mask
        if mask is not None:
            mask = module.prepare_attention_mask(mask, key.shape[2], len(query))
            mask = mask.reshape(len(query), module.heads, -1, key.shape[2])
        lse = None if self.kernel is None else self.kernel.logsumexp
        return Look(self.name, query, key, module.scale, mask, lse)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.module.heads, -1).transpose(1, 2)  # (2B, heads, n, d)

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
        self.inside.tell(self.readers, replace(look, probabilities=after))
        if after is before:
            return None
        # The difference alone is added: what did not change, and what an IP-Adapter mixed in, stays to the last bit.
        change = ((after - before) @ self._heads(self.found["v"])).transpose(1, 2).flatten(2)  # (2B, h*w, heads * d)
        return arguments[0] + change, *arguments[1:]


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
