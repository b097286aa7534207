"""Where a model comes from: the one that sdkit carries, a folder, the hub, one file, or a diffusers pipeline.

It is longer than other files because each of the five is checked and brought to one form in a way of its own.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch

from sdkit.collecting import paused
from sdkit.inputs.arguments import DTYPES, ENGINES
from sdkit.inputs.checks import installed, pick
from sdkit.inputs.paths import TINY, model_source
from sdkit.model.allowed import EXPECTED, check_index, is_a, uncompiled
from sdkit.model.parts import disagreements, one_sentence, reaching, read_json, read_parts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from sdkit.model.model import Model

_LOADING = RLock()  # one model at a time: libraries change torch and their own logging while they load
SMALL = 2**20  # bytes of a weight that is moved to an even address
_VECTORS = re.compile(r"time_emb|add_emb|text_projection")  # layers that take one vector for each picture
_MEANT = {  # which arguments say something about what is loaded, beside where to put it
    "the embedded model": (),
    "a pipeline": (),
    "one file": ("local_files_only", "allow_pickle", "config", "prediction_type"),
    "a folder": ("variant", "local_files_only", "allow_pickle"),
    "an id on the hub": ("variant", "revision", "token", "local_files_only", "allow_pickle"),
}


@paused()
def load(
    model: str | Path | DiffusionPipeline | Model | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    storage_dtype: str | torch.dtype | None = None,
    variant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    config: str | Path | None = None,
    prediction_type: str | None = None,
    engine: str | None = None,
) -> Model:
    """Load a model.

    Args:
        model: None for the embedded model (offline; loaded once, so what is changed on it stays changed), a folder in
            diffusers' layout, an id on the Hugging Face hub such as "stable-diffusion-v1-5/stable-diffusion-v1-5", one
            file in the original layout (.safetensors), a diffusers pipeline, which is used as it is, or a Model, which
            is returned.
        device: where to put it; by default a GPU where there is one. A pipeline stays where it is.
        dtype: "float32", "float16", "bfloat16" or the torch dtype; by default float16 on a GPU and float32 elsewhere.
        storage_dtype: "float16" or "bfloat16", to keep the weights in and compute in float32 all the same: less
            memory on a CPU, for some more time. With files in half precision the pictures are the same to the bit.
        variant, revision, token, local_files_only: as diffusers' `from_pretrained` takes them, for the hub, and the
            first for a folder too.
        allow_pickle: read weights that are not safetensors (.ckpt, .bin) too. Unpickling a file of somebody else's may
            run what it says; they are read as weights alone, which torch guards, but safetensors cannot even try.
        config: for one file, a folder in diffusers' layout whose configurations describe it; by default those of its
            family, which sdkit carries, so that it loads offline.
        prediction_type: for one file, "epsilon" or "v_prediction", where its family leaves that open: 2.1 is taken to
            predict v, as the model for 768 pixels does, and not the noise, as that for 512 pixels does.
        engine: what computes the U-Net and the decoder in runs: "torch"; "openvino", faster on a CPU, from the extra
            of that name; or "compile", which has torch compile each kind of block of the U-Net. The last two round
            otherwise, and leave what they cannot compute to torch. By default "torch", or as a given Model has it.

    Returns:
        The model, in the form that every `model=` takes.

    Raises:
        FileNotFoundError: there is no such file or folder, or a file of it is missing.
        ValueError: it is a model of another family than Stable Diffusion 1.x, 2.x and XL, a pickle, or damaged: weights
            are missing or too many, or parts do not fit together. Or there is no such device, or an argument says
            nothing about what is loaded.

    Example:
        >>> sdkit.load().size
        (128, 128)
    """
    if engine is not None:
        pick("engine", engine, ENGINES)
    if engine == "openvino":
        installed("openvino", "engine='openvino' needs OpenVINO", "openvino")
        if device is None and (model is None or isinstance(model, str | Path)):
            device = "cpu"  # where it computes
    given: dict[str, Any] = {
        "variant": variant,
        "revision": revision,
        "token": token,
        "local_files_only": local_files_only,
    }
    given |= {"allow_pickle": allow_pickle, "config": config, "prediction_type": prediction_type}
    loaded = _loaded(model, device, dtype, storage_dtype, given)
    if engine is None or engine == loaded.engine:
        return loaded
    from sdkit.model.engines import check_engine

    check_engine(loaded, engine)
    return replace(loaded, engine=engine)


def _loaded(model: Any, device: Any, dtype: Any, storage_dtype: Any, given: Mapping[str, Any]) -> Model:
    """What `load` gives, by torch."""
    if model is not None and not isinstance(model, str | Path):
        _check_meant("a pipeline", given)
        return _from_pipeline(model, (device, dtype, storage_dtype))
    place = _device(device)
    wide = _dtype(dtype, place)
    kind = wide if storage_dtype is None else _storage_dtype(storage_dtype, wide)
    if model is None or str(model) == TINY:
        _check_meant("the embedded model", given)
        with _LOADING:
            return _embedded(place, kind, wide)
    allow_pickle, prediction_type = given["allow_pickle"], given["prediction_type"]
    source = model_source(model, allow_pickle=allow_pickle)
    _check_meant("an id on the hub" if source is None else "one file" if source.is_file() else "a folder", given)
    if prediction_type is not None:
        pick("prediction_type", prediction_type, ("epsilon", "v_prediction"))
    if source is not None and source.is_file():
        from sdkit.model.single_file import pipeline_from

        folder = None if given["config"] is None else Path(given["config"]).expanduser()
        with _quiet():
            pipeline = pipeline_from(source, kind, config=folder, prediction_type=prediction_type)
    else:
        fetching = {name: given[name] for name in ("revision", "token", "local_files_only") if given[name]}
        with _quiet(bars=True):
            chosen = {"variant": given["variant"], "use_safetensors": not allow_pickle or None}
            folder = source or _fetched(str(model), fetching, **chosen)
        with _quiet():
            pipeline = _from_folder(folder, kind, variant=given["variant"], allow_pickle=allow_pickle)
    return _model(_moved(_stored(_supported(pipeline, str(model)), kind, wide), place), str(model))


def _check_meant(what: str, given: Mapping[str, Any]) -> None:
    meant = _MEANT[what]
    lost = [name for name, value in given.items() if name not in meant and value is not None and value is not False]
    if lost:
        takes = f"; it takes {', '.join(meant)}" if meant else ""
        raise ValueError(f"{' and '.join(lost)} would mean nothing for {what}{takes}; leave {' and '.join(lost)} out")


def _moved(pipeline: Any, device: torch.device) -> Any:
    """The pipeline on a device; on a CPU, where it is already, some of its weights where torch's allocator puts them.

    Straight from a file they lie at whatever address the file has them at, and on a CPU the product of a single vector
    with a matrix rounds by that, and of small matrices too: the same weights from a folder and from one file would draw
    two pictures. Large ones stay in the file's own pages, which costs neither time nor memory, unless they take a
    vector for each picture, as embeddings of time, sizes and whole texts do.
    """
    if device.type != "cpu":
        return pipeline.to(device)
    for part in pipeline.components.values():
        for name, weight in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
            if weight.data_ptr() % 64 and (weight.nbytes < SMALL or _VECTORS.search(name)):
                weight.data = weight.data.clone()
    return pipeline


def _model(pipeline: Any, name: str) -> Model:
    """The model, with the steps and the guidance that suit it: few for what was distilled."""
    from sdkit.model.model import Model

    if pipeline.unet.config.time_cond_proj_dim is not None:
        return Model(pipeline, name, num_inference_steps=4, guidance_scale=8.5)  # as LCM's own pipeline has it
    scheduler = pipeline.scheduler.config
    trailing = (scheduler.get("timestep_spacing"), scheduler.get("prediction_type")) == ("trailing", "epsilon")
    if trailing and not scheduler.get("rescale_betas_zero_snr"):
        return Model(pipeline, name, num_inference_steps=1, guidance_scale=0.0)  # how Turbo models are published
    if hasattr(pipeline, "text_encoder_2"):
        return Model(pipeline, name, guidance_scale=5.0)  # as diffusers' pipeline of SDXL has it
    return Model(pipeline, name)


@functools.cache
def _embedded(device: torch.device, kept: torch.dtype, dtype: torch.dtype) -> Model:
    from sdkit.model.model import Model

    with as_file(files("sdkit.tiny") / "weights") as folder, _quiet():
        pipeline = _stored(_from_folder(folder, kept), kept, dtype)
    return Model(_moved(pipeline, device), name=TINY, num_inference_steps=20, guidance_scale=3.0)


def _from_folder(folder: Path, dtype: torch.dtype, *, variant: str | None = None, allow_pickle: bool = False) -> Any:
    """The pipeline of a folder in diffusers' layout, of the class that it was saved as."""
    import diffusers

    index = read_json(folder / "model_index.json")
    kind = getattr(diffusers, check_index(index, str(folder)))
    unchecked = _unchecked(kind)
    parts = read_parts(
        folder, index, dtype, variant=variant, allow_pickle=allow_pickle, without=(*unchecked, "feature_extractor")
    )
    with one_sentence(folder, f"a {kind.__name__}"):
        return kind.from_pretrained(str(folder), local_files_only=True, **parts, **unchecked)


def _unchecked(kind: Any) -> dict[str, Any]:
    """What leaves the safety checker out: it would replace pictures by black ones, and it sees only the last stage of a
    run."""
    takes = inspect.signature(kind.__init__).parameters
    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    return {name: value for name, value in unchecked.items() if name in takes}


def _fetched(source: str, fetching: Mapping[str, Any], **chosen: Any) -> Path:
    """The folder that a model on the hub has in the cache; what that lacks is fetched first."""
    import diffusers
    from huggingface_hub import hf_hub_download, model_info

    first, names = None, {name: value for name, value in fetching.items() if name != "local_files_only"}
    if names == fetching:
        try:
            model_info(source, timeout=10, **names)
        except Exception as error:  # the cache may have it; a download would try again for half a minute
            first, fetching = error, names | {"local_files_only": True}
    with reaching(source, first):
        file = Path(hf_hub_download(source, "model_index.json", **fetching))
    kind = getattr(diffusers, check_index(read_json(file), source))
    with reaching(source, first):
        return Path(kind.download(source, **fetching, **chosen, **_unchecked(kind)))


def _supported(pipeline: Any, name: str = "") -> Any:
    """The pipeline, if every part of it is one that sdkit knows how to drive."""
    unet, vae = uncompiled(pipeline.unet), uncompiled(pipeline.vae)
    what = f"{name!r}, a {type(pipeline).__name__}," if name else type(pipeline).__name__
    nets = getattr(pipeline, "controlnet", None)
    reasons = {
        f"its U-Net is a {type(unet).__name__}": type(unet).__name__ != "UNet2DConditionModel",
        f"its autoencoder is a {type(vae).__name__}": not is_a(vae, "vae"),
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
                type(uncompiled(net)).__name__ != "ControlNetModel"
                for net in getattr(nets, "nets", [nets] if nets else [])
            ),
        }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(f"{what} cannot be driven: {reason}; {EXPECTED}")
    for reason in disagreements(pipeline):
        raise ValueError(f"{what} cannot be driven: {reason}; expected parts that belong together, so give those")
    return pipeline


def _from_pipeline(model: Any, changes: Collection[object]) -> Model:
    from sdkit.model.model import Model

    if any(one is not None for one in changes):
        raise ValueError(
            "a pipeline is used as it is; move it with pipeline.to(...) instead of device, dtype and storage_dtype"
        )
    if isinstance(model, Model):
        return model
    if not all(hasattr(model, part) for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")):
        kind = type(model).__name__
        if kind.endswith("Pipeline"):
            raise ValueError(f"{kind} cannot be driven: it lacks a U-Net, an autoencoder or a text encoder; {EXPECTED}")
        raise TypeError(
            f"model must be a name, a folder, a file, a Stable Diffusion pipeline or an sdkit Model, but is a {kind}"
        )
    return _model(_supported(model), str(model.config.get("_name_or_path") or type(model).__name__))


def best_device() -> str:
    """Where a model goes on this machine if nobody says where."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def usual_dtype(device: str) -> torch.dtype:
    """What a model computes in on this kind of device if nobody says in what."""
    return torch.float16 if device == "cuda" else torch.float32


def _device(device: str | torch.device | None) -> torch.device:
    """The device, if this machine has it; by default the best that it has."""
    best = best_device()
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
        return usual_dtype(device.type)
    kind: torch.dtype = getattr(torch, pick("dtype", str(dtype), DTYPES))
    return kind


def _storage_dtype(dtype: str | torch.dtype, wide: torch.dtype) -> torch.dtype:
    name = pick("storage_dtype", str(dtype).removeprefix("torch."), DTYPES[1:])
    if wide != torch.float32:
        raise ValueError(
            f"storage_dtype is for computing in float32, not in {wide}; leave it out, or give dtype='float32'"
        )
    kind: torch.dtype = getattr(torch, name)
    return kind


def _stored(pipeline: Any, kept: torch.dtype, dtype: torch.dtype) -> Any:
    """The pipeline, with weights that were loaded in one precision computing in another."""
    if kept == dtype:
        return pipeline
    from sdkit.model.storage import widen

    return widen(pipeline, dtype)


@contextmanager
def _quiet(*, bars: bool = False) -> Iterator[None]:
    """Silence what libraries say while they load that is nothing to a user: torchvision is absent by choice, weights
    are missing, which an error of ours lists; and bars over a file each, while those of a download stay."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with _LOADING:
        libraries = [lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()]
        levels = {lib: lib.get_verbosity() for lib in (diffusers_logging, transformers_logging)}
        for library in levels:
            library.set_verbosity_error()
        for library in [] if bars else libraries:
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, level in levels.items():
                library.set_verbosity(level)
            for library in libraries:
                library.enable_progress_bar()
