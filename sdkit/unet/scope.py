"""Inside the U-Net: attention and blocks, shown to the hooks that name them while one run calls the U-Net.

A run calls a twin of the U-Net: other module objects around the very same weights. Its hooks sit on the twin alone, so
no other run can see or edit by them, in another thread or within a hook, and nothing is ever put on the model. The
layers' own attention processors go on making the output, whatever their class; only what a hook changed is added.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from sdkit.events import INNER, Event, Stage, name_of, run, show, stages_of, within
from sdkit.model.allowed import uncompiled
from sdkit.model.engines import StandIn
from sdkit.model.twin import is_compiled, twin_of
from sdkit.unet.attention import Look, Reader
from sdkit.unet.layer import LARGEST, PROJECTED, Layer, narrowed


class Scope:
    """The inside of a U-Net for the hooks of one run.

    Example:
        >>> scope = Scope(unet, hooks)
        >>> with scope.at(step=0, t=999):
        ...     scope.unet(x, 999, text)

    Raises:
        ValueError: a hook asks for a layer that this U-Net does not have.
    """

    def __init__(self, unet: Any, hooks: Sequence[Any], run: Any = None, *, notes: bool = True) -> None:
        self.unet, self.run, self.notes = unet, run, notes
        self.held: dict[str, Any] = {}  # what parts gave that were to be held
        self._for_one_call: list[Callable[[], Any]] = []  # what undoes `hold` and `give`
        self._twin = False
        self.step: int | None = None
        self.t: int | None = None
        self.gradients = False
        self.layers: list[Layer] = []
        self._shown: set[str] = set()  # the stages that were shown and the layers that were read, in this call
        self.readers: list[Reader] = [hook for hook in hooks if isinstance(hook, Reader)]
        self.hooks = {
            stage: [hook for hook in hooks if stage in stages_of(hook) and not isinstance(hook, Reader)]
            for stage in INNER
        }
        if not self.readers and not any(self.hooks.values()):
            return
        self._open()
        modules = {name: one for name, one in self.unet.named_modules() if isinstance(one, Attention)}
        self._check_layers(modules)
        for name, module in modules.items():
            layer = Layer(self, name, module)
            if layer.hooks or any(layer.parts_hooks.values()) or (self.readers and module.is_cross_attention):
                layer.place()
                self.layers.append(layer)
        self.cross = [layer.name for layer in self.layers if layer.stage is Stage.ATTENTION]
        for name, block in self._blocks().items():
            if hooks := narrowed(self.hooks[Stage.BLOCK], name):
                block.register_forward_hook(partial(self._block, name, hooks))
        for name in {hook.layer for hook in self.hooks[Stage.BLOCK] if self._is_inner_part(hook)}:
            hooks = [hook for hook in self.hooks[Stage.BLOCK] if getattr(hook, "layer", None) == name]
            self._part(name).register_forward_hook(partial(self._block, name, hooks))
        for name, block in self._residual_blocks().items():
            if hooks := narrowed(self.hooks[Stage.INPUT], name):
                block.register_forward_pre_hook(partial(self._input, name, hooks))

    def _open(self) -> None:
        """A twin to put hooks on, if there is none yet."""
        if not self._twin:
            if is_compiled(self.unet):
                warnings.warn("hooks cannot see into compiled code: this run calls the U-Net uncompiled", stacklevel=2)
            if isinstance(self.unet, StandIn):
                self.unet.note("torch")
            self.unet = twin_of(uncompiled(self.unet))
            self._twin = True

    def hold(self, layers: Sequence[str]) -> None:
        """Keep what these parts give in the next call, in `held`."""
        for name in layers:

            def keep(_module: Any, _arguments: Any, output: Any, name: str = name) -> None:
                self.held[name] = output

            self._for_one_call.append(self._part(name).register_forward_hook(keep).remove)

    def give(self, name: str, output: Any) -> None:
        """Have a part give this in the next call, without computing it."""
        own = self._part(name).__dict__
        before = {key: own[key] for key in ("forward",) if key in own}
        output = (output,) if not name and isinstance(output, Tensor) else output
        own["forward"] = lambda *_, **__: output
        self._for_one_call.append(lambda: (own.pop("forward"), own.update(before)))

    def _part(self, name: str) -> Any:
        self._open()
        try:
            return self.unet.get_submodule(name)
        except AttributeError:
            raise ValueError(
                f"this U-Net has no part {name!r}; its parts are those of unet.named_modules(), such as 'mid_block'"
            ) from None

    def _blocks(self) -> dict[str, nn.Module]:
        """The blocks of the U-Net by name, if somebody wants to see any."""
        if not self.hooks[Stage.BLOCK]:
            return {}
        blocks = {f"down_blocks.{i}": block for i, block in enumerate(self.unet.down_blocks)}
        blocks |= {"mid_block": self.unet.mid_block} if self.unet.mid_block is not None else {}
        return blocks | {f"up_blocks.{i}": block for i, block in enumerate(self.unet.up_blocks)}

    def _residual_blocks(self) -> dict[str, nn.Module]:
        """The residual blocks by name, if somebody wants to see what any takes."""
        named = self.unet.named_modules() if self.hooks[Stage.INPUT] else ()
        return {name: one for name, one in named if isinstance(one, ResnetBlock2D)}

    def _is_inner_part(self, hook: Any) -> bool:
        """Whether a hook on BLOCK names a part that lies within a block, which is then shown to it alone."""
        part = getattr(hook, "layer", None)
        return part is not None and not any(within(name, part) for name in self._blocks()) and self._has(part)

    def _has(self, part: str) -> bool:
        return any(name == part for name, _ in self.unet.named_modules())

    def _check_layers(self, modules: dict[str, Any]) -> None:
        kinds: dict[Stage, list[str]] = {Stage.BLOCK: list(self._blocks()), Stage.INPUT: list(self._residual_blocks())}
        kinds |= {stage: list(modules) for stage in PROJECTED.values()}
        for stage in (Stage.ATTENTION, Stage.SELF_ATTENTION):
            kinds[stage] = [n for n, one in modules.items() if one.is_cross_attention == (stage is Stage.ATTENTION)]
        for stage, hooks in self.hooks.items():
            for hook in hooks:
                part = getattr(hook, "layer", None)
                if stage is Stage.BLOCK and self._is_inner_part(hook):
                    continue
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
        self.layers, self.unet, self.run, self.held = [], None, None, {}

    @contextmanager
    def at(self, step: int | None = None, t: int | None = None) -> Iterator[None]:
        """While one call of the U-Net runs.

        Raises:
            ValueError: a hook asked for what nothing in this U-Net has shown.
        """
        if not self._twin:
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
            spared = bool(self._for_one_call)
            while self._for_one_call:
                self._for_one_call.pop()()
        if spared:
            return  # what was given is not computed, and so not shown
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
        if len(output) == 1:
            return (value,)
        return value, tuple(value if skip is hidden else skip for skip in output[1])  # what goes down also goes across

    def _input(self, name: str, hooks: Sequence[Any], _module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.show(Stage.INPUT, arguments[0], name, hooks), *arguments[1:]

    def show(self, stage: Stage, value: Tensor, layer: str, hooks: Sequence[Any]) -> Tensor:
        """Show a value in line, and return it as the hooks left it."""
        self._shown.add(stage.value)
        event = Event(stage, value, self.step, self.t, layer, self.run)
        with torch.set_grad_enabled(self.gradients):
            value = run(show(event, hooks))
        if self.run is not None and self.notes:
            self.run.note(event)
        return value

    def tell(self, readers: Sequence[Reader], look: Look) -> None:
        """Hand a layer to those that read it."""
        self._shown.add(look.layer)
        for reader in readers:
            reader.read(look)
