"""Components of true sizes with random weights, as a folder in diffusers' layout: what speed and memory depend on."""

from __future__ import annotations

import json
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

FAMILIES = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def folder(family: str, dtype: torch.dtype = torch.float32) -> Path:
    """Where a model of a family's size lies, made once: 4.3 GB for "sd1" and 14 GB for "sdxl" in float32."""
    place = Path(tempfile.gettempdir()) / f"sdkit-benchmarks-{family}-{str(dtype).removeprefix('torch.')}"
    if not (place / "model_index.json").is_file():
        pipeline(family, dtype).save_pretrained(place)
    return place


def pipeline(family: str, dtype: torch.dtype = torch.float32, device: str = "cpu", **smaller: dict[str, Any]) -> Any:
    """A diffusers pipeline of a family, with weights drawn by lot.

    Args:
        smaller: what to change of the configuration of a part, by its name, such as vae={"layers_per_block": 1}.
    """
    import diffusers
    import transformers

    described = json.loads((files("sdkit.model") / "checkpoints" / f"{family}.json").read_text("utf-8"))
    parts: dict[str, Any] = {}
    torch.manual_seed(0)
    for name, value in described["model_index.json"].items():
        if not isinstance(value, list):
            continue
        library, kind = value
        config = described.get(f"{name}/config.json", {}) | smaller.get(name, {})
        if library is None:
            parts[name] = None
        elif name.startswith("tokenizer"):
            with as_file(files("sdkit.model") / "checkpoints" / "clip") as place:
                parts[name] = transformers.CLIPTokenizer.from_pretrained(str(place), model_max_length=77)
        elif name == "scheduler":
            scheduler = described["scheduler/scheduler_config.json"]
            parts[name] = diffusers.DDIMScheduler.from_config(scheduler, steps_offset=1)
        elif library == "transformers":
            made = getattr(transformers, kind)
            with torch.device(device):
                parts[name] = made(made.config_class.from_dict(config)).to(dtype).eval()
        else:
            with torch.device(device):
                parts[name] = getattr(diffusers, kind).from_config(config).to(dtype).eval()
    takes = getattr(diffusers, FAMILIES[family])
    known = {"safety_checker", "feature_extractor", "image_encoder"}
    extra = {"requires_safety_checker": False} if family == "sd1" else {}
    named = {name: part for name, part in parts.items() if part is not None}
    made = takes(**named, **dict.fromkeys(known & set(takes.__init__.__code__.co_varnames)), **extra)
    made.set_progress_bar_config(disable=True)
    return made
