"""What a process of its own does for a row: `python -m benchmarks.alone NAME ARGUMENTS`. It prints JSON in the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY = str(Path(__file__).parents[1] / "sdkit" / "tiny" / "weights")
WORDS = "a red star on a blue background"


def cold(path: str) -> dict[str, Any]:
    """What a script of diffusers' own does for a picture of the embedded model, 20 steps."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(TINY)

    import torch

    drawn = pipeline.to(torch.float32)(
        WORDS, num_inference_steps=20, guidance_scale=3.0, generator=torch.Generator().manual_seed(7)
    )
    drawn.images[0].save(path)
    return {}


def load(side: str, folder: str) -> dict[str, Any]:
    """Load a model from a folder, with everything imported before."""
    import diffusers
    from transformers.models.clip import modeling_clip, tokenization_clip  # noqa: F401 - so that nobody imports them later

    import sdkit
    from sdkit.process.run import Run  # noqa: F401 - as above

    kind = diffusers.StableDiffusionPipeline
    sdkit.load()
    began, worked = time.perf_counter(), time.process_time()
    if side == "diffusers":
        kind.from_pretrained(folder)
    else:
        sdkit.load(folder, device="cpu")
    return {"wall": time.perf_counter() - began, "processor": time.process_time() - worked}


def run(side: str, folder: str, pixels: str, steps: str, options: str = "{}") -> dict[str, Any]:
    """Make a picture, after one step to warm up.

    Args:
        options: as JSON: "channels_last", "storage_dtype", and "made", a file for what was made.
    """
    import torch

    asked = json.loads(options)
    size: dict[str, Any] = {"height": int(pixels), "width": int(pixels), "guidance_scale": 7.5}
    if side == "diffusers":
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)

        def draw(many: int) -> Any:
            return pipeline(WORDS, num_inference_steps=many, generator=torch.Generator().manual_seed(7), **size)
    else:
        import sdkit
        from sdkit.model.loading import load as loaded

        model = loaded(folder, device="cpu", storage_dtype=asked.get("storage_dtype"))
        pipeline = model.pipeline

        def draw(many: int) -> Any:
            return sdkit.text_to_image(WORDS, model=model, num_inference_steps=many, seed=7, progress=False, **size)

    if asked.get("channels_last"):
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    draw(1)
    began, worked = time.perf_counter(), time.process_time()
    made = draw(int(steps))
    taken = {"wall": time.perf_counter() - began, "processor": time.process_time() - worked}
    if "made" in asked:
        torch.save({"picture": made.images[0].tobytes(), "latents": getattr(made, "latents", None)}, asked["made"])
    return {**taken, "peak": peak()}


def everything(model: Any) -> Callable[[], list[Any]]:
    """What makes hooks, anew for each run, that record all outer stages, previews without the decoder, and the maps of
    words, as means over heads."""
    from sdkit import AttentionMaps, Stage, Trace, latent_to_rgb, on

    to_rgb = latent_to_rgb(model)

    def hooks() -> list[Any]:
        previews = []

        @on(Stage.DENOISED)
        def preview(event: Any) -> None:
            previews.append(to_rgb(event.value))

        return [Trace(), preview, AttentionMaps()]

    return hooks


def peak() -> int:
    """The most bytes that this process has had in memory, file pages included; Linux alone says."""
    said = Path("/proc/self/status").read_text("utf-8")
    return next(int(line.split()[1]) * 1024 for line in said.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps({"cold": cold, "load": load, "run": run}[sys.argv[1]](*sys.argv[2:])))
