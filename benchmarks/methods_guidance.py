"""What the hooks of guidance and gradients do to the embedded model: `python -m benchmarks.methods_guidance`.

Each method is asked for the claim that its paper makes, on captions of the model's own grammar, with and without it
from the same seeds. The judge of `benchmarks/embedded/judge.py` reads the pictures.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.embedded import judge
from sdkit import hooks, load, text_to_image
from sdkit.events import Hook
from sdkit.model.model import Model
from sdkit.tiny import grammar
from sdkit.tiny.drawing import BACKDROPS
from sdkit.tiny.grammar import BACKGROUNDS, KINDS, Scene, Thing

BATCH = 16
STEPS = 10  # which the model needs little more of, and which halve the time
QUARTERS = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0)]
Make = Callable[[Sequence[Scene]], list[Hook]]


def draw(model: Model, scenes: Sequence[Scene], make: Make = lambda _: [], **settings: Any) -> list[Image.Image]:
    """A picture of each scene, in batches, with hooks that know the scenes of their batch."""
    captions = [caption for caption, _ in judge._captions(list(scenes))]
    images: list[Image.Image] = []
    for i in range(0, len(scenes), BATCH):
        part = scenes[i : i + BATCH]
        images += text_to_image(
            captions[i : i + BATCH], model=model, seed=i, hooks=make(part), num_inference_steps=STEPS, **settings
        ).images
    return images


def share(eye: judge.Eye, images: list[Image.Image], wanted: Sequence[Scene], parts: list[int]) -> str:
    """How many pictures have these answers right."""
    truth = torch.tensor([grammar.answers(grammar.mirrored(scene)) for scene in wanted])
    right = (eye.read(images) == truth)[:, parts].all(1)
    low, high = judge.interval(int(right.sum()), len(right))
    return f"{right.float().mean():.0%} ({low:.0%} to {high:.0%})"


def kinds_of(scenes: Sequence[Scene]) -> list[str]:
    return sorted({thing.kind for scene in scenes for thing in scene.things})


def singles(count: int) -> list[Scene]:
    """One thing each, with nothing said but its kind."""
    return [Scene((Thing(KINDS[i % len(KINDS)]),)) for i in range(count)]


def overlap(images: list[Image.Image], boxes: Sequence[tuple[float, ...]]) -> tuple[float, float]:
    """The mean IoU of things and boxes, and how far the middle of the thing is from that of the box."""
    found, far = [], []
    for picture, (left, top, right, bottom) in zip(images, boxes, strict=True):
        shape = judge.silhouette(picture)
        y, x = (np.mgrid[: shape.shape[0], : shape.shape[1]] + 0.5) / shape.shape[0]
        box = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        found.append((shape & box).sum() / max((shape | box).sum(), 1))
        if shape.any():
            far.append(np.hypot(x[shape].mean() - (left + right) / 2, y[shape].mean() - (top + bottom) / 2))
    return float(np.mean(found)), float(np.mean(far))


def pairs(count: int) -> list[Scene]:
    return judge.pairs_of_things()[:count]


# ---------------------------------------------------------------------------------------------------------------------
# One claim each: lines of a table, method | setting | figure


Claim = Callable[[Model, judge.Eye, int], Iterator[tuple[str, str]]]


def attend_and_excite(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """Both things are there, at guidance 1."""
    scenes = pairs(count)
    arms: dict[str, Make] = {"without": lambda _: []}
    for scale in (10.0,):
        arms[f"scale {scale:g}"] = lambda part, scale=scale: [  # type: ignore[misc]
            hooks.attend_and_excite(*kinds_of(part), scale=scale, thresholds={})
        ]
    for name, make in arms.items():
        images = draw(model, scenes, make, guidance_scale=1.0)
        yield name, f"both kinds {share(eye, images, scenes, [0, 3])}, all right {share(eye, images, scenes, PAIR)}"


PAIR = [0, 1, 3, 4, 8]


def layout(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """The thing lies in a quarter of the picture that no word names."""
    scenes, boxes = singles(count), {kind: QUARTERS[i % 4] for i, kind in enumerate(KINDS)}
    wanted = [boxes[scene.things[0].kind] for scene in scenes]
    for scale in (0.0, 10.0, 30.0):
        images = draw(model, scenes, lambda part, s=scale: [hooks.layout({k: boxes[k] for k in kinds_of(part)}, s)])  # type: ignore[misc]
        iou, far = overlap(images, wanted)
        yield f"scale {scale:g}", f"IoU {iou:.2f}, middle off by {far:.2f}, kind {share(eye, images, scenes, [0])}"


def self_guidance(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """The thing goes to the upper left, which no word names."""
    scenes = singles(count)
    for scale in (0.0, 0.05, 0.1):
        images = draw(
            model,
            scenes,
            lambda part, s=scale: [hooks.self_guidance(k, s, centre=(0.25, 0.25)) for k in kinds_of(part)],  # type: ignore[misc]
        )
        _, far = overlap(images, [QUARTERS[0]] * count)
        yield f"scale {scale:g}", f"middle off by {far:.2f}, kind {share(eye, images, scenes, [0])}"


def compose(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """A second prompt says the background."""
    for weight in (0.0, 5.0):
        found = []
        for background in BACKGROUNDS[:4]:
            scenes = singles(count // 4)
            text = f"a picture with a {background} background"
            images = draw(model, scenes, lambda _, w=weight, t=text: [hooks.compose(t, weights=[w])])  # type: ignore[misc]
            found.append((images, [replace(scene, background=background) for scene in scenes]))
        images, wanted = ([one for part in parts for one in part] for parts in zip(*found, strict=True))
        yield (
            f"weight {weight:g}",
            f"background {share(eye, images, wanted, [6])}, kind {share(eye, images, wanted, [0])}",
        )


def negate(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """A prompt with a negative weight takes the white backgrounds away."""
    scenes = [replace(scene, background="white") for scene in singles(count)]
    asked = [replace(scene, background=None) for scene in scenes]
    for weight in (0.0, -3.0):
        text = "a picture with a white background"
        images = draw(model, asked, lambda _, w=weight, t=text: [hooks.compose(t, weights=[w])])  # type: ignore[misc]
        yield f"weight {weight:g}", f"white {share(eye, images, scenes, [6])}, kind {share(eye, images, scenes, [0])}"


def sega(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """A concept that says the background, on from step 1."""
    scenes = singles(count)
    wanted = [replace(scene, background="green") for scene in scenes]
    for scale in (0.0, 3.0):
        images = draw(
            model,
            scenes,
            lambda _, s=scale: [hooks.sega("a picture with a green background", scale=s, warmup=1, threshold=0.5)],  # type: ignore[misc]
        )
        yield (
            f"scale {scale:g}",
            f"background {share(eye, images, wanted, [6])}, kind {share(eye, images, wanted, [0])}",
        )


def freedom(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """A loss on the rim of the decoded picture makes the background blue, without a word."""
    scenes = singles(count)
    wanted = [replace(scene, background="blue") for scene in scenes]

    def loss(pictures: Tensor) -> Tensor:
        target = pictures.new_tensor(BACKDROPS["blue"]).view(1, 3, 1, 1) / 127.5 - 1
        rim = torch.ones(pictures.shape[2:]).to(pictures)
        rim[12:-12, 12:-12] = 0
        return ((pictures - target).square() * rim).sum()

    for scale in (0.0, 0.2):
        images = draw(model, scenes, lambda _, s=scale: [hooks.freedom(loss, s, decoded=True)])  # type: ignore[misc]
        yield (
            f"scale {scale:g}",
            f"background {share(eye, images, wanted, [6])}, kind {share(eye, images, wanted, [0])}",
        )


def dps(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """The upper half is filled in below: how far what was seen is missed, and whether the whole is a thing."""
    scenes = [Scene((Thing(KINDS[i % len(KINDS)], "red"),), "white", "centre") for i in range(count)]
    first = text_to_image(
        [caption for caption, _ in judge._captions(scenes)], model=model, seed=900, num_inference_steps=STEPS
    )

    def upper(x0: Tensor) -> Tensor:
        return x0[:, :, : x0.shape[2] // 2]

    for scale in (0.0, 1.0):
        found = text_to_image(
            [f"a {scene.things[0].kind}" for scene in scenes],
            model=model,
            seed=0,
            num_inference_steps=STEPS,
            hooks=[hooks.dps(upper, upper(first.latents), scale)],
        )
        off = (upper(found.latents) - upper(first.latents)).square().mean().sqrt()
        yield f"scale {scale:g}", f"off by {off:.2f}, colour and background {share(eye, found.images, scenes, [1, 6])}"


def worse_than(model: Model) -> Model:
    """The same model with noise on the weights of its U-Net."""
    worse = Model(copy.copy(model.pipeline), "worse", model.num_inference_steps, model.guidance_scale)
    worse.pipeline.unet = copy.deepcopy(model.unet)
    generator = torch.Generator().manual_seed(0)
    for weight in worse.pipeline.unet.parameters():
        weight.data += 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    return worse


def weakened(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """Without guidance by words, two things are right more often when led away from a weakened model."""
    scenes = pairs(count)
    worse = worse_than(model)
    arms = {
        "without": [],
        "pag 2": [hooks.pag(2.0)],
        "seg 3": [hooks.seg(3.0)],
        "sag 0.75": [hooks.sag(0.75)],
        "autoguidance 2": [hooks.autoguidance(worse, 2.0)],
    }
    for name, chosen in arms.items():
        images = draw(model, scenes, lambda _, chosen=chosen: chosen, guidance_scale=1.0)  # type: ignore[misc]
        stray = np.mean([len(judge.shapes(image)) > 2 for image in images])
        yield name, f"all right {share(eye, images, scenes, PAIR)}, stray shapes {stray:.0%}"


def high(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """At guidance 12, what keeps pictures from saturating: the mean saturation and what is right."""
    scenes = pairs(count)
    arms: dict[str, tuple[list[Hook], float]] = {
        "guidance 5": ([], 5.0),
        "guidance 12": ([], 12.0),
        "apg": ([hooks.apg(norm=4.0)], 12.0),
        "cfg_zero": ([hooks.cfg_zero()], 12.0),
        "cfg_plus_plus 0.6": ([hooks.cfg_plus_plus(0.6)], 12.0),
    }
    for name, (chosen, scale) in arms.items():
        images = draw(model, scenes, lambda _, chosen=chosen: chosen, guidance_scale=scale)  # type: ignore[misc]
        clipped = np.mean([((np.asarray(image) <= 1) | (np.asarray(image) >= 254)).mean() for image in images])
        yield name, f"all right {share(eye, images, scenes, PAIR)}, values at the rim of their range {clipped:.1%}"


def cads(model: Model, eye: judge.Eye, count: int) -> Iterator[tuple[str, str]]:
    """Pictures of one prompt differ more: the mean distance of two of them."""
    scenes = [Scene((Thing("star"),))] * count
    for scale in (0.0, 0.25, 1.0):
        images = draw(model, scenes, lambda _, s=scale: [hooks.cads(s)])  # type: ignore[misc]
        flat = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float().flatten(1) / 255
        backgrounds = eye.read(images)[:, 6]
        yield (
            f"scale {scale:g}",
            f"distance {torch.pdist(flat).mean() / flat.shape[1] ** 0.5:.3f}, {len(backgrounds.unique())} backgrounds, "
            f"kind {share(eye, images, scenes, [0])}",
        )


CLAIMS: dict[str, Claim] = {
    one.__name__: one
    for one in (attend_and_excite, layout, self_guidance, compose, negate, sega, freedom, dps, weakened, high, cads)
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.methods_guidance", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=32, help="captions for each figure")
    parser.add_argument("--claims", nargs="*", choices=list(CLAIMS), default=list(CLAIMS))
    given = parser.parse_args()
    eye, model = judge.trained_eye(), load(device="cpu")
    for name in given.claims:
        began = time.perf_counter()
        print(f"\n{name}: {(CLAIMS[name].__doc__ or '').strip()}", flush=True)
        for setting, figure in CLAIMS[name](model, eye, given.count):
            print(f"  {setting:<20} {figure}  [{time.perf_counter() - began:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
