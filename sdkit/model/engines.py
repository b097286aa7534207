"""What computes the U-Net and the decoder in a run: the parts of the model themselves, or what its engine puts in their
place, for one run and shaped as `torch.compile` shapes it, so that whoever looks inside finds the part itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdkit.model.allowed import uncompiled
from sdkit.model.twin import is_compiled, twin_of
from sdkit.model.weights import fingerprint, sum_of

if TYPE_CHECKING:
    from sdkit.model.model import Model


class StandIn:
    """In the place of a part of a model; what it has not itself, that part has."""

    def __init__(self, part: Any, record: dict[str, Any]) -> None:
        self._orig_mod, self.record = part, record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._orig_mod, name)

    def note(self, engine: str) -> None:
        """Write into the record of the run who computed, by "openvino and torch" that each computed some calls."""
        known = self.record.get("engine", engine).split(" and ")
        self.record["engine"] = " and ".join(sorted({*known, engine}))


class Compiled(StandIn):
    """A U-Net of which torch compiles each kind of block once: a twin, so that nothing is left on the model."""

    def __init__(self, part: Any, record: dict[str, Any]) -> None:
        super().__init__(part, record)
        self.twin: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.twin is None:
            self.twin = twin_of(self._orig_mod)
            self.twin.compile_repeated_blocks(fullgraph=True)
        self.note("compile")
        return self.twin(*arguments, **options)


class Computed(StandIn):
    """A part as OpenVINO computes it, and as torch does where that cannot: the first such call says why."""

    def __init__(self, part: Any, record: dict[str, Any], home: Any) -> None:
        super().__init__(part, record)
        self.home = home  # the pipeline, with which what was compiled is let go
        self.weights: list[Any] | None = None  # what they are when the run first calls
        self.failed: str | None = None  # why torch has to compute it from now on

    def __call__(self, sample: Tensor, timestep: Any, **options: Any) -> tuple[Tensor]:
        """The U-Net."""
        given = {"timestep_cond": options.get("timestep_cond"), **(options.get("added_cond_kwargs") or {})}
        tensors = {"sample": sample, "timestep": timestep, "text": options["encoder_hidden_states"]}
        tensors |= {name: value for name, value in given.items() if value is not None}
        known = {"encoder_hidden_states", "timestep_cond", "added_cond_kwargs", "return_dict"}
        more = [name for name, value in options.items() if name not in known and value is not None]
        more += ["image_embeds"] if "image_embeds" in tensors else []
        return self._by_either(tensors, more, lambda: self._orig_mod(sample, timestep, **options))

    def decode(self, z: Tensor, **options: Any) -> tuple[Tensor]:
        """The decoder."""
        more = [name for name in options if name != "return_dict"]
        more += [name for name in ("use_tiling", "use_slicing") if getattr(self._orig_mod, name, False)]
        return self._by_either({"z": z}, more, lambda: self._orig_mod.decode(z, **options))

    def _by_either(
        self, tensors: dict[str, Tensor], more: list[str], by_torch: Callable[[], tuple[Tensor]]
    ) -> tuple[Tensor]:
        from sdkit.model import static

        reason = self.failed or (f"it takes {more[0]}" if more else None)
        if torch.is_grad_enabled() and any(one.requires_grad for one in tensors.values()):
            reason = reason or "gradients are asked for"
        if self.weights is None:
            reason = reason or self._reason()
        if reason is None:
            try:
                self.weights = self.weights or [fingerprint([self._orig_mod]), sum_of(self._orig_mod)]
                state = [self.weights, self.record.get("extras", {}).get("adapters")]
                made = static.computed(self.home, self._orig_mod, state, tensors)
            except Exception as error:  # of a library, which says in many ways that it cannot
                reason = f"it could not be converted ({type(error).__name__}: {str(error).splitlines()[-1]:.200})"
            else:
                self.note("openvino")
                return (made,)
        if self.failed is None:
            what = "U-Net" if "sample" in tensors else "decoder"
            warnings.warn(f"torch computes the {what}, and not openvino: {reason}", stacklevel=4)
        self.failed = reason
        self.note("torch")
        return by_torch()

    def _reason(self) -> str | None:
        """Why OpenVINO cannot compute what torch would, if that is so."""
        part = self._orig_mod
        if beside := set(self.record.get("extras", {})) - {"adapters", "tokens"}:
            return f"{sorted(beside)[0]} acts beside its weights"
        if part.device.type != "cpu" or part.dtype != torch.float32:
            return f"it is in {part.dtype} on {part.device}, and openvino computes in float32 on a CPU"
        if part.training or is_compiled(part):
            return "it is in training, or compiled by torch"
        for one in part.modules():
            if one._forward_hooks or one._forward_pre_hooks or "forward" in one.__dict__:
                return "something is hooked on its modules"
        return None


def check_engine(model: Model, engine: str) -> None:
    """Say it where an engine cannot compute this model.

    Raises:
        ValueError: for OpenVINO, the model is not in float32 on a CPU.
    """
    where, dtypes = model.device.type, {model.unet.dtype, model.vae.dtype, model.dtype}
    if engine == "openvino" and (where != "cpu" or dtypes != {torch.float32}):
        raise ValueError(
            f"engine 'openvino' computes in float32 on a CPU, but the model is in {model.dtype} on {where}; load it "
            "with device='cpu', dtype='float32'"
        )


def parts_for(model: Model, record: dict[str, Any]) -> tuple[Any, Any]:
    """The U-Net and the autoencoder that a run calls, which write into its record who has computed."""
    if model.engine == "openvino":
        unet, vae = (Computed(uncompiled(part), record, model.pipeline) for part in (model.unet, model.vae))
        return unet, vae
    if model.engine == "compile":
        return Compiled(uncompiled(model.unet), record), model.vae
    return model.unet, model.vae
