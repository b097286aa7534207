"""A judge of inner detail: whether cats have eyes, houses doors, fish fins, boats sails and mushrooms dots.

It learned to tell drawings with them from drawings without, cut out along their outline, so that size and place do not
count, and smeared by noise on their latents, as generated pictures are. It is checked on drawings that it has not seen.
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

from benchmarks.embedded.eyes import as_input, halvings, kept, silhouette, softened
from sdkit import decode, encode, load
from sdkit.tiny import drawing, grammar
from sdkit.tiny.drawing import Pen, draw_scene
from sdkit.tiny.grammar import COLOURS, HELD_OUT, Scene, Thing

WEIGHTS = Path(__file__).parent / "details.safetensors"  # delete it to have the judge trained anew
SEED = 9_000_000  # its drawings have seeds from here on
LESSONS, SMEARED = 4000, 0.4
STEPS, BATCH = 1500, 32
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
        layers = halvings((3, 24, 48, 96, 128))
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
    (width, height), box = picture.size, None
    if len(rows):
        left, top = max(columns.min() - 2, 0), max(rows.min() - 2, 0)
        box = (left, top, min(columns.max() + 3, width), min(rows.max() + 3, height))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))


def drawn(scene: Scene, seed: int, *, whole: bool) -> drawing.Drawing:
    """A drawing of one thing, its detail left out if it is not to be whole."""
    kind = scene.things[0].kind
    shape = drawing.SHAPES[kind]

    def without(pen: Pen) -> None:
        number, inks = itertools.count(), pen._inks
        with patch.object(pen, "_inks", lambda fill: () if next(number) in DETAILS[kind][1] else inks(fill)):
            shape(pen)

    with patch.dict(drawing.SHAPES, {kind: shape if whole else without}):
        return draw_scene(scene, seed)


def lessons(rng: random.Random, count: int, most: float) -> tuple[Tensor, Tensor]:
    """Drawings of large things cut out (n, 3, 64, 64), and whether their detail is there, (n) bool.

    Each is what the embedded autoencoder makes of its latents and of noise on those of the thing, of a spread of up to
    `most`: so details are smeared, as they are in generated pictures.
    """
    model, drawings, whole = load(device="cpu"), [], []
    for _ in range(count):
        kind, seed = rng.choice(list(DETAILS)), SEED + rng.getrandbits(40)
        whole.append(rng.random() < 0.5)
        scene = grammar.complete(Scene((Thing(kind, rng.choice(COLOURS), "large"),)), seed)
        drawings.append(drawn(scene, seed, whole=whole[-1]))
    things = []
    for i in range(0, count, 16):
        some = drawings[i : i + 16]
        z = encode([one.image for one in some], model=model).mean  # (16, 4, 16, 16)
        where = F.max_pool2d(torch.from_numpy(np.stack([one.masks for one in some])), drawing.SIZE // z.shape[-1])
        z = z + most * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z) * where
        things += [cut_out(picture) for picture in decode(z, model=model)]
    return as_input(things), torch.tensor(whole)


def teach(eye: DetailEye, seed: int) -> DetailEye:
    """Train the judge from nothing."""
    optimizer = torch.optim.AdamW(eye.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    things, whole = lessons(random.Random(seed), LESSONS, SMEARED)
    for step in tqdm(range(STEPS), desc="training the judge of details"):
        chosen = torch.randint(LESSONS, (BATCH,))
        logits = eye(softened(things[chosen].flip(-1) if step % 2 else things[chosen]))
        loss = F.binary_cross_entropy_with_logits(logits, whole[chosen].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return eye.eval()


def trained_detail_eye() -> DetailEye:
    return kept(DetailEye, WEIGHTS, SEED, teach)


@torch.no_grad()
def check_on_drawings(eye: DetailEye, count: int = 500, most: float = 0.0) -> float:
    """The share of right answers on drawings that the judge has not seen, smeared as in `lessons`."""
    torch.manual_seed(0)
    things, whole = lessons(random.Random(SEED - 1), count, most)
    return float(((eye(things) > 0) == whole).float().mean())


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
