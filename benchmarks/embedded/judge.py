"""How well the embedded model does what it is told: `python -m benchmarks.embedded.judge`.

Two small classifiers (`eyes.py`), trained on drawings alone and first checked on drawings that they have not seen, read
what is in the pictures that the model makes of a fixed, stratified set of captions, and a third looks for inner details
(`details.py`). Where words look is held against the masks of drawings. Everything comes with its 95 % interval.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from benchmarks.embedded import details
from benchmarks.embedded.eyes import (
    SEED,
    Eye,
    SecondEye,
    as_input,
    check_on_drawings,
    ramp,
    silhouette,
    trained_eye,
    trained_second_eye,
)
from sdkit import Event, Stage, contact_sheet, image_to_image, load, on, text_to_image
from sdkit.model.model import Model
from sdkit.tiny import grammar, train
from sdkit.tiny.drawing import SIZE, draw_scene
from sdkit.tiny.grammar import BACKGROUNDS, COLOURS, HELD_OUT, KINDS, PLACES, Scene, Thing
from sdkit.unet.scope import Scope

README = Path(__file__).parents[2] / "sdkit" / "tiny" / "README.md"
BETWEEN = "<!-- judge -->", "<!-- /judge -->"  # where the table goes in the README
CHANGED = "What a strength of image to image does to drawings of one thing that are to change their colour:"


# ---------------------------------------------------------------------------------------------------------------------
# Captions, each with the positions in `grammar.answers` that must come out as said


def _captions(scenes: Sequence[Scene]) -> list[tuple[str, Scene]]:
    rng = random.Random(0)
    return [(grammar.caption_of(scene, rng), scene) for scene in scenes]


def seen_pairs() -> list[Scene]:
    pairs = [(colour, kind) for kind in KINDS for colour in COLOURS if (colour, kind) not in HELD_OUT]
    return [Scene((Thing(kind, colour),), BACKGROUNDS[i % 8]) for i, (colour, kind) in enumerate(pairs)]


def held_out_pairs() -> list[Scene]:
    return [Scene((Thing(kind, colour),), BACKGROUNDS[i % 8]) for i, (colour, kind) in enumerate(sorted(HELD_OUT))]


def full_captions() -> list[Scene]:
    """One thing with its size, its place and the background, all of them said."""
    rng = random.Random(1)
    scenes = [grammar.random_scene(rng) for _ in range(120)]
    sizes, places = ("small", "large"), PLACES
    return [
        replace(s, things=(replace(s.things[0], size=sizes[i % 2]),), place=places[i % 5]) for i, s in enumerate(scenes)
    ]


def pairs_of_things() -> list[Scene]:
    rng = random.Random(2)
    scenes = [grammar.random_scene(rng, things=2) for _ in range(120)]
    return [replace(s, things=tuple(replace(t, size=None) for t in s.things)) for s in scenes]


@dataclass(frozen=True)
class Measure:
    """A share of right pictures: the captions that are asked, the answers that must be right, and the target."""

    name: str
    scenes: Callable[[], list[Scene]]
    parts: list[int]
    target: float


MEASURES = [
    Measure("one thing, seen pairs: kind and colour", seen_pairs, [0, 1], 0.98),
    Measure("one thing, held-out pairs: kind and colour", held_out_pairs, [0, 1], 0.97),
    Measure("background, where said", full_captions, [6], 0.99),
    Measure("size, where said", full_captions, [2], 0.965),
    Measure("place, where said", full_captions, [7], 0.99),
    Measure("two things: both kinds, both colours and the relation", pairs_of_things, [0, 1, 3, 4, 8], 0.97),
]


@dataclass(frozen=True)
class Answers:
    """What a model drew when it was asked."""

    truth: Tensor  # (n, 9) as said
    read: Tensor  # (n, 9) as the judge reads the pictures
    stray: Tensor  # (n,) bool
    images: list[Image.Image]


def ask(model: Model, eye: Eye, scenes: list[Scene], count: int, **settings: Any) -> Answers:
    """At least `count` captions of these scenes, as often each, in batches of 16."""
    asked = _captions(scenes * -(-count // len(scenes)))
    images: list[Image.Image] = []
    for start in tqdm(range(0, len(asked), 16), leave=False):
        captions = [caption for caption, _ in asked[start : start + 16]]
        images += text_to_image(captions, model=model, seed=start, **settings).images
    images = [picture.resize((SIZE, SIZE)) for picture in images]
    truth = torch.tensor([grammar.answers(grammar.mirrored(scene)) for _, scene in asked])
    stray = torch.tensor(
        [len(shapes(picture)) > len(scene.things) for picture, (_, scene) in zip(images, asked, strict=True)]
    )
    return Answers(truth, eye.read(images), stray, images)


def right(measure: Measure, answers: Answers) -> tuple[int, int]:
    """How many pictures are right, of how many."""
    same = (answers.truth == answers.read)[:, measure.parts].all(1)
    return int(same.sum()), len(same)


def shapes(picture: Image.Image, threshold: float = 20, least: int = 12) -> list[int]:
    """Areas in pixels of what stands apart from the background, which reaches the rim and is flat or a soft ramp.

    A shape is whole with what it encloses. It differs by `threshold` of 255 in some channel and has `least` pixels.
    """
    labels, _ = ndimage.label(silhouette(picture, threshold))
    return [int(area) for area in np.bincount(labels.ravel())[1:] if area >= least]


def background_spread(picture: Image.Image) -> float | None:
    """The standard deviation of a background's pixels, of 255, about the soft ramp that they may be; None where there
    is too little background to tell."""
    rgb = np.asarray(picture, dtype=np.float32)
    outside = ~ndimage.binary_dilation(silhouette(picture), iterations=4)
    if outside.sum() < 500:
        return None
    return float((rgb - ramp(rgb, outside))[outside].std(0).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Measures without captions to follow: the autoencoder, and where words look


def autoencoder_psnr(model: Model, count: int = 256) -> list[float]:
    """Of unseen drawings, one figure each, in dB."""
    found = []
    for seed in range(SEED, SEED + count):
        x = as_input([np.asarray(draw_scene(train.scene(seed), seed).image)])
        restored = model.decode(model.encode(x).chunk(2, dim=1)[0] * model.vae.config.scaling_factor)
        found.append(train.psnr(restored, x))
    return found


@torch.no_grad()
def where_words_look(model: Model, things: int, count: int) -> tuple[list[float], list[bool]]:
    """For each noun in captions of drawings, which are noised to timesteps 200, 400, 600 and 800 in turn and seen once
    by the U-Net: how well its attention covers its thing, and with two whether it is stronger there than on the other.

    Attention is the mean over the heads and layers at 16x16; the cover is the intersection over union with the true
    mask (the cells that are covered at least half) at the threshold that is best.
    """
    seen: list[Tensor] = []

    @on(Stage.ATTENTION)
    def watch(event: Event) -> None:
        if event.value.shape[2] == 16 * 16:
            seen.append(event.value[0].mean(0))  # (16 * 16, L)

    scope = Scope(model.unet, [watch])
    covers, own = [], []
    for i in range(count):
        rng, seed = random.Random(SEED + i), SEED + i
        scene = grammar.random_scene(rng, things)
        drawn = draw_scene(scene, seed)
        ids = model.tokenize([grammar.caption_of(scene, rng)])
        x0 = model.encode(as_input([np.asarray(drawn.image)])).chunk(2, dim=1)[0]
        t = torch.tensor([200 + 200 * (i % 4)])
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
        seen.clear()
        with scope.at(t=int(t)):
            scope.unet(model.scheduler.add_noise(x0, noise, t), t, model.encode_text(ids)[0])
        attention = torch.stack(seen).mean(0)  # (16 * 16, L)
        masks = F.avg_pool2d(torch.from_numpy(drawn.masks)[None], SIZE // 16)[0].flatten(1)  # (things, 16 * 16)
        for thing, mask, other in zip(scene.things, masks, masks.flip(0), strict=True):
            token = (ids[0] == model.tokenizer.convert_tokens_to_ids(f"{thing.kind}</w>")).nonzero()[0, 0]
            heat = attention[:, token]
            covers.append(best_cover(heat, mask >= 0.5))
            if things == 2:
                own.append(bool((heat * mask).sum() / mask.sum() > (heat * other).sum() / other.sum()))
    return covers, own


def best_cover(heat: Tensor, mask: Tensor) -> float:
    """The best intersection over union, over all thresholds, of a map and a mask of the same shape."""
    above = heat.flatten() >= torch.unique(heat)[:, None]  # (thresholds, cells)
    mask = mask.flatten()
    return float(((above & mask).sum(1) / (above | mask).sum(1)).max())


def seconds_of_a_picture(model: Model, repeats: int = 5) -> float:
    """Median time of one picture at 20 steps, the model loaded and warm."""
    times = []
    for seed in range(repeats + 1):
        began = time.perf_counter()
        text_to_image("a red star", model=model, num_inference_steps=20, seed=seed)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def interval(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927)."""
    share, spread = right / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / of + spread / (4 * of))
    return middle - half, middle + half


def share(right: int, of: int) -> str:
    low, high = interval(right, of)
    return f"{right / of:.1%} | {low:.1%} to {high:.1%}"


def mean(values: Sequence[float], digits: int, unit: str = "") -> str:
    middle, half = statistics.mean(values), 1.96 * statistics.stdev(values) / sqrt(len(values))
    return f"{middle:.{digits}f}{unit} | {middle - half:.{digits}f} to {middle + half:.{digits}f} | | | {len(values)}"


def main_table(model: Model, eye: Eye, second: SecondEye, count: int, sheets: Path | None) -> str:
    """Every measure at the model's own steps and guidance, by both judges where it is a matter of reading."""
    rows = [
        "| measure | measured | 95 % interval | second judge | 95 % interval | of | target |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {scenes: ask(model, eye, scenes(), count) for scenes in dict.fromkeys(m.scenes for m in MEASURES)}
    again = {
        scenes: torch.cat([second.read(answers.images[i : i + 50]) for i in range(0, len(answers.images), 50)])
        for scenes, answers in found.items()
    }
    for m in MEASURES:
        (first, of), (other, _) = (
            right(m, replace(found[m.scenes], read=read)) for read in (found[m.scenes].read, again[m.scenes])
        )
        rows.append(f"| {m.name} | {share(first, of)} | {share(other, of)} | {of} | {100 * m.target:g}% |")
    rows += detail_rows(model, eye)
    stray = torch.cat([answers.stray for answers in found.values()])
    rows.append(f"| pictures with a stray shape | {share(int(stray.sum()), len(stray))} | | | {len(stray)} | 3% |")
    spread = [s for s in map(background_spread, found[full_captions].images) if s is not None]
    rows.append(f"| spread of a background's pixels about a ramp, of 255 | {mean(spread, 2)} | |")
    rows.append(f"| autoencoder, PSNR of unseen drawings | {mean(autoencoder_psnr(model), 2, ' dB')} | 32 dB |")
    covers, _ = where_words_look(model, 1, count)
    both, own = where_words_look(model, 2, count // 2)
    rows.append(f"| a noun's attention on its thing, one thing: IoU | {mean(covers, 3)} | 0.88 |")
    rows.append(f"| the same, two things | {mean(both, 3)} | |")
    rows.append(
        f"| two things: attention stronger on its own thing | {share(sum(own), len(own))} | | | {len(own)} | 90% |"
    )
    rows.append(f"| seconds for a picture of 20 steps | {seconds_of_a_picture(model):.2f} | | | | 5 | 0.8 |")
    if sheets is not None:
        for scenes, answers in found.items():
            contact_sheet(answers.images[:24], columns=8).quantize(256, kmeans=3).save(
                sheets / f"{scenes.__name__}.png"
            )
    return "\n".join(rows)


def detail_rows(model: Model, eye: Eye) -> list[str]:
    """How often the inner details of large things are there, and of each kind."""
    of_details = details.trained_detail_eye()
    found = {
        details.DETAILS[kind][0]: of_details.sees(ask(model, eye, scenes, len(scenes)).images)
        for kind, scenes in details.large_things().items()
    }
    found = {"inner detail of large things": torch.cat(list(found.values())), **found}
    return [f"| {name} | {share(int(one.sum()), len(one))} | | | {len(one)} | 90% |" for name, one in found.items()]


def sweep_table(model: Model, eye: Eye, count: int) -> str:
    """The same captions at other guidance scales and numbers of steps."""
    short = [MEASURES[0], MEASURES[1], MEASURES[-1]]
    rows = [
        "| guidance | steps | seen pairs | held-out pairs | two things | stray shapes |",
        "|---|---|---|---|---|---|",
    ]
    steps, guidance = model.num_inference_steps, model.guidance_scale
    for g, n in [*((g, steps) for g in (1.0, 2.0, guidance, 8.0)), *((guidance, n) for n in (5, 10, 50))]:
        found = [ask(model, eye, m.scenes()[:count], count, guidance_scale=g, num_inference_steps=n) for m in short]
        stray = torch.cat([answers.stray for answers in found])
        shares = [right(m, answers) for m, answers in zip(short, found, strict=True)]
        cells = [
            f"{a / of:.0%} ({low:.0%} to {high:.0%})"
            for a, of in [*shares, (int(stray.sum()), len(stray))]
            for low, high in [interval(a, of)]
        ]
        rows.append(f"| {g:g} | {n} | {' | '.join(cells)} |")
    return "\n".join(rows)


def variation_table(model: Model, eye: Eye, count: int) -> str:
    """Drawings of one thing, asked for in another colour by image to image, at several strengths."""
    rng, wanted = random.Random(3), []
    for seed in range(SEED, SEED + count):
        drawn = draw_scene(grammar.random_scene(random.Random(seed)), seed)
        kind, before = drawn.scene.things[0].kind, drawn.scene.things[0].colour
        colour = rng.choice([c for c in COLOURS if c != before and (c, kind) not in HELD_OUT])
        wanted.append((drawn.image, kind, colour, drawn.scene.place))
    pictures, prompts = [picture for picture, *_ in wanted], [f"a {colour} {kind}" for _, kind, colour, _ in wanted]
    said = torch.tensor(
        [[grammar.answers(Scene((Thing(k, c),), place=p))[i] for i in (0, 1, 7)] for _, k, c, p in wanted]
    )
    rows = ["| strength | recoloured | same kind | same place |", "|---|---|---|---|"]
    for strength in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        made = []
        for i in range(0, count, 16):
            result = image_to_image(pictures[i : i + 16], prompts[i : i + 16], strength=strength, model=model, seed=i)
            made += result.images
        kind, colour, place = (eye.read(made)[:, [0, 1, 7]] == said).float().mean(0).tolist()
        rows.append(f"| {strength} | {colour:.0%} | {kind:.0%} | {place:.0%} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded.judge", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", help="what to judge: a folder in diffusers' layout (default: the embedded model)")
    parser.add_argument("--count", type=int, default=500, help="captions for each measure, at the least")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets of the pictures")
    given = parser.parse_args()
    eye, second, model = trained_eye(), trained_second_eye(), load()
    if given.model is not None:  # drawn by the same steps and guidance
        model = replace(model, pipeline=load(given.model).pipeline, name=given.model)
    checked = {"The first judge": check_on_drawings(eye), "The second": check_on_drawings(second)}
    said = "\n\n".join(
        f"{name} on 1,000 unseen drawings: " + ", ".join(f"{part} {x:.1%}" for part, x in found.items()) + "."
        for name, found in checked.items()
    )
    of_details = details.check_on_drawings(details.trained_detail_eye())
    said += f"\n\nThe judge of inner details is right on {of_details:.1%} of 500 unseen drawings."
    print(said)
    if min(checked["The first judge"].values()) < 0.995:
        raise SystemExit("a judge that is right on fewer than 99.5 % of drawings judges nothing; train it anew")
    text = main_table(model, eye, second, given.count, given.sheets)
    print(text, flush=True)
    sweep = sweep_table(model, eye, min(given.count, 108))
    print(sweep, flush=True)
    variation = variation_table(model, eye, min(given.count, 96))
    print(variation)
    if given.model is None:
        readme = README.read_text(encoding="utf-8")
        before, rest = readme.split(BETWEEN[0])
        after = rest.split(BETWEEN[1])[1]
        found = "\n\n".join((said, text, sweep, CHANGED, variation))
        README.write_text(f"{before}{BETWEEN[0]}\n{found}\n{BETWEEN[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
