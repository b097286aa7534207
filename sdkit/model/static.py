"""The U-Net and the decoder by OpenVINO on a CPU: converted once for their weights, and compiled for each shape.

Conversion takes longest, so what it gives is kept in the user's cache, in a file whose weights OpenVINO reads as they
lie there. What it compiles for a shape is kept beside that for small models alone: it holds all weights once more, and
compiling a large model anew takes little longer than reading it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MOST = 16 * 2**30  # bytes that are kept; what was used longest ago goes first
SMALL = 2**28  # bytes of weights up to which what was compiled is kept too
_ONE_AT_A_TIME = RLock()  # a compiled part computes for one thread at a time
_MADE: WeakKeyDictionary[Any, dict[tuple[str, str, str], Any]] = WeakKeyDictionary()  # of each pipeline: by the name of
# the part, what its weights are, and shapes


def computed(home: Any, part: nn.Module, state: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    """What a part gives for tensors by name, of a U-Net (2B, C, h, w) and of a decoder (B, 3, H, W).

    Args:
        home: the pipeline that the part belongs to.
        state: all that the part computes by, beside its configuration: what is compiled for another is let go.
    """
    kind, key = type(part).__name__, json.dumps(state)
    shapes = {name: tuple(one.shape) for name, one in tensors.items()}
    with _ONE_AT_A_TIME:
        made = _MADE.setdefault(home, {})
        for other in [one for one in made if one[0] == kind and one[1] != key]:
            del made[other]
        if (request := made.get((kind, key, str(shapes)))) is None:
            request = _compiled(part, key, tensors).create_infer_request()
            made[kind, key, str(shapes)] = request
        values = [one.detach().float().contiguous().numpy() for one in tensors.values()]
        return torch.from_numpy(request.infer(values, share_inputs=True)[0])


class _Call(nn.Module):
    """A part as a function of tensors alone, to be traced."""

    def __init__(self, part: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.part, self.names = part, names
        self.training = False  # and not `eval()`, which would reach into the part

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        if "z" in given:
            return self.part.decode(given["z"], return_dict=False)[0]  # type: ignore[no-any-return, operator]
        added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
        return self.part(  # type: ignore[no-any-return]
            given["sample"],
            given["timestep"],
            encoder_hidden_states=given["text"],
            timestep_cond=given.get("timestep_cond"),
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]


def _compiled(part: Any, key: str, tensors: Mapping[str, Tensor]) -> Any:
    """A part compiled for the shapes of these tensors."""
    with _unreported():
        import openvino
    core, versions = openvino.Core(), [version(name) for name in ("openvino", "torch", "diffusers")]
    halved = 2 ** (len(part.config.block_out_channels) - 1)
    even = not any(side % halved for side in next(iter(tensors.values())).shape[2:])  # otherwise sizes are traced
    shapes = {name: [] if name == "timestep" else list(one.shape) for name, one in tensors.items()}
    known = [1, versions, dict(part.config), key, list(tensors) if even else shapes]
    place = _kept() / hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()[:32]
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=place.parent, prefix="part-"))
        try:
            openvino.save_model(_converted(part, tensors), folder / "model.xml", compress_to_fp16=False)
            folder.rename(place)
        except OSError:
            if not place.is_dir():  # which another process may have made meanwhile
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _tidy(keep=place)
    os.utime(place)
    model = core.read_model(place / "model.xml")
    model.reshape(dict(enumerate(shapes.values())))
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # and not bfloat16, which it would take where the processor has it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if (place / "model.bin").stat().st_size <= SMALL:
        options["CACHE_DIR"] = str(place)
    return core.compile_model(model, "CPU", options)


def _converted(part: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """A part as a graph of OpenVINO's."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    examples = tuple(one.detach().float().contiguous() for one in tensors.values())
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        trace: Any = torch.jit.trace
        traced = trace(_Call(part, list(tensors)), examples, check_trace=False)
        graph = TorchScriptPythonDecoder(traced, example_input=examples)  # which has to live until it is converted
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(graph))


@contextmanager
def _unreported() -> Iterator[None]:
    """Importing OpenVINO would report that to its makers: it does not where the package that does it is not there."""
    name = "openvino_telemetry"
    before = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(before)


def _kept() -> Path:
    """Where converted parts lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sdkit" / "openvino"


def _tidy(keep: Path) -> None:
    """Remove what was used longest ago, until the rest is small enough."""
    size = 0
    for place in sorted(_kept().iterdir(), key=lambda one: one.stat().st_mtime, reverse=True):
        size += sum(file.stat().st_size for file in place.rglob("*"))
        if size > MOST and place != keep:
            shutil.rmtree(place, ignore_errors=True)
