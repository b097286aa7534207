"""The rows of the table of speed, step and memory: each measures one thing, and is asked for by its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import sizes
from benchmarks.alone import WORDS, everything
from benchmarks.rounds import Row, Taken, alone, compared, here, ratios, rounds, spread
from sdkit import Stage, Trace, hooks, load, on, text_to_image

TINY: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 3.0}
MIDDLE: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 7.5, "height": 256, "width": 256}
RUN = ("-m", "benchmarks.alone", "run")


def imports(times: int = 15) -> list[Row]:
    """What `import sdkit` takes, the start of Python included."""
    taken = rounds({"sdkit": lambda: alone("-c", "import sdkit"), "nothing": lambda: alone("-c", "pass")}, times)
    return [_seconds("import", "`import sdkit`", 0.06, taken["sdkit"], _beside(taken["nothing"]))]


def help_(times: int = 15) -> list[Row]:
    """What `sdkit --help` takes, the start of Python included."""
    taken = rounds({"help": lambda: alone("-m", "sdkit", "--help"), "nothing": lambda: alone("-c", "pass")}, times)
    return [_seconds("help", "`sdkit --help`", 0.15, taken["help"], _beside(taken["nothing"]))]


def _beside(nothing: list[Taken]) -> str:
    return f"Python alone {median(one.wall for one in nothing):.3f} s"


def _seconds(name: str, what: str, most: float, taken: list[Taken], remark: str) -> Row:
    walls = [one.wall for one in taken]
    measured = f"{spread(walls, ' s', 3)}; processor {spread([one.processor for one in taken], ' s', 3)}"
    return Row(name, what, f"<= {most} s", measured, median(walls) <= most, remark, {"wall": walls})


def start(times: int = 5) -> list[Row]:
    """From the command to the picture on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "star.png")
        command = ("-m", "sdkit", "generate", WORDS, "--seed", "7", "-o", path)
        taken = rounds(
            {
                "sdkit": lambda: alone(*command),
                "diffusers": lambda: alone("-m", "benchmarks.alone", "cold", path),
                "imports": lambda: alone("-c", "from diffusers import StableDiffusionPipeline"),
            },
            times,
        )
    share = median(ratios(taken["imports"], taken["diffusers"]))
    remark = (
        f"`from diffusers import StableDiffusionPipeline`, end of Python included, is {share:.0%} of diffusers' side"
    )
    what = "`sdkit generate`, embedded model, 20 steps, against a script of diffusers' that does the same"
    return [compared("start", what, 0.80, taken["sdkit"], taken["diffusers"], remark)]


def _sides(model: Any, size: dict[str, Any], make: Callable[[], list[Any]] = list) -> dict[str, Callable[[], Taken]]:
    """sdkit and diffusers on the very same components."""
    pipeline = model.pipeline
    pipeline.set_progress_bar_config(disable=True)

    def theirs() -> Any:
        return pipeline(WORDS, generator=torch.Generator().manual_seed(7), **size).images

    def ours() -> Any:
        return text_to_image(WORDS, model=model, seed=7, hooks=make(), progress=False, **size)

    return {"sdkit": lambda: here(ours), "diffusers": lambda: here(theirs)}


def _same(model: Any, size: dict[str, Any]) -> str:
    theirs = model.pipeline(WORDS, generator=torch.Generator().manual_seed(7), output_type="latent", **size).images
    same = torch.equal(theirs, text_to_image(WORDS, model=model, seed=7, progress=False, **size).latents)
    return "latents equal to the bit" if same else "LATENTS DIFFER"


def plain(times: int = 15, model: Any = None, size: dict[str, Any] = TINY) -> list[Row]:
    """A run that nobody looks at."""
    model = load(model)
    sides = _sides(model, size)
    same, taken = _same(model, size), rounds(sides, times)
    return [compared("plain", f"plain `text_to_image`, {_size(model, size)}", 1.0, *taken.values(), same)]


def recorded(times: int = 15, model: Any = None, size: dict[str, Any] = TINY) -> list[Row]:
    """A run of which all is recorded."""
    model = load(model)
    sides, same = _sides(model, size, everything(model)), _same(model, size)
    sides["sdkit"]()
    taken = rounds(sides, times)
    what = f"outer stages, previews without the decoder and maps of words recorded, {_size(model, size)}"
    return [compared("recorded", what, 1.03, *taken.values(), same)]


def _size(model: Any, size: dict[str, Any]) -> str:
    side = size.get("height", model.size[0])
    family = "XL" if model.is_xl else "1.5"
    name = "the embedded model" if model.name == "sdkit/tiny" else f"the size of Stable Diffusion {family}"
    return f"{name}, {side}x{side}, {size['num_inference_steps']} steps"


def sd1(times: int = 5) -> list[Row]:
    """A run that nobody looks at, at the size of Stable Diffusion 1.5."""
    return [replace(one, name="sd1") for one in plain(times, load(sizes.folder("sd1"), device="cpu"), MIDDLE)]


def sdxl(times: int = 3) -> list[Row]:
    """The same at the size of Stable Diffusion XL, which takes 14 GB."""
    pipeline = sizes.pipeline("sdxl")
    return [replace(one, name="sdxl") for one in plain(times, pipeline, MIDDLE | {"num_inference_steps": 2})]


def by_openvino(times: int = 5, rows: Sequence[str] = ("embedded", "sd1")) -> list[Row]:
    """The U-Net and the decoder by OpenVINO, against diffusers, once all is converted and compiled."""
    if find_spec("openvino") is None:
        return [Row("openvino", "OpenVINO on a CPU", "", "not measured", None, 'pip install "sdkit-stages[openvino]"')]
    made = []
    for name, most in (("embedded", 0.42), ("sd1", 0.65)):
        if name in rows:
            size = TINY if name == "embedded" else MIDDLE
            model = load(None if name == "embedded" else sizes.folder(name), device="cpu", engine="openvino")
            sides = _sides(model, size)
            sides["diffusers"]()
            first = sides["sdkit"]().wall
            latents = text_to_image(WORDS, model=model, seed=7, progress=False, **size).latents
            plain = text_to_image(
                WORDS, model=load(model, engine="torch"), seed=7, progress=False, **size
            ).latents  # of diffusers, to the bit
            apart = float((latents - plain).norm() / plain.norm())
            remark = f"latents {apart:.1e} apart, relative; the first picture took {first:.0f} s"
            taken = rounds(sides, times)
            made.append(compared(f"openvino {name}", f"OpenVINO, {_size(model, size)}", most, *taken.values(), remark))
    return made


@contextmanager
def _busy(many: int) -> Iterator[None]:
    """So many processes that compute, each with one thread."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(many)]
    try:
        yield
    finally:
        for one in others:
            one.kill()
            one.wait()


def busy(times: int = 3) -> list[Row]:
    """The command while every processor has something else to do, against its fair share of them: as much of a
    processor as each of those who compute would get."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        command = ("-m", "sdkit", "generate", WORDS, "--seed", "7", "-o", str(Path(folder) / "star.png"))

        def crowded(**environment: str) -> Taken:
            with _busy(cores):
                return alone(*command, **environment)

        sides = {
            "alone": lambda: alone(*command),
            "crowded": crowded,
            "spinning": partial(crowded, OMP_WAIT_POLICY="ACTIVE"),
        }
        taken = rounds(sides, times)
    fair = [one.processor * (cores + 1) / cores for one in taken["alone"]]
    shares = [one.wall / share for one, share in zip(taken["crowded"], fair, strict=True)]
    spinning = median(ratios(taken["spinning"], taken["crowded"], "processor"))
    what = f"a busy machine: `sdkit generate` while {cores} processes compute on {cores} cores, over its fair share"
    remark = f"with OMP_WAIT_POLICY=ACTIVE {spinning:.2f}x the processor's time of that"
    numbers = {name: [one.wall for one in some] for name, some in taken.items()}
    return [Row("busy", what, "<= 1.50x", spread(shares), median(shares) <= 1.5, remark, numbers)]


def loading(times: int = 5) -> list[Row]:
    """Reading a folder of the size of Stable Diffusion 1.5, which lies in the cache of files."""
    folder = str(sizes.folder("sd1"))

    def read(side: str) -> Taken:
        said = alone("-m", "benchmarks.alone", "load", side, folder).said
        return Taken(said["wall"], said["processor"])

    read("sdkit")
    taken = rounds({"sdkit": lambda: read("sdkit"), "diffusers": lambda: read("diffusers")}, times)
    what = "`load` of a folder of the size of Stable Diffusion 1.5, float32, against `from_pretrained`"
    return [compared("load", what, 0.5, *taken.values(), "imports are done before; both read the same tokenizer")]


def _run(
    side: str,
    pixels: int,
    steps: int,
    options: dict[str, Any] | None = None,
    kept: torch.dtype = torch.float32,
    **environment: str,
) -> Taken:
    folder = str(sizes.folder("sd1", kept))
    said = alone(*RUN, side, folder, str(pixels), str(steps), json.dumps(options or {}), **environment).said
    return Taken(said["wall"], said["processor"], said)


def memory(times: int = 3) -> list[Row]:
    """The most memory that a process has for a run of the size of Stable Diffusion 1.5 that computes in float32."""
    made = []
    for kept, most in ((torch.float32, None), (torch.float16, 0.6)):
        name = str(kept).removeprefix("torch.")
        with tempfile.TemporaryDirectory() as folder:
            files = {side: str(Path(folder) / f"{side}.pt") for side in ("sdkit", "diffusers")}
            ours = {"made": files["sdkit"], **({"storage_dtype": name} if kept == torch.float16 else {})}
            taken = rounds(
                {
                    "sdkit": partial(_run, "sdkit", 256, 2, ours, kept),
                    "diffusers": partial(_run, "diffusers", 256, 2, {"made": files["diffusers"]}, kept),
                },
                times,
            )
            pictures = [torch.load(file, weights_only=True)["picture"] for file in files.values()]
        peaks = {side: [one.said["peak"] for one in some] for side, some in taken.items()}
        shares = [one / other for one, other in zip(*peaks.values(), strict=True)]
        sides = [f"{median(some) / 2**30:.2f} GiB" for some in peaks.values()]
        bits = "pictures equal to the bit" if pictures[0] == pictures[1] else "PICTURES DIFFER"
        what = f"peak memory of the whole process, size of Stable Diffusion 1.5 in {name} files, 256x256"
        how = ", `storage_dtype`" if kept == torch.float16 else ""
        made.append(
            Row(
                "memory" if most is None else "memory halved",
                what + how,
                "" if most is None else f"<= {most:.2f}x",
                spread(shares),
                None if most is None else median(shares) <= most,
                f"{sides[0]} against {sides[1]}; {bits}",
                peaks,
            )
        )
    return made


def malloc(times: int = 3) -> list[Row]:
    """glibc told not to give large blocks back at once, and weights in channels-last order."""
    kept = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder) / f"{name}.pt") for name in ("diffusers", "malloc", "both")}
        sides = {
            "diffusers": lambda: _run("diffusers", 256, 1, {"made": files["diffusers"]}),
            "malloc": lambda: _run("sdkit", 256, 1, {"made": files["malloc"]}, **kept),
            "both": lambda: _run("sdkit", 256, 1, {"made": files["both"], "channels_last": True}, **kept),
        }
        taken = rounds(sides, times)
        made = {name: torch.load(file, weights_only=True) for name, file in files.items()}
    same = made["malloc"]["picture"] == made["diffusers"]["picture"]
    plain, other = made["malloc"]["latents"], made["both"]["latents"]
    apart = float((plain - other).norm() / plain.norm())
    size = "size of Stable Diffusion 1.5, 256x256, 1 step, against diffusers"
    bits = "pictures equal to the bit" if same else "PICTURES DIFFER"
    settings = "MALLOC_MMAP_THRESHOLD_=1 GiB, MALLOC_TRIM_THRESHOLD_=4 GiB"
    return [
        compared("malloc", f"{settings}: {size}", 0.91, taken["malloc"], taken["diffusers"], bits),
        compared(
            "channels last", f"the same and channels_last: {size}", 0.85, taken["both"], taken["diffusers"],
            f"latents {apart:.1e} apart, relative",
        ),
    ]  # fmt: skip


def many(times: int = 5) -> list[Row]:
    """Pictures made together."""
    prompts = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("star", "cat", "house", "fish")]

    def together() -> Any:
        return text_to_image(prompts, seed=7, progress=False, **TINY)

    def one_by_one() -> Any:
        return [text_to_image(prompt, seed=7 + i, progress=False, **TINY) for i, prompt in enumerate(prompts)]

    taken = rounds({"alone": lambda: here(one_by_one), "together": lambda: here(together)}, times)
    gain = ratios(taken["alone"], taken["together"])
    processor = spread(ratios(taken["alone"], taken["together"], "processor"))
    what = "8 pictures of one call on the embedded model, pictures a second of one at a time"
    numbers = {name: [one.wall for one in some] for name, some in taken.items()}
    return [
        Row(
            "many",
            what,
            ">= 1.50x",
            f"{spread(gain)}; processor {processor}",
            median(gain) >= 1.5,
            "",
            numbers,
        )
    ]


def growth(times: int = 5) -> list[Row]:
    """How time grows with steps, pictures and pixels, and memory with steps."""

    def draw(**size: Any) -> Taken:
        return here(lambda: text_to_image(size.pop("prompt", WORDS), seed=7, progress=False, **{**TINY, **size}))

    sides = {
        "10 steps": lambda: draw(num_inference_steps=10),
        "20 steps": lambda: draw(num_inference_steps=20),
        "40 steps": lambda: draw(num_inference_steps=40),
        "8 pictures": lambda: draw(prompt=[WORDS] * 8, num_inference_steps=10),
        "16 pictures": lambda: draw(prompt=[WORDS] * 16, num_inference_steps=10),
        "256x256": lambda: draw(height=256, width=256, num_inference_steps=10),
    }
    taken = rounds(sides, times)
    each = {name: [one.wall for one in some] for name, some in taken.items()}

    def over(what: str, other: str) -> list[float]:
        return [one / two for one, two in zip(each[what], each[other], strict=True)]

    steps, pictures = over("40 steps", "20 steps"), over("16 pictures", "8 pictures")
    pixels = over("256x256", "10 steps")
    peaks = [[alone("-c", GROWING, str(number)).said["peak"] for number in (10, 410)] for _ in range(times)]
    kilobytes = [(many - few) / 400 / 1024 for few, many in peaks]
    said = "4 times the pixels; attention grows with their square"
    return [
        Row("steps", "40 steps over 20, embedded model", "<= 2.10x", spread(steps), median(steps) <= 2.1, "", each),
        Row("pictures", "16 pictures over 8, embedded model", "<= 2.10x", spread(pictures), median(pictures) <= 2.1),
        Row("pixels", "256x256 over 128x128, embedded model", "", spread(pixels), None, said),
        Row(
            "memory of steps",
            "peak memory of 410 steps less that of 10, by step, embedded model",
            "<= 16 KiB a step",
            spread(kilobytes, " KiB a step", 1),
            median(kilobytes) <= 16,
            "",
            {"peaks": peaks},
        ),
    ]


GROWING = (
    "import sys, json, sdkit; from benchmarks.alone import peak\n"
    "sdkit.text_to_image('a red star', seed=7, num_inference_steps=int(sys.argv[1]), progress=False)\n"
    "print(json.dumps({'peak': peak()}))"
)


def lossy(times: int = 3, count: int = 32) -> list[Row]:
    """All but the last layer from the cache at four steps of five, and guidance in the first half alone: what it
    saves at the size of Stable Diffusion 1.5, and what it loses on the embedded model."""
    from benchmarks.embedded import judge

    size = MIDDLE | {"num_inference_steps": 10}

    def cached() -> list[Any]:
        @on(Stage.CONTEXT)
        def words_alone(event: Any) -> None:
            if event.layer is None and event.step >= len(event.run.visits) // 2:
                event.value = event.value[len(event.value) // 2 :]

        return [words_alone, hooks.deep_cache(5)]

    model = load(sizes.folder("sd1"), device="cpu")
    taken = rounds(_sides(model, size, cached), times)
    del model
    eye, measure = judge.trained_eye(), judge.MEASURES[0]
    right = {}
    for name, make in (("plain", list), ("lossy", cached)):
        answers = judge.ask(load(), eye, measure.scenes(), count, hooks=make(), **TINY)
        right[name] = judge.right(measure, answers)
    said = ", ".join(f"{name} {one[0]} of {one[1]}" for name, one in right.items())
    what = "DeepCache at interval 5 and guidance in the first half, size of Stable Diffusion 1.5, 256x256, 10 steps"
    return [
        compared("lossy", what, 0.30, *taken.values(), f"opt-in; the judge finds right on the embedded model: {said}")
    ]


def gpu(
    times: int = 5,
    device: str = "cuda",
    dtype: torch.dtype = torch.float16,
    pixels: dict[str, int] | None = None,
    steps: int = 20,
    **smaller: dict[str, Any],
) -> list[Row]:
    """diffusers as it comes against sdkit with all outer stages recorded: as it comes, channels last, and with each
    kind of block of the U-Net compiled once (`compile_repeated_blocks`). Random weights at true sizes.

    Args:
        pixels: the side of the pictures by family; by default 512 for "sd1" and 1024 for "sdxl".
        smaller: what to change of the configuration of parts, to try this on a CPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        said = "there is none here: `python -m benchmarks gpu` is for one"
        return [Row("gpu", "on a GPU", "", "not measured", None, said)]
    rows = []
    for family, side in (pixels or {"sd1": 512, "sdxl": 1024}).items():
        size = {"num_inference_steps": steps, "guidance_scale": 7.5, "height": side, "width": side}
        eager = _sides(load(sizes.pipeline(family, dtype, device, **smaller)), size)["diffusers"]
        for how, most in (("eager", 1.03), ("channels last", 1.03), ("compiled", {"sd1": 0.66, "sdxl": 0.87}[family])):
            pipeline = sizes.pipeline(family, dtype, device, **smaller)
            if how != "eager":
                pipeline.unet.to(memory_format=torch.channels_last)
                pipeline.vae.to(memory_format=torch.channels_last)
            if how == "compiled":
                pipeline.unet.compile_repeated_blocks(fullgraph=True)
            recorded = _sides(load(pipeline), size, lambda: [Trace()])["sdkit"]
            both = {name: partial(_synchronised, one, device) for name, one in (("ours", recorded), ("theirs", eager))}
            for one in both.values():
                one()  # compiles and warms up
            taken = rounds(both, times)
            what = f"{family}, {side}x{side}, {steps} steps, {dtype}, outer stages recorded, {how}"
            rows.append(
                compared(f"gpu {family} {how}", what, most, *taken.values(), f"on {device}, over diffusers eager")
            )
    return rows


def _synchronised(work: Callable[[], Taken], device: str) -> Taken:
    def whole() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return here(whole)


ROWS: dict[str, Callable[..., list[Row]]] = {
    "import": imports,
    "help": help_,
    "start": start,
    "plain": plain,
    "recorded": recorded,
    "sd1": sd1,
    "sdxl": sdxl,
    "busy": busy,
    "load": loading,
    "memory": memory,
    "malloc": malloc,
    "many": many,
    "growth": growth,
    "openvino": by_openvino,
    "lossy": lossy,
    "gpu": gpu,
}
