"""What several commands share: options made of the table of arguments, those that say which model, and warnings."""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdkit.inputs.arguments import DTYPES, ENGINES, Settings
from sdkit.inputs.checks import installed, number, pick
from sdkit.inputs.paths import TINY, model_source

DEVICES = r"(cpu|cuda|mps|xpu|hpu|npu|mtia|xla)(:\d+)?"

_KINDS = {"int": int, "float": float, "str": str, "Any": str}  # of a value, by the first word of its type in the table


def add_arguments(parser: argparse._ActionsContainer, table: type, names: Sequence[str]) -> None:
    """Options for some fields of the table of arguments, or of a class that extends it."""
    every = {one.name: one for one in fields(table)}
    for one in map(every.__getitem__, names):
        meaning, kind = one.metadata["meaning"], str(one.type)
        if kind == "Any":  # the forms that a picture may come in are for Python
            meaning = meaning.partition(":")[0]
        elif isinstance(one.default, int | float) and not isinstance(one.default, bool):
            meaning += f" (default: {one.default:g})"
        how: dict[str, Any] = {"help": meaning.replace("%", "%%")}
        if kind == "bool":
            how["action"] = argparse.BooleanOptionalAction if one.default else "store_true"
        elif kind.startswith("Size"):
            how |= {"type": int, "nargs": 2, "metavar": ("TOP", "LEFT") if "crops" in one.name else ("H", "W")}
        elif kind.startswith("Sequence["):
            how |= {"type": _KINDS[kind[9:].partition("]")[0]], "nargs": "+", "metavar": one.metadata["letter"]}
        else:
            how |= {"type": _KINDS[kind.partition(" ")[0]], "metavar": one.metadata["letter"]}
        parser.add_argument(f"--{one.name.replace('_', '-')}", **how)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of the table."""
    return {one.name: getattr(options, one.name) for one in fields(Settings) if hasattr(options, one.name)}


def add_model(parser: argparse.ArgumentParser, default: str = "the embedded model") -> None:
    """The options that say which model, where, and what is laid over it."""
    add = parser.add_argument_group("the model").add_argument
    add("--model", default=None, help=f"a folder, one file, or a hub id (default: {default})")
    add("--device", default=None, help="cpu, cuda, mps, ... (default: a GPU where there is one)")
    add("--dtype", default=None, help=f"one of {', '.join(DTYPES)} (default: float16 on a GPU, else float32)")
    stored = f"what weights are kept in, to save memory: one of {', '.join(DTYPES[1:])} (default: that of --dtype)"
    add("--storage-dtype", default=None, help=stored)
    add("--engine", default=None, help=f"what computes: one of {', '.join(ENGINES)} (default: torch)")
    more: dict[str, Any] = {"default": [], "action": "append", "type": _file_and_scale}
    add("--lora", metavar="FILE[:SCALE]", help="a LoRA to lay over the model (scale: 1); several add up", **more)
    add("--textual-inversion", metavar="FILE", help="a word for the prompt, which is the file's name", **more)
    meaning = "an IP-Adapter, with the folder image_encoder beside it (scale: 1); --ip-adapter-image is what it goes by"
    add("--ip-adapter", metavar="FILE[:SCALE]", help=meaning, **more)
    add("--controlnet", metavar="FOLDER", default=None, help="a ControlNet; --control-image is what it goes by")


def _file_and_scale(text: str) -> tuple[Path, float]:
    file, _, scale = text.rpartition(":")
    try:
        return Path(file), float(scale)
    except ValueError:
        return Path(text), 1.0


def check_model(options: argparse.Namespace) -> None:
    """Say what is wrong with the model's options before torch is imported."""
    if options.device is not None and not re.fullmatch(DEVICES, options.device):
        raise ValueError(
            f"unknown device {options.device!r}; expected cpu, cuda, mps or another of torch's, with a number as in "
            "cuda:1 if it is meant, or nothing for the best that there is"
        )
    if options.dtype is not None:
        pick("dtype", options.dtype, DTYPES)
    if options.storage_dtype is not None:
        pick("storage_dtype", options.storage_dtype, DTYPES[1:])
    if options.engine is not None and pick("engine", options.engine, ENGINES) == "openvino":
        installed("openvino", "--engine openvino needs OpenVINO", "openvino")
    if options.model is not None:
        model_source(options.model)
    for file, scale in [*options.lora, *options.textual_inversion, *options.ip_adapter]:
        number(f"the scale of {str(file)!r}", scale, -100, 100)
        if file.suffix != ".safetensors" or not file.is_file():
            raise FileNotFoundError(f"there is no file {str(file)!r} that ends in .safetensors")
        if options.model is None:
            raise ValueError(f"{str(file)!r} goes with a model that --model names; the embedded one takes none")
    if options.controlnet is not None:
        if not Path(options.controlnet, "config.json").is_file():
            raise FileNotFoundError(f"there is no folder {options.controlnet!r} with a ControlNet in diffusers' layout")
        if options.model is None:
            raise ValueError("--controlnet goes with a model that --model names; the embedded one takes none")


def set_up_of(options: argparse.Namespace) -> dict[str, Any]:
    """What `load_model` makes the model of, as plain values."""
    laid_over = {name: getattr(options, name) for name in ("lora", "textual_inversion", "ip_adapter")}
    return {
        "model": options.model or TINY,
        "dtype": options.dtype,
        **{name: value for name in ("storage_dtype", "engine") if (value := getattr(options, name)) is not None},
        **{name: [f"{file}:{scale:g}" for file, scale in given] for name, given in laid_over.items()},
        "controlnet": options.controlnet,
    }


def keep_large_blocks() -> None:
    """Have glibc keep large blocks of memory. It would give each back to the system and have it cleared again for the
    next layer: on a CPU a model of true size takes a quarter less time without that, and computes the same."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return  # somebody has chosen
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block comes from the system by itself
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: none is given back


def load_model(options: argparse.Namespace) -> Any:
    """The model of the options, with what they lay over it."""
    keep_large_blocks()
    with busy(f"loading {options.model or 'the embedded model'}"):
        from sdkit import load
        from sdkit.model.parts import one_sentence

        kept = {"dtype": options.dtype, "storage_dtype": options.storage_dtype}
        model = load(options.model, device=options.device, engine=options.engine, **kept)
    scales: dict[str, float] = {}
    for file, scale in options.lora:
        scales[name := re.sub(r"\W", "_", file.stem)] = scale
        with one_sentence(file, "a LoRA for this model"):
            model.pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
            model.pipeline.set_adapters(list(scales), list(scales.values()))
    for file, _ in options.textual_inversion:
        with one_sentence(file, "a textual inversion for this model"):
            model.pipeline.load_textual_inversion(str(file), token=file.stem)
    if options.ip_adapter:
        files = [file for file, _ in options.ip_adapter]
        with one_sentence(files[0], "an IP-Adapter for this model"):
            model.pipeline.load_ip_adapter(
                [str(file.parent) for file in files], subfolder="", weight_name=[file.name for file in files]
            )
            model.pipeline.set_ip_adapter_scale([scale for _, scale in options.ip_adapter])
    if options.controlnet is not None:
        model = with_controlnet(model, Path(options.controlnet))
    with suppress(ValueError):  # in a thread, where no signals come
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on there is something to tidy up
    return model


def with_controlnet(model: Any, folder: Path) -> Any:
    """The same model, its pipeline with a ControlNet."""
    from dataclasses import replace

    from diffusers import AutoPipelineForText2Image, ControlNetModel

    from sdkit.model.parts import one_sentence

    with one_sentence(folder, "a ControlNet for this model"):
        net = ControlNetModel.from_pretrained(
            str(folder), dtype=model.dtype, use_safetensors=True, local_files_only=True
        ).to(model.device)
        return replace(model, pipeline=AutoPipelineForText2Image.from_pipe(model.pipeline, controlnet=net))


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Say in a terminal what takes its time, and take it back when it is done."""
    seen = sys.stderr.isatty()
    print(f"sdkit: {what} ..." if seen else "", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K" if seen else "", end="", file=sys.stderr, flush=True)


def check_pictures(*paths: str) -> None:
    """Say which is no picture before torch is imported."""
    from sdkit.files import open_picture

    for path in paths:
        open_picture(path)


def printable(text: str) -> str:
    """Text without what a terminal would take for a command: files of strangers may hold anything."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


@contextmanager
def own_warnings() -> Iterator[None]:
    """Warnings of sdkit in a plain line each, above a bar where there is one, and none of the libraries."""
    from tqdm import tqdm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module="sdkit")
        warnings.showwarning = lambda message, *_args, **_rest: tqdm.write(
            printable(f"sdkit: {message}"), file=sys.stderr
        )
        yield
