"""Where a model comes from: the one that sdkit carries, a folder, the hub, one file, or a diffusers pipeline."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdkit.inputs.arguments import DTYPES
from sdkit.inputs.checks import pick
from sdkit.inputs.paths import model_source
from sdkit.model.allowed import EXPECTED, check_index

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from sdkit.model.model import Model

TINY = "sdkit/tiny"  # the embedded model's name in settings


def load(
    model: str | Path | DiffusionPipeline | Model | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    variant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    config: str | Path | None = None,
    prediction_type: str | None = None,
) -> Model:
    """Load a model.

    Args:
        model: None for the embedded model (offline; loaded once, so what is changed on it stays changed), a folder in
            diffusers' layout, an id on the Hugging Face hub such as "stable-diffusion-v1-5/stable-diffusion-v1-5", one
            file in the original layout (.safetensors), a diffusers pipeline, which is used as it is, or a Model, which
            is returned.
        device: where to put it; by default a GPU where there is one. A pipeline stays where it is.
        dtype: "float32", "float16", "bfloat16" or the torch dtype; by default float16 on a GPU and float32 elsewhere.
        variant, revision, token, local_files_only: as diffusers' `from_pretrained` takes them, for folders and the hub.
        allow_pickle: read weights that are not safetensors (.ckpt, .bin) too. Unpickling a file of somebody else's may
            run what it says; they are read as weights alone, which torch guards, but safetensors cannot even try.
        config: for one file, a folder in diffusers' layout whose configurations describe it; by default those of its
            family, which sdkit carries, so that it loads offline.
        prediction_type: for one file, "epsilon" or "v_prediction", where its family leaves that open: 2.1 is taken to
            predict v, as the model for 768 pixels does, and not the noise, as that for 512 pixels does.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is a model of another family than Stable Diffusion 1.x, 2.x and XL, a pickle, or damaged, or
            there is no such device.
    """
    fetching = {"variant": variant, "revision": revision, "token": token, "local_files_only": local_files_only}
    if model is not None and not isinstance(model, str | Path):
        return _from_pipeline(model, device, dtype)
    place = _device(device)
    kind = _dtype(dtype, place)
    if model is None or str(model) == TINY:
        return _embedded(place, kind)
    source = model_source(model, allow_pickle=allow_pickle)
    if prediction_type is not None:
        pick("prediction_type", prediction_type, ("epsilon", "v_prediction"))
    if source is not None and source.is_file():
        from sdkit.model.single_file import pipeline_from

        folder = None if config is None else model_source(config)
        with _quiet():
            pipeline = pipeline_from(source, kind, config=folder, prediction_type=prediction_type)
    elif config is not None or prediction_type is not None:
        raise ValueError("config and prediction_type describe one file; a folder or an id has its own configurations")
    else:
        pipeline = _from_pretrained(str(source or model), kind, allow_pickle, fetching)
    return _model(_aligned(_supported(pipeline).to(place)), str(model))


def _aligned(pipeline: Any) -> Any:
    """The pipeline, its weights where torch's allocator puts them.

    Straight from a file they lie at whatever address the file has them at, and on a CPU products of matrices round by
    that: the same weights from a folder and from one file would draw two pictures.
    """
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            for weight in chain(part.parameters(), part.buffers()):
                if weight.device.type == "cpu" and weight.data_ptr() % 64:
                    weight.data = weight.data.clone()
    return pipeline


def _model(pipeline: Any, name: str) -> Model:
    """The model, with the steps and the guidance that suit it: few for what was distilled."""
    from sdkit.model.model import Model

    if pipeline.unet.config.time_cond_proj_dim is not None:
        return Model(pipeline, name, num_inference_steps=4, guidance_scale=8.5)  # as LCM's own pipeline has it
    scheduler = pipeline.scheduler.config
    if scheduler.get("timestep_spacing") == "trailing" and not scheduler.get("rescale_betas_zero_snr"):
        return Model(pipeline, name, num_inference_steps=1, guidance_scale=0.0)  # how Turbo models are published
    if hasattr(pipeline, "text_encoder_2"):
        return Model(pipeline, name, guidance_scale=5.0)  # as diffusers' pipeline of SDXL has it
    return Model(pipeline, name)


@functools.cache
def _embedded(device: torch.device, dtype: torch.dtype) -> Model:
    from sdkit.model.model import Model

    with as_file(files("sdkit.tiny") / "weights") as folder:
        pipeline = _from_pretrained(str(folder), dtype)
    return Model(_aligned(pipeline.to(device)), name=TINY, num_inference_steps=20, guidance_scale=5.0)


def _from_pretrained(
    source: str, dtype: torch.dtype, allow_pickle: bool = False, fetching: Mapping[str, Any] | None = None
) -> Any:
    """The pipeline of a folder or of the hub, of the class that it was saved as."""
    here = Path(source).is_dir()
    chosen = {name: value for name, value in (fetching or {}).items() if value}
    with _quiet():
        import diffusers

        try:
            known = {name: value for name, value in chosen.items() if name != "variant"}
            kind = getattr(diffusers, check_index(diffusers.DiffusionPipeline.load_config(source, **known), source))
            # The safety checker would replace pictures by black ones, and it sees only the last stage of a run.
            unchecked = {"safety_checker": None, "requires_safety_checker": False}
            takes = inspect.signature(kind.__init__).parameters
            return kind.from_pretrained(
                source,
                dtype=dtype,
                use_safetensors=None if allow_pickle else True,
                **{name: value for name, value in unchecked.items() if name in takes},
                **chosen,
            )
        except OSError as error:
            if here and not allow_pickle and list(Path(source).glob("*/*.bin")):
                raise ValueError(
                    f"{source!r} holds pickled weights (.bin), which may run code when they are read; convert them to "
                    "safetensors, or pass allow_pickle=True if you trust them"
                ) from error
            where = "is incomplete or damaged" if here else "could not be fetched from the hub; check the id"
            raise FileNotFoundError(f"{source!r} {where}: {str(error).splitlines()[0]}") from error


def _supported(pipeline: Any) -> Any:
    """The pipeline, if every part of it is one that sdkit knows how to drive."""
    unet, vae = pipeline.unet, pipeline.vae
    nets = getattr(pipeline, "controlnet", None)
    reasons = {
        f"its U-Net is a {type(unet).__name__}": type(unet).__name__ != "UNet2DConditionModel",
        f"its autoencoder is a {type(vae).__name__}": type(vae).__name__ != "AutoencoderKL",
    }
    if not any(reasons.values()):
        reasons |= {
            f"its U-Net sees {unet.config.in_channels} channels": unet.config.in_channels
            not in (vae.config.latent_channels, 2 * vae.config.latent_channels + 1),
            "its U-Net is conditioned on something else than text and sizes": (
                unet.config.addition_embed_type not in (None, "text_time")
                or unet.config.class_embed_type is not None
                or unet.config.encoder_hid_dim_type not in (None, "ip_image_proj")
                or (unet.config.addition_embed_type is None) == hasattr(pipeline, "text_encoder_2")
            ),
            "its autoencoder standardises latents by channel": getattr(vae.config, "latents_mean", None) is not None,
            "its ControlNet is of another kind": any(
                type(net).__name__ != "ControlNetModel" for net in getattr(nets, "nets", [nets] if nets else [])
            ),
        }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(f"{type(pipeline).__name__} cannot be driven: {reason}; {EXPECTED}")
    return pipeline


def _from_pipeline(model: Any, device: object, dtype: object) -> Model:
    from sdkit.model.model import Model

    if device is not None or dtype is not None:
        raise ValueError("a pipeline is used as it is; move it with pipeline.to(...) instead of device and dtype")
    if isinstance(model, Model):
        return model
    if not all(hasattr(model, part) for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")):
        kind = type(model).__name__
        if kind.endswith("Pipeline"):
            raise ValueError(f"{kind} cannot be driven: it lacks a U-Net, an autoencoder or a text encoder; {EXPECTED}")
        raise TypeError(
            f"model must be a name, a folder, a file, a Stable Diffusion pipeline or an sdkit Model, but is a {kind}"
        )
    return _model(_supported(model), model.config.get("_name_or_path") or type(model).__name__)


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
