"""The classes that a file may name: whatever a folder, a configuration, a picture or a trace says, no other is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdkit.model.schedulers import KNOWN

EXPECTED = "expected a Stable Diffusion model: 1.x, 2.x or XL, or one distilled from them"
PIPELINES = (
    "LatentConsistencyModelImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    *(
        f"StableDiffusion{size}{control}{what}Pipeline"
        for size in ("", "XL")
        for control in ("", "ControlNet")
        for what in ("", "Img2Img", "Inpaint")
    ),
)
_PARTS = {  # of a pipeline, by name: the library and the classes that each may be of
    "vae": ("diffusers", ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL")),
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "scheduler": ("diffusers", KNOWN),
    "controlnet": ("diffusers", ("ControlNetModel", "MultiControlNetModel")),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "image_encoder": ("transformers", ("CLIPVisionModelWithProjection",)),
    "feature_extractor": ("transformers", ("CLIPFeatureExtractor", "CLIPImageProcessor", "CLIPImageProcessorPil")),
    "safety_checker": ("stable_diffusion", ("StableDiffusionSafetyChecker",)),
}
_OTHER_LIBRARIES = {"MultiControlNetModel": ("controlnet", "pipelines.controlnet.multicontrolnet", "multicontrolnet")}


def check_index(index: Any, source: str) -> str:
    """The name of the pipeline class of a model_index.json, if it and every part are of a known class.

    Raises:
        ValueError: one is not; nothing has been imported for it.
    """
    if not isinstance(index, Mapping) or index.get("_class_name") not in PIPELINES:
        kind = index.get("_class_name") if isinstance(index, Mapping) else None
        raise ValueError(f"{source!r} is a {kind or 'model without a name'}; {EXPECTED}")
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list | tuple):
            continue
        library, kind = (*value, None, None)[:2]
        if library is None and kind is None:
            continue
        known_library, kinds = _PARTS.get(name, (None, ()))
        libraries = (known_library, *_OTHER_LIBRARIES.get(str(kind), ()))
        if kind not in kinds or library not in libraries or len(value) != 2:
            raise ValueError(
                f"{source!r} names {'.'.join(map(str, value))!r} as its {name}, which sdkit does not load; "
                + (f"expected {known_library}'s {' or '.join(kinds[:3])}" if kinds else "there is no such part")
            )
    kind = str(index["_class_name"])
    second = "_2" if "XL" in kind else ""
    words = [f"{part}{second}" for part in ("text_encoder", "tokenizer")]
    silent = all(index.get(name) == [None, None] for name in words)  # saved without them, to be given embeddings
    for name in ("unet", "vae", "scheduler", *(() if silent else words)):
        if not isinstance(index.get(name), list | tuple) or not any(index[name]):
            raise ValueError(f"{source!r} is a {kind} whose model_index.json names no {name}; fetch it again")
    return kind


def uncompiled(part: Any) -> Any:
    """A part as it was before `torch.compile` wrapped it."""
    return getattr(part, "_orig_mod", part)


def is_a(part: Any, name: str) -> bool:
    """Whether an object is of a class that a part of this name may be of, compiled or not."""
    return not {kind.__name__ for kind in type(uncompiled(part)).__mro__}.isdisjoint(_PARTS[name][1])
