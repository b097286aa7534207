"""Where a model comes from: the one that sdkit carries, a folder, the hub, or a diffusers pipeline."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdkit.settings import DTYPES, pick

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
        model: None for the embedded model (offline, and loaded once), a folder in diffusers' layout, an id on the
            Hugging Face hub such as "stable-diffusion-v1-5/stable-diffusion-v1-5", a diffusers pipeline, which is
            used as it is, or a Model, which is returned.
        device: where to put it; by default a GPU where there is one. A given pipeline stays where it is.
        dtype: "float32", "float16", "bfloat16" or the torch dtype; by default float16 on a GPU and float32 elsewhere.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is a model of another family than Stable Diffusion 1.x and 2.x.
    """
    from sdkit.model import Model

    if isinstance(model, Model):
        return model
    if model is not None and not isinstance(model, str | Path):
        _check_given(model, device, dtype)
        return Model(_supported(model), name=model.config.get("_name_or_path") or type(model).__name__)
    place = torch.device(device or _best_device())
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
    folder = Path(source).expanduser()
    if folder.is_file():
        raise ValueError(f"{source!r} is a file; expected a folder in diffusers' layout, with a model_index.json")
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"the folder {source!r} has no model_index.json; expected diffusers' layout")
    if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        raise FileNotFoundError(f"there is no folder {source!r}, nor is that an id of the form owner/name on the hub")
    with _quiet():
        from diffusers import StableDiffusionPipeline

        try:
            found = StableDiffusionPipeline.load_config(str(folder) if folder.is_dir() else source)
        except OSError as error:
            raise FileNotFoundError(
                f"{source!r} could not be fetched from the hub; check the id and the connection, or give a folder"
            ) from error
        if found["_class_name"] != "StableDiffusionPipeline":
            raise ValueError(_other_family(source, found["_class_name"]))
        # The safety checker would replace pictures by black ones, and it sees only the last stage of a run.
        pipeline = StableDiffusionPipeline.from_pretrained(
            str(folder) if folder.is_dir() else source,
            dtype=dtype,
            safety_checker=None,
            requires_safety_checker=False,
        )
    return _supported(pipeline.to(device))


def _supported(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    unet = pipeline.unet
    if hasattr(pipeline, "text_encoder_2") or unet.config.in_channels != 4 or unet.config.time_cond_proj_dim:
        raise ValueError(_other_family("the pipeline", type(pipeline).__name__))
    return pipeline


def _other_family(what: str, family: str) -> str:
    return (
        f"{what} is a {family}; expected a Stable Diffusion 1.x or 2.x text-to-image model "
        "(one text encoder, a U-Net on 4 latent channels)"
    )


def _check_given(pipeline: object, device: object, dtype: object) -> None:
    if not all(hasattr(pipeline, part) for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")):
        raise TypeError(
            f"model must be a name, a folder, a Stable Diffusion pipeline or an sdkit Model, but is {pipeline!r}"
        )
    if device is not None or dtype is not None:
        raise ValueError("a pipeline is used as it is; move it with pipeline.to(...) instead of device and dtype")


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    kind: torch.dtype = getattr(torch, pick("dtype", dtype, DTYPES))
    return kind


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what libraries say while they load that is nothing to a user: torchvision is absent by choice, and a
    progress bar over five small files."""
    from diffusers.utils import logging as diffusers_logging

    logger = logging.getLogger("transformers")
    level, bars = logger.level, diffusers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            diffusers_logging.enable_progress_bar()
