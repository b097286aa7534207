"""What published methods do to the embedded model, whose truth is known: `python -m benchmarks.claims`.

Each is asked for the claim that its paper makes, in arms that draw the same captions from the same seeds, eight at a
time. What eight pictures gave is kept in a file at once, so that the command goes on where it was stopped and can be
run on parts; the table is made of whatever there is, with 95 % intervals. A judge that was trained on drawings alone
reads the pictures. The file is longer than others because every claim is measured in a way of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

import sdkit
from benchmarks.embedded import judge
from sdkit import Stage, hooks, load, on, text_to_image
from sdkit.events import Hook
from sdkit.measure import psnr
from sdkit.model.model import Model
from sdkit.pictures import to_pixels
from sdkit.tiny import grammar
from sdkit.tiny.drawing import BACKDROPS, SIZE, Drawing, draw_scene
from sdkit.tiny.grammar import BACKGROUNDS, KINDS, Scene, Thing

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
BETWEEN = "<!-- claims -->", "<!-- /claims -->"
KEPT = Path("runs") / "claims.jsonl"
PART = 8  # captions that are drawn at once
STEPS = 10  # which the model needs little more of, and which halve the time
KIND, BOTH, PAIR, BACKGROUND = [0], [0, 3], [0, 1, 3, 4, 8], [6]  # answers of `grammar.answers` that must be right
TOLD = {"colour": 1, "background": 6, "place": 7}  # of those answers, what a probe is to tell
Box = tuple[float, float, float, float]
Figures = dict[str, list[float]]  # of each caption of a part, by what was measured
Ask = Callable[["Lab", Any, int], Figures]
CLAIMS: dict[str, tuple[dict[str, Any], Ask]] = {}  # by name: the arms, and what measures a part under one of them


@dataclass(frozen=True, eq=False)
class Lab:
    """The model, and who reads its pictures."""

    model: Model
    eye: judge.Eye

    def draw(self, scenes: Sequence[Scene], part: int, *chosen: Hook, **settings: Any) -> sdkit.Result:
        return text_to_image(
            [grammar.caption_of(scene, random.Random(PART * part + i)) for i, scene in enumerate(scenes)],
            **{"model": self.model, "seed": PART * part, "num_inference_steps": STEPS, "hooks": chosen, **settings},
        )

    def right(self, images: Sequence[Image.Image], wanted: Sequence[Scene], parts: list[int]) -> list[float]:
        """Whether each picture has these answers right."""
        truth = torch.tensor([grammar.answers(grammar.mirrored(scene)) for scene in wanted])
        return (self.eye.read(images) == truth)[:, parts].all(1).float().tolist()

    @cached_property
    def worse(self) -> Model:
        return worse_than(self.model)

    @cached_property
    def redder(self) -> Tensor:
        """What the middle block gives for a red thing less what it gives for a blue one, (c, h, w): the mean over the
        steps and one of each kind."""
        seen = []
        gather = on(Stage.BLOCK, layer="mid_block")(lambda event: seen.append(event.value))
        red, blue = ([f"a {colour} {kind}" for kind in KINDS] for colour in ("red", "blue"))
        seeds = [*range(len(KINDS)), *range(len(KINDS))]
        text_to_image([*red, *blue], model=self.model, seed=seeds, num_inference_steps=STEPS, hooks=[gather])
        of_red, of_blue = torch.stack(seen).mean(0)[-len(seeds) :].chunk(2)  # (12, c, h, w) each
        return (of_red - of_blue).mean(0)

    @cached_property
    def probes(self) -> dict[str, dict[str, dict[int, Tensor]]]:
        """By layer, probes of what the finished pictures of 160 other captions had."""
        traces, read = [], []
        for part in range(1000, 1020):
            traces.append(sdkit.Trace(["block"]))
            read.append(self.eye.read(self.draw(singles(part), part, traces[-1]).images))
        found = torch.cat(read)  # (160, 9)
        layers = ("mid_block", "up_blocks.1")
        return {
            layer: {what: hooks.fit_probe(traces, found[:, answer], layer) for what, answer in TOLD.items()}
            for layer in layers
        }


def asks(**arms: Any) -> Callable[[Ask], Ask]:
    """Put a claim among the others, with its arms by name, where _ stands for a space."""

    def put(ask: Ask) -> Ask:
        CLAIMS[ask.__name__] = {name.replace("_", " "): arm for name, arm in arms.items()}, ask
        return ask

    return put


def worse_than(model: Model) -> Model:
    """The same model with noise on the weights of its U-Net."""
    worse = Model(copy.copy(model.pipeline), "worse", model.num_inference_steps, model.guidance_scale)
    worse.pipeline.unet = copy.deepcopy(model.unet)
    generator = torch.Generator().manual_seed(0)
    for weight in worse.pipeline.unet.parameters():
        weight.data += 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    return worse


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for


def singles(part: int) -> list[Scene]:
    """One thing each, with nothing said but its kind: no kind twice."""
    return [Scene((Thing(KINDS[(PART * part + i) % len(KINDS)]),)) for i in range(PART)]


def pairs(part: int) -> list[Scene]:
    """Two things each, with their colours and how they lie."""
    known = judge.pairs_of_things()
    return [known[(PART * part + i) % len(known)] for i in range(PART)]


def kinds_of(scenes: Sequence[Scene]) -> list[str]:
    return sorted({thing.kind for scene in scenes for thing in scene.things})


def drawings(part: int) -> list[Drawing]:
    """True pictures of one thing, which the model has not seen, everything drawn by lot but its kind."""
    first = judge.SEED + 100 * part
    return [draw_scene(grammar.complete(scene, first + i), first + i) for i, scene in enumerate(singles(part))]


def box_of(mask: np.ndarray) -> Box:
    """Left, top, right and bottom of what a mask (H, W) shows, as shares of the picture."""
    y, x = np.nonzero(mask)
    return (x.min() / SIZE, y.min() / SIZE, (x.max() + 1) / SIZE, (y.max() + 1) / SIZE) if len(x) else (0, 0, 0, 0)


def iou(a: Box, b: Box) -> float:
    """The intersection over union of two boxes."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    within = max(wide, 0.0) * max(high, 0.0)
    return within / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - within)


def thing_in(image: Image.Image) -> np.ndarray:
    """The largest shape of a picture, (H, W) bool: what is off by a few specks is not a wider box."""
    parts, count = ndimage.label(judge.silhouette(image))
    sizes = np.bincount(parts.flat, minlength=2)[1:]
    return (parts == 1 + sizes.argmax()) & (count > 0)


def middle_off(image: Image.Image, x: float, y: float) -> float:
    """How far the middle of the thing is from a point, as a share of the picture."""
    left, top, right, bottom = box_of(thing_in(image))
    return float(np.hypot((left + right) / 2 - x, (top + bottom) / 2 - y))


# ---------------------------------------------------------------------------------------------------------------------
# One claim each, those first that are known by their numbers


@asks(without=0.0, with_it=20.0)
def attend_and_excite(lab: Lab, scale: float, part: int) -> Figures:
    """Both things are there, at guidance 1.5."""
    scenes = pairs(part)
    hook = hooks.attend_and_excite(*kinds_of(scenes), scale=scale, thresholds={})
    images = lab.draw(scenes, part, hook, guidance_scale=1.5).images
    return {"both kinds": lab.right(images, scenes, BOTH), "all right": lab.right(images, scenes, PAIR)}


@asks(without=None, scale_300={"scale": 300.0})
def layout(lab: Lab, given: dict[str, Any] | None, part: int) -> Figures:
    """The thing lies in the box of a drawing, of which no word speaks."""
    scenes = singles(part)
    boxes = {one.scene.things[0].kind: box_of(one.masks[0] > 0.5) for one in drawings(part)}
    images = lab.draw(scenes, part, *([] if given is None else [hooks.layout(boxes, **given)])).images
    found = [iou(box_of(thing_in(one)), box) for one, box in zip(images, boxes.values(), strict=True)]
    return {"IoU of boxes": found, "kind right": lab.right(images, scenes, KIND)}


@asks(blending=0.0, RePaint=None, DPS_and_blending=1.0)
def inpainting(lab: Lab, scale: float | None, part: int) -> Figures:
    """The lower half of a thing is painted again under the drawing's own words, in 20 steps: PSNR in the hole."""
    true = drawings(part)
    mask = torch.zeros(PART, 1, SIZE // 8, SIZE // 8)
    for one, hole in zip(true, mask[:, 0], strict=True):
        left, top, right, bottom = (round(8 * 16 * side) / 8 for side in box_of(one.masks[0] > 0.5))
        hole[int((top + bottom) / 2) : int(bottom) + 1, int(left) : int(right) + 1] = 1
    latents = sdkit.encode([one.image for one in true], model=lab.model).mean
    if scale is None:
        chosen = [hooks.repaint(mask, latents, seed=part)]
    else:
        chosen = [hooks.dps(lambda x0: x0 * (1 - mask), latents * (1 - mask), scale), hooks.blend(mask, latents)]
    made = lab.draw([one.scene for one in true], part, *chosen, num_inference_steps=2 * STEPS)
    x, y = (torch.cat([to_pixels(one) for one in many]) for many in ([one.image for one in true], made.images))
    hole = F.interpolate(mask, (SIZE, SIZE)).expand_as(x)
    error = ((x - y).square() * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))
    return {"PSNR in the hole, dB": (10 * torch.log10(4 / error)).tolist()}


@asks(autoencoder_alone=False, edit_friendly=True)
def edit_friendly(lab: Lab, inverted: bool, part: int) -> Figures:
    """The noises of a drawing lead back to it at guidance 5, as near as the autoencoder comes."""
    true = drawings(part)
    latents, noises = sdkit.encode([one.image for one in true], model=lab.model).mean, []
    if inverted:
        for _ in range(2):  # the first finds the noises, the second goes by them
            hook, scenes = hooks.edit_friendly(latents, noises, seed=part), [one.scene for one in true]
            latents_back = lab.draw(scenes, part, hook, scheduler="ddim", guidance_scale=5.0).latents
    x = torch.cat([to_pixels(one.image) for one in true])
    return {"PSNR, dB": psnr(x, lab.model.decode(latents_back if inverted else latents))}


@asks(without=False, StyleAligned=True)
def style_aligned(lab: Lab, aligned: bool, part: int) -> Figures:
    """Four things that are drawn together, with nothing said but their kinds, have colours nearer to one another: the
    root mean square distance to their mean, of 255."""
    scenes, found = singles(part), defaultdict(list)
    for first in range(0, PART, 4):
        four = scenes[first : first + 4]
        images = lab.draw(four, 2 * part + first // 4, *([hooks.style_aligned()] if aligned else [])).images
        pixels, masks = [np.asarray(one, np.float32) for one in images], [judge.silhouette(one) for one in images]
        for what, wanted in (("things", masks), ("backgrounds", [~one for one in masks])):
            colours = np.stack([each[one].mean(0) for each, one in zip(pixels, wanted, strict=True) if one.any()])
            found[f"spread of {what}"].append(float(np.sqrt(((colours - colours.mean(0)) ** 2).sum(1).mean())))
        found["kind right"] += lab.right(images, four, KIND)
    return dict(found)


@asks(without=0.0, with_it=0.1)
def self_guidance(lab: Lab, scale: float, part: int) -> Figures:
    """The thing goes to the middle of the upper left, which no word names."""
    scenes = singles(part)
    images = lab.draw(
        scenes, part, *(hooks.self_guidance(kind, scale, centre=(0.25, 0.25)) for kind in kinds_of(scenes))
    ).images
    far = [middle_off(one, 0.25, 0.25) for one in images]
    return {"off by, of the picture": far, "kind right": lab.right(images, scenes, KIND)}


@asks(without=0.0, with_it=1.0, strong=3.0)
def h_space(lab: Lab, scale: float, part: int) -> Figures:
    """Things whose colour no word says become red, along what the middle block gives for red things less for blue."""
    scenes = singles(part)
    images = lab.draw(scenes, part, hooks.h_space(lab.redder, scale)).images
    red = [replace(scene, things=(replace(scene.things[0], colour="red"),)) for scene in scenes]
    return {"red": lab.right(images, red, [TOLD["colour"]]), "kind right": lab.right(images, scenes, KIND)}


@asks(without=0.0, with_it=1.0)
def compose(lab: Lab, weight: float, part: int) -> Figures:
    """A second prompt says the background."""
    scenes, background = singles(part), BACKGROUNDS[part % len(BACKGROUNDS)]
    hook = hooks.compose(f"a picture with a {background} background", weights=[weight])
    return behind(lab, scenes, lab.draw(scenes, part, hook).images, background)


@asks(without=0.0, with_it=-3.0)
def negate(lab: Lab, weight: float, part: int) -> Figures:
    """A prompt of negative weight, "a picture with a white background", takes white backgrounds away."""
    scenes = singles(part)
    hook = hooks.compose("a picture with a white background", weights=[weight])
    return behind(lab, scenes, lab.draw(scenes, part, hook).images, "white")


@asks(without=0.0, with_it=3.0)
def sega(lab: Lab, scale: float, part: int) -> Figures:
    """A concept says the background, on from step 1."""
    scenes, background = singles(part), BACKGROUNDS[part % len(BACKGROUNDS)]
    hook = hooks.sega(f"a picture with a {background} background", scale=scale, warmup=1, threshold=0.5)
    return behind(lab, scenes, lab.draw(scenes, part, hook).images, background)


@asks(without=0.0, with_it=0.2)
def freedom(lab: Lab, scale: float, part: int) -> Figures:
    """A loss on the rim of the decoded picture makes the background blue, without a word."""
    rim = torch.ones(SIZE, SIZE)
    rim[12:-12, 12:-12] = 0
    blue = torch.tensor(BACKDROPS["blue"]).view(1, 3, 1, 1) / 127.5 - 1

    def loss(pictures: Tensor) -> Tensor:
        return ((pictures - blue).square() * rim).sum()

    scenes = singles(part)
    images = lab.draw(scenes, part, hooks.freedom(loss, scale, decoded=True)).images
    return behind(lab, scenes, images, "blue")


def behind(lab: Lab, scenes: list[Scene], images: list[Image.Image], background: str) -> Figures:
    """Whether this is the background, and the kinds are still those that were asked for."""
    wanted = [replace(scene, background=background) for scene in scenes]
    return {
        f"background {'white' if background == 'white' else 'right'}": lab.right(images, wanted, BACKGROUND),
        "kind right": lab.right(images, scenes, KIND),
    }


def judged(lab: Lab, scenes: list[Scene], images: list[Image.Image]) -> Figures:
    """Whether two things are as they were said, and nothing else is there."""
    stray = [float(len(judge.shapes(image)) > 2) for image in images]
    return {"all right": lab.right(images, scenes, PAIR), "stray shapes": stray}


@asks(
    without=lambda _: [],
    pag=lambda _: [hooks.pag(2.0)],
    seg=lambda _: [hooks.seg(3.0)],
    sag=lambda _: [hooks.sag(0.75)],
    autoguidance=lambda lab: [hooks.autoguidance(lab.worse, 2.0)],
)
def without_guidance(lab: Lab, make: Callable[[Lab], list[Hook]], part: int) -> Figures:
    """Without classifier-free guidance, two things are right more often when led away from a weakened model."""
    scenes = pairs(part)
    return judged(lab, scenes, lab.draw(scenes, part, *make(lab), guidance_scale=1.0).images)


@asks(
    without=list,
    apg=lambda: [hooks.apg(norm=1.0)],
    apg_without_momentum=lambda: [hooks.apg(norm=1.0, momentum=0.0)],
    cfg_zero=lambda: [hooks.cfg_zero()],
    cfg_plus_plus=lambda: [hooks.cfg_plus_plus(0.6)],
    dynamic_threshold=lambda: [hooks.dynamic_threshold()],
    guidance_interval=lambda: [hooks.guidance_interval(200, 800)],
)
def at_guidance_12(lab: Lab, make: Callable[[], list[Hook]], part: int) -> Figures:
    """At guidance 12 pictures stay right, and do not saturate: the share of values at the rim of their range."""
    scenes = pairs(part)
    images = lab.draw(scenes, part, *make(), guidance_scale=12.0).images
    pixels = [np.asarray(image) for image in images]
    return {
        **judged(lab, scenes, images),
        "values at the rim": [float(((one <= 1) | (one >= 254)).mean()) for one in pixels],
    }


@asks(
    without=list,
    free_u=lambda: [hooks.free_u(b1=1.1, b2=1.1)],
    deep_cache=lambda: [hooks.deep_cache()],
    t_gate=lambda: [hooks.t_gate(5)],
    restart=lambda: [hooks.restart(3, 6, seed=1)],
)
def as_good(lab: Lab, make: Callable[[], list[Hook]], part: int) -> Figures:
    """Two things are as they were said: what saves time does not harm, what improves pictures helps."""
    scenes = pairs(part)
    return judged(lab, scenes, lab.draw(scenes, part, *make()).images)


@asks(without=0.0, with_it=0.25, strong=1.0)
def cads(lab: Lab, scale: float, part: int) -> Figures:
    """Pictures of one prompt differ more: the root mean square distance of two of them, of 1."""
    scenes = [singles(part)[0]] * PART
    images = lab.draw(scenes, part, hooks.cads(scale)).images
    flat = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float().flatten(1) / 255
    return {
        "distance": [float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)],
        "kind right": lab.right(images, scenes, KIND),
    }


@asks(words_alone=None, keep_layout="layout", keep_self_attention="self", plug_and_play="pnp", masactrl="masactrl")
def keeping_shapes(lab: Lab, how: str | None, part: int) -> Figures:
    """Another colour in the words leaves the thing where it was: the intersection over union of both outlines."""
    kinds = [scene.things[0].kind for scene in singles(part)]
    red, blue = ([Scene((Thing(kind, colour),), "white") for kind in kinds] for colour in ("orange", "purple"))
    stages = {"layout": ["tokens", "attention"], "self": ["self_attention"], "pnp": ["block", "query", "key"]}
    trace = sdkit.Trace(stages.get(how or "", ["latent"]))
    first = lab.draw(red, part, trace).images
    if how == "masactrl":  # which goes by the first picture of a run
        both = [
            text_to_image(
                [grammar.caption_of(one, random.Random(PART * part + i)) for one in (red[i], blue[i])],
                model=lab.model,
                seed=[PART * part + i] * 2,
                num_inference_steps=STEPS,
                hooks=[hooks.masactrl()],
            ).images
            for i in range(PART)
        ]
        first, images = (list(side) for side in zip(*both, strict=True))
    else:
        makers = {
            "layout": hooks.keep_layout,
            "self": hooks.keep_self_attention,
            "pnp": hooks.plug_and_play,
        }
        images = lab.draw(blue, part, *([makers[how](trace)] if how else [])).images
    outlines = [(thing_in(a), thing_in(b)) for a, b in zip(first, images, strict=True)]
    return {
        "IoU of outlines": [float((a & b).sum() / max((a | b).sum(), 1)) for a, b in outlines],
        "colour right": lab.right(images, blue, [1]),
    }


@asks(guidance_alone=0, null_text=10)
def null_text(lab: Lab, steps: int, part: int) -> Figures:
    """A drawing comes back from its inversion at guidance 5, one of each part: PSNR."""
    (one, *_) = drawings(part)
    words = grammar.caption_of(one.scene, random.Random(part))
    way = sdkit.invert(one.image, words, model=lab.model, num_inference_steps=2 * STEPS)
    made = text_to_image(
        words,
        model=lab.model,
        latents=way.latents,
        scheduler="ddim",
        num_inference_steps=2 * STEPS,
        guidance_scale=5.0,
        hooks=[hooks.null_text(way, steps)] if steps else [],
    )
    return {"PSNR, dB": psnr(to_pixels(one.image), to_pixels(made.image))}


@asks(middle_block="mid_block", last_up_block_but_one="up_blocks.1")
def linear_probe(lab: Lab, layer: str, part: int) -> Figures:
    """A linear probe of a block, fitted to 160 other pictures, tells what the finished picture will have of which no
    word speaks, at steps 0, 2, 5 and 9 of 10."""
    told: dict[str, Tensor] = {}
    readers = [
        hooks.probe(
            {step: weights[step] for step in (0, 2, 5, 9)},
            lambda step, scores, what=what: told.update({f"{what} at step {step}": scores.argmax(1)}),  # type: ignore[misc]
            layer,
        )
        for what, weights in lab.probes[layer].items()
    ]
    truth = lab.eye.read(lab.draw(singles(part), part, *readers).images)
    return {what: (found == truth[:, TOLD[what.split()[0]]]).float().tolist() for what, found in told.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Parts, and the table of what they gave


def measured(kept: Path) -> dict[tuple[str, str, int], Figures]:
    """What is in the file, by claim, arm and part."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    return {(one["claim"], one["arm"], one["part"]): one["figures"] for one in map(json.loads, lines)}


def measure(claims: Sequence[str], count: int, kept: Path) -> None:
    """Measure what the file lacks, part by part, so that every arm has about as many at any time."""
    known, lab = measured(kept), Lab(load(device="cpu"), judge.trained_eye())
    kept.parent.mkdir(parents=True, exist_ok=True)
    for name in claims:
        arms, ask = CLAIMS[name]
        for part in range(-(-count // PART)):
            for arm, given in arms.items():
                if (name, arm, part) not in known:
                    figures = ask(lab, given, part)
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"claim": name, "arm": arm, "part": part, "figures": figures}) + "\n")


def told(values: Sequence[float]) -> str:
    """A mean with its 95 % interval: Wilson's of a share, the normal one of other numbers."""
    middle = statistics.mean(values)
    if set(values) <= {0.0, 1.0}:
        low, high = judge.interval(int(sum(values)), len(values))
        return f"{middle:.0%} ({low:.0%} to {high:.0%})"
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    digits = 2 if middle < 10 else 1
    return f"{middle:.{digits}f} ({middle - half:.{digits}f} to {middle + half:.{digits}f})"


def table(kept: Path) -> str:
    """A line for each claim, and below it a row for each arm."""
    gathered: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (name, arm, _), figures in sorted(measured(kept).items(), key=lambda one: one[0][2]):
        for what, values in figures.items():
            gathered[name, arm][what] += values
    rows = ["| claim | arm | measured | of |", "|---|---|---|---|"]
    for name, (arms, ask) in CLAIMS.items():
        for arm in arms:
            if found := gathered.get((name, arm)):
                says = f"`{name}`: {' '.join((ask.__doc__ or '').split())}" if arm == next(iter(arms)) else ""
                figures = ", ".join(f"{what} {told(values)}" for what, values in found.items())
                rows.append(f"| {says} | {arm} | {figures} | {max(map(len, found.values()))} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=104, help="captions for each arm, in eights (default: 104)")
    parser.add_argument("--claims", nargs="*", choices=list(CLAIMS), default=list(CLAIMS))
    parser.add_argument("--kept", type=Path, default=KEPT, help=f"what was measured so far (default: {KEPT})")
    parser.add_argument("--page", action="store_true", help="write the table of all that is kept into docs/methods.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    measure(given.claims, given.count, given.kept)
    made = table(given.kept)
    print(made)
    if given.page:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BETWEEN[0])
        PAGE.write_text(f"{before}{BETWEEN[0]}\n{made}\n{BETWEEN[1]}{rest.split(BETWEEN[1])[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
