"""Where a model comes from: the one that sdkit carries, a folder, the hub, or a diffusers pipeline."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdkit.settings import DTYPES, check_source, pick

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from sdkit.model import Model

TINY = "sdkit/tiny"  # the embedded model's name in settings


def load(
    model: str | Path | StableDiffusionPipeline | Model | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Model:
    """Load a model.

    Args:
        model: None for the embedded model (offline; loaded once, so what is changed on it stays changed), a folder in
            diffusers' layout, an id on the Hugging Face hub such as "stable-diffusion-v1-5/stable-diffusion-v1-5", a
            diffusers pipeline, which is used as it is, or a Model, which is returned.
        device: where to put it; by default a GPU where there is one. A given pipeline stays where it is.
        dtype: "float32", "float16", "bfloat16" or the torch dtype; by default float16 on a GPU and float32 elsewhere.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is a model of another family than Stable Diffusion 1.x and 2.x, or there is no such device.
    """
    from sdkit.model import Model

    if model is not None and not isinstance(model, str | Path):
        return _given(model, device, dtype)
    place = _device(device)
    kind = _dtype(dtype, place)
    if model is None or str(model) == TINY:
        return _embedded(place, kind)
    return Model(_from_pretrained(str(model), place, kind), name=str(model))


@functools.cache
def _embedded(device: torch.device, dtype: torch.dtype) -> Model:
    from sdkit.model import Model

    with as_file(files("sdkit.tiny") / "weights") as folder:
        pipeline = _from_pretrained(str(folder), device, dtype)
    return Model(pipeline, name=TINY, num_inference_steps=20, guidance_scale=5.0)


def _from_pretrained(source: str, device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    folder = check_source(source)
    place = str(folder or source)
    with _quiet():
        from diffusers import StableDiffusionPipeline

        try:
            family = StableDiffusionPipeline.load_config(place).get("_class_name")
            if family == "StableDiffusionPipeline":
                # The safety checker would replace pictures by black ones, and it sees only the last stage of a run.
                pipeline = StableDiffusionPipeline.from_pretrained(
                    place, dtype=dtype, safety_checker=None, requires_safety_checker=False
                )
        except OSError as error:
            where = "is incomplete or damaged" if folder else "could not be fetched from the hub; check the id"
            raise FileNotFoundError(f"{source!r} {where}: {str(error).splitlines()[0]}") from error
    if family != "StableDiffusionPipeline":
        raise ValueError(f"{source!r} is a {family or 'model without a name'}; {_EXPECTED}")
    return _supported(pipeline.to(device))


_EXPECTED = "expected a Stable Diffusion 1.x or 2.x text-to-image model"


def _supported(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The pipeline, if every part of it is one that sdkit knows how to drive."""
    reasons = {
        "it has two text encoders": hasattr(pipeline, "text_encoder_2"),
        "its U-Net works on other than 4 latent channels": pipeline.unet.config.in_channels != 4,
        "its U-Net takes the guidance scale as an input": bool(pipeline.unet.config.time_cond_proj_dim),
        "its autoencoder is not an AutoencoderKL": type(pipeline.vae).__name__ != "AutoencoderKL",
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(f"{type(pipeline).__name__} cannot be driven: {reason}; {_EXPECTED}")
    return pipeline


def _given(model: Any, device: object, dtype: object) -> Model:
    from sdkit.model import Model

    if not isinstance(model, Model) and not all(
        hasattr(model, part) for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    ):
        raise TypeError(
            "model must be a name, a folder, a Stable Diffusion pipeline or an sdkit Model, "
            f"but is a {type(model).__name__}"
        )
    if device is not None or dtype is not None:
        raise ValueError("a pipeline is used as it is; move it with pipeline.to(...) instead of device and dtype")
    if isinstance(model, Model):
        return model
    return Model(_supported(model), name=model.config.get("_name_or_path") or type(model).__name__)


def _device(device: str | torch.device | None) -> torch.device:
    """The device, if this machine has it; by default the best that it has."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        place = torch.device(best if device is None else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} is not to be had here; the best that is: {best!r}") from error
    return torch.device("cpu") if place.type == "cpu" else place


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    kind: torch.dtype = getattr(torch, pick("dtype", str(dtype), DTYPES))
    return kind


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what libraries say while they load that is nothing to a user: torchvision is absent by choice, and a
    progress bar over five small files."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()]
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        for library in libraries:
            library.enable_progress_bar()
