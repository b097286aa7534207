"""One file in the original layout: which family of Stable Diffusion it is of, and a pipeline made of it offline, with
the configurations and the vocabulary that such a file lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open

from sdkit.model.allowed import EXPECTED, check_index
from sdkit.model.parts import check_weights, one_sentence, read_json, read_parts

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
_PREFIXES = {  # of the names of each part's weights
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.0.model.", "conditioner.embedders.1."),
}
_BESIDE = ("controlnet", "feature_extractor", "image_encoder", "safety_checker")  # which such a file never holds
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

    contents = None if config is None else _described_in(config)  # first of all: it decides what is imported
    shapes = _shapes(path)
    name, kind, channels = _FAMILIES[_family(path, shapes)]
    if "v_pred" in shapes and prediction_type is None:  # how fine-tuned checkpoints say it
        prediction_type = "v_prediction"
    if config is None or contents is None:
        contents = json.loads((files("sdkit.model") / "checkpoints" / f"{name}.json").read_text())
        contents["model_index.json"]["_class_name"] = kind
        contents["unet/config.json"]["in_channels"] = channels
        parts = _tokenizers(name)
    else:
        kind, weights = contents["model_index.json"]["_class_name"], _weighty(contents["model_index.json"])
        parts = read_parts(config, contents["model_index.json"], dtype, without=[*weights, *_BESIDE])
    _check_held(path, shapes, contents)
    with _configurations(contents) as folder, one_sentence(path, f"the weights of {kind} in the original layout"):
        pipeline = getattr(diffusers, kind).from_single_file(
            str(path), config=str(folder), dtype=dtype, local_files_only=True, **parts
        )
    _check_whole(path, pipeline)
    changes: dict[str, Any] = {} if prediction_type is None else {"prediction_type": prediction_type}
    if "ztsnr" in shapes:  # how they say that their noise schedule ends in noise alone (arXiv:2305.08891)
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if changes:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)
    return pipeline


def _described_in(config: Path) -> dict[str, Any]:
    """What a folder says of the parts that a file has the weights of; it may hold weights too, which are not used."""
    index = read_json(config / "model_index.json")
    check_index(index, str(config))
    kept = {name: value for name, value in index.items() if name not in _BESIDE}
    configs = {f"{name}/config.json": read_json(config / name / "config.json") for name in _weighty(kept)}
    return {"model_index.json": kept, **configs}


def _weighty(index: dict[str, Any]) -> list[str]:
    """The parts that an index names and that a file has the weights of."""
    return [name for name, value in index.items() if name in _PREFIXES and isinstance(value, list) and any(value)]


def _check_held(path: Path, shapes: Mapping[str, torch.Tensor], contents: Mapping[str, Any]) -> None:
    """Say what a file lacks or has too much of, before it is read: of U-Net and autoencoder weight for weight."""
    import diffusers
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    index = contents["model_index.json"]
    for name in _weighty(index):
        kind, held = index[name][1], [weight for weight in shapes if weight.startswith(_PREFIXES[name])]
        if not held:
            raise ValueError(
                f"{str(path)!r} holds no {name}; expected a checkpoint of U-Net, autoencoder and text encoder in one "
                "file; fetch a whole one"
            )
        if name.startswith("text_encoder"):  # whose weights are cut and joined on the way
            continue
        with one_sentence(path, f"the weights of {kind} in the original layout"), torch.device("meta"):
            config = contents[f"{name}/config.json"]
            needed = getattr(diffusers, kind).from_config(config).state_dict()
            rename = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
            renamed = rename(config=config, checkpoint=dict(shapes))
            found = {weight: value for weight, value in renamed.items() if value is not None}
        faults = {
            "lack": needed.keys() - found.keys(),
            "have in another shape": {one for one in needed.keys() & found if needed[one].shape != found[one].shape},
            "have beside them": [f"{more} unknown"] if (more := len(held) - len(needed)) > 0 else [],
        }
        check_weights(path, f"{name}, {kind}", faults)


def _check_whole(path: Path, pipeline: Any) -> None:
    """Say which weights of a text encoder a file lacks."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            missing = [weight for weight, value in part.named_parameters() if value.device.type == "meta"]
            check_weights(path, f"{name}, {type(part).__name__}", {"lack": missing})


def _shapes(path: Path) -> dict[str, torch.Tensor]:
    """An empty tensor of the right shape for each weight in a file, which is not read for it."""
    if path.suffix != ".safetensors":
        with one_sentence(path, "a checkpoint of weights alone"):
            weights = torch.load(path, map_location="meta", weights_only=True)
            found = weights.get("state_dict", weights).items()
            return {name: value for name, value in found if isinstance(name, str) and hasattr(value, "shape")}
    with one_sentence(path, "a safetensors file, whole"), safe_open(path, framework="pt") as file:
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118 - no mapping


def _family(path: Path, shapes: dict[str, torch.Tensor]) -> str:
    from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES, infer_diffusers_model_type

    with one_sentence(path, EXPECTED.removeprefix("expected ")):
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
def _configurations(contents: dict[str, Any]) -> Iterator[Path]:
    """A folder in diffusers' layout, for as long as it is needed, with configurations and no weights."""
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
