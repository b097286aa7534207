"""A judge of inner detail: whether cats have eyes, houses doors, fish fins, boats sails and mushrooms dots.

It learned to tell drawings with them from the same drawings without, cut out along their outline, so that size and
place do not count; and is checked on drawings that it has not seen.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.embedded.eyes import as_input, kept, silhouette, softened
from sdkit.tiny import drawing, grammar
from sdkit.tiny.drawing import Pen, draw_scene
from sdkit.tiny.grammar import COLOURS, HELD_OUT, Scene, Thing

WEIGHTS = Path(__file__).parent / "details.safetensors"  # delete it to have the judge trained anew
SEED = 9_000_000  # its drawings have seeds from here on
STEPS, BATCH = 1200, 32
SIDE = 64  # pixels of what is cut out
DETAILS: dict[str, tuple[str, Collection[int]]] = {  # what it is called, and which shapes of the kind it is
    "cat": ("eyes of cats", (4, 5, 9, 10)),
    "house": ("doors of houses", (3,)),
    "fish": ("fins of fish", (1, 5)),
    "boat": ("sails of boats", (1, 2)),
    "mushroom": ("dots of mushrooms", (2, 3, 4)),
}


class DetailEye(nn.Module):
    """Sees things cut out, (B, 3, 64, 64) in [-1, 1]: logits of their detail being there, (B)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((3, 24, 48, 96, 128)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]  # halves the side
        self.see = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.see(x)[:, 0]
        return logits

    @torch.no_grad()
    def sees(self, pictures: list[Image.Image]) -> Tensor:
        """Whether the detail is there, (B) bool."""
        return self(as_input([cut_out(picture) for picture in pictures])) > 0


def cut_out(picture: Image.Image) -> np.ndarray:
    """A thing with a little around it, (64, 64, 3)."""
    rows, columns = np.nonzero(silhouette(picture))
    box = (0, 0, *picture.size)
    if len(rows):
        box = (columns.min() - 2, rows.min() - 2, columns.max() + 3, rows.max() + 3)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=inside(box, picture.size)))


def inside(box: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])


def drawn(scene: Scene, seed: int, *, whole: bool) -> Image.Image:
    """A drawing of one thing, its detail left out if it is not to be whole."""
    kind = scene.things[0].kind
    shape = drawing.SHAPES[kind]

    def without(pen: Pen) -> None:
        number, inks = itertools.count(), pen._inks
        with patch.object(pen, "_inks", lambda fill: () if next(number) in DETAILS[kind][1] else inks(fill)):
            shape(pen)

    with patch.dict(drawing.SHAPES, {kind: shape if whole else without}):
        return draw_scene(scene, seed).image


def lesson(rng: random.Random) -> tuple[str, np.ndarray, bool]:
    """A kind, a drawing of it cut out, and whether its detail is there."""
    kind, whole, seed = rng.choice(list(DETAILS)), rng.random() < 0.5, SEED + rng.getrandbits(40)
    scene = grammar.complete(Scene((Thing(kind, rng.choice(COLOURS)),)), seed)
    return kind, cut_out(drawn(scene, seed, whole=whole)), whole


def teach(eye: DetailEye, seed: int) -> DetailEye:
    """Train the judge from nothing on fresh drawings."""
    optimizer = torch.optim.AdamW(eye.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    rng = random.Random(seed)
    for _ in tqdm(range(STEPS), desc="training the judge of details"):
        _, things, whole = zip(*(lesson(rng) for _ in range(BATCH)), strict=True)
        logits = eye(softened(as_input(list(things))))
        loss = F.binary_cross_entropy_with_logits(logits, torch.tensor(whole, dtype=torch.float32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return eye.eval()


def trained_detail_eye() -> DetailEye:
    return kept(DetailEye, WEIGHTS, SEED, teach)


def check_on_drawings(eye: DetailEye, count: int = 500) -> float:
    """The share of right answers on drawings that the judge has not seen."""
    rng = random.Random(SEED - 1)
    _, things, whole = zip(*(lesson(rng) for _ in range(count)), strict=True)
    with torch.no_grad():
        return float(((eye(as_input(list(things))) > 0) == torch.tensor(whole)).float().mean())


def large_things() -> dict[str, list[Scene]]:
    """By kind, one large thing in each colour that was trained on, before five backgrounds."""
    rng = random.Random(4)
    return {
        kind: [
            Scene((Thing(kind, colour, "large"),), rng.choice(grammar.BACKGROUNDS))
            for colour in COLOURS
            if (colour, kind) not in HELD_OUT
            for _ in range(5)
        ]
        for kind in DETAILS
    }
