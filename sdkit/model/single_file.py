"""One file in the original layout: which family of Stable Diffusion it is of, and a pipeline made of it offline, with
the configurations and the vocabulary that such a file lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sdkit.model.allowed import check_index

# By diffusers' names for what it infers: our configuration, the pipeline, and the channels that the U-Net sees.
_FAMILIES = {
    "v1": ("sd1", "StableDiffusionPipeline", 4),
    "inpainting": ("sd1", "StableDiffusionInpaintPipeline", 9),
    "v2": ("sd2", "StableDiffusionPipeline", 4),
    "inpainting_v2": ("sd2", "StableDiffusionInpaintPipeline", 9),
    "xl_base": ("sdxl", "StableDiffusionXLPipeline", 4),
    "xl_inpaint": ("sdxl", "StableDiffusionXLInpaintPipeline", 9),
    "xl_refiner": ("sdxl_refiner", "StableDiffusionXLImg2ImgPipeline", 4),
}
_PADDING = {
    "sd1": "<|endoftext|>",
    "sd2": "!",
    "sdxl": "<|endoftext|>",
}  # what fills up the first text encoder's window


def pipeline_from(path: Path, dtype: torch.dtype, *, config: Path | None, prediction_type: str | None) -> Any:
    """The pipeline of a checkpoint in the original layout, with nothing fetched from anywhere.

    Args:
        config: a folder in diffusers' layout whose configurations describe it; by default those of its family.
        prediction_type: where the file's family leaves it open; by default that of the family's best-known checkpoint,
            "v_prediction" for 2.x and "epsilon" for the others, or what a key "v_pred" in the file says.

    Raises:
        ValueError: it is no checkpoint of Stable Diffusion, or it is damaged.
    """
    import diffusers

    named = None if config is None else _class_named_in(config)  # first of all: it decides what is imported
    shapes = _shapes(path)
    name, kind, channels = _FAMILIES[_family(path, shapes)]
    if "v_pred" in shapes and prediction_type is None:  # how fine-tuned checkpoints say it
        prediction_type = "v_prediction"
    with _configurations(name, kind, channels) as folder:
        if config is not None:
            kind, folder = named or kind, config
        tokenizers = {} if config is not None else _tokenizers(name)
        pipeline = getattr(diffusers, kind).from_single_file(
            str(path), config=str(folder), dtype=dtype, local_files_only=True, **tokenizers
        )
    changes: dict[str, Any] = {} if prediction_type is None else {"prediction_type": prediction_type}
    if "ztsnr" in shapes:  # how they say that their noise schedule ends in noise alone (arXiv:2305.08891)
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if changes:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)
    return pipeline


def _class_named_in(config: Path) -> str:
    try:
        index = json.loads((config / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config {str(config)!r} has no model_index.json that can be read: {error}") from error
    return check_index(index, str(config))


def _shapes(path: Path) -> dict[str, torch.Tensor]:
    """An empty tensor of the right shape for each weight in a file, which is not read for it."""
    if path.suffix != ".safetensors":
        weights = torch.load(path, map_location="meta", weights_only=True)
        return {name: value for name, value in weights.get("state_dict", weights).items() if hasattr(value, "shape")}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is cut short or no safetensors file; fetch it again") from error


def _family(path: Path, shapes: dict[str, torch.Tensor]) -> str:
    from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES, infer_diffusers_model_type

    family: str = infer_diffusers_model_type(shapes)
    if family == "v1" and CHECKPOINT_KEY_NAMES["v1"] not in shapes:  # what diffusers says where it knows nothing
        first = ", ".join(sorted(shapes)[:2]) or "nothing"
        raise ValueError(
            f"{str(path)!r} holds no whole Stable Diffusion model in the original layout (it begins with {first}); "
            "expected a checkpoint of U-Net, autoencoder and text encoder in one file"
        )
    if family not in _FAMILIES:
        raise ValueError(f"{str(path)!r} is a {family} model; expected Stable Diffusion 1.x, 2.x or XL")
    return family


@contextmanager
def _configurations(name: str, kind: str, channels: int) -> Iterator[Path]:
    """A folder in diffusers' layout, for as long as it is needed, with a family's configurations and no weights."""
    contents = json.loads((files("sdkit.model") / "checkpoints" / f"{name}.json").read_text())
    contents["model_index.json"]["_class_name"] = kind
    contents["unet/config.json"]["in_channels"] = channels
    with TemporaryDirectory() as folder:
        for file, content in contents.items():
            place = Path(folder) / file
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps(content))
        yield Path(folder)


def _tokenizers(name: str) -> dict[str, Any]:
    """CLIP's tokenizer for each text encoder of a family; the encoders from OpenCLIP want another padding."""
    from transformers import CLIPTokenizer

    with as_file(files("sdkit.model") / "checkpoints" / "clip") as folder:
        pads = {"tokenizer": _PADDING.get(name), "tokenizer_2": "!" if name.startswith("sdxl") else None}
        return {
            part: CLIPTokenizer.from_pretrained(str(folder), pad_token=pad, model_max_length=77)
            for part, pad in pads.items()
            if pad is not None
        }
