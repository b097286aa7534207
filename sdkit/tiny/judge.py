"""How well the embedded model does what it is told: `python -m sdkit.tiny.judge`.

A small classifier, trained by this file on drawings alone and first checked on drawings that it has not seen, reads
what is in the pictures that the model makes of a fixed, stratified set of captions. Shares come with 95 % Wilson
intervals.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from sdkit import load, text_to_image
from sdkit.model import Model
from sdkit.tiny import grammar
from sdkit.tiny.drawing import draw_scene
from sdkit.tiny.grammar import BACKGROUNDS, CLASSES, COLOURS, HELD_OUT, KINDS, PLACES, Scene, Thing

WEIGHTS = Path(__file__).parent / "judge.safetensors"  # delete it to have the judge trained anew
README = Path(__file__).parent / "README.md"
SEED = 5_000_000  # the judge's drawings have seeds from here on; the model's have others
STEPS, BATCH = 1800, 32
BETWEEN = "<!-- judge -->", "<!-- /judge -->"  # where the table goes in the README
SAID = ["kind", "colour", "size", "kind 2", "colour 2", "size 2", "background", "place", "relation"]


class Eye(nn.Module):
    """Reads a picture (B, 3, 128, 128) in [-1, 1]: logits of the nine answers of `grammar.answers`, (B, sum(CLASSES)).

    Two things are named from the left or the top, as in `grammar.mirrored`.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128, 160)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]  # halves the side
        self.see = nn.Sequential(*layers, nn.Flatten())  # (B, 160 * 4 * 4)
        self.say = nn.Sequential(nn.Linear(160 * 16, 128), nn.ReLU(), nn.Linear(128, sum(CLASSES)))

    def forward(self, picture: Tensor) -> Tensor:
        logits: Tensor = self.say(self.see(picture))
        return logits

    @torch.no_grad()
    def read(self, pictures: Sequence[object]) -> Tensor:
        """The nine answers for PIL pictures, (B, 9)."""
        logits = self(_as_input([np.asarray(picture) for picture in pictures]))
        return torch.stack([part.argmax(1) for part in torch.split(logits, CLASSES, dim=1)], dim=1)


def _as_input(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _lesson(rng: random.Random) -> tuple[np.ndarray, list[int]]:
    """A drawing of anything, held-out pairs included, and its answers."""
    things = tuple(Thing(kind, rng.choice(COLOURS)) for kind in rng.sample(KINDS, rng.choice((1, 2))))
    seed = SEED + rng.getrandbits(40)
    scene = grammar.complete(Scene(things), seed)
    return np.asarray(draw_scene(scene, seed).image), grammar.answers(grammar.mirrored(scene))


def train_eye() -> Eye:
    """Train a judge from nothing on fresh drawings, slightly blurred, noised and recoloured as generated ones are."""
    torch.manual_seed(SEED)
    eye = Eye()
    optimizer = torch.optim.AdamW(eye.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    rng = random.Random(SEED)
    for _ in tqdm(range(STEPS), desc="training the judge"):
        pictures, truth = zip(*(_lesson(rng) for _ in range(BATCH)), strict=True)
        x = _as_input(list(pictures))
        soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        x = torch.lerp(x, soft, torch.rand(BATCH, 1, 1, 1)) * (1 + 0.04 * torch.randn(BATCH, 3, 1, 1))
        x = x + 0.06 * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(x)
        answers = torch.tensor(truth)
        parts = zip(torch.split(eye(x), CLASSES, dim=1), answers.T, strict=True)
        loss = torch.stack([F.cross_entropy(part, answer) for part, answer in parts]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return eye.eval()


def trained_eye() -> Eye:
    """The judge that is kept in a file; trained first, in some minutes, where there is none."""
    if not WEIGHTS.exists():
        save_file(train_eye().half().state_dict(), WEIGHTS)
    eye = Eye()
    eye.load_state_dict(load_file(WEIGHTS))
    return eye.eval()


def check_on_drawings(eye: Eye, count: int = 1000) -> dict[str, float]:
    """The share of right answers on drawings that the judge has not seen, for each of the nine."""
    rng = random.Random(SEED - 1)
    right = torch.zeros(len(CLASSES))
    for _ in range(count // 50):
        pictures, truth = zip(*(_lesson(rng) for _ in range(50)), strict=True)
        right += (eye.read(pictures) == torch.tensor(truth)).sum(0)
    return dict(zip(SAID, (right / (count // 50 * 50)).tolist(), strict=True))


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


MEASURES: dict[str, tuple[Callable[[], list[Scene]], list[int]]] = {
    "one thing, seen pairs: kind and colour": (seen_pairs, [0, 1]),
    "one thing, seen pairs: kind": (seen_pairs, [0]),
    "one thing, seen pairs: colour": (seen_pairs, [1]),
    "one thing, held-out pairs: kind and colour": (held_out_pairs, [0, 1]),
    "background, where said": (full_captions, [6]),
    "size, where said": (full_captions, [2]),
    "place, where said": (full_captions, [7]),
    "two things: both kinds, both colours and the relation": (pairs_of_things, [0, 1, 3, 4, 8]),
}


def judge(
    model: Model, eye: Eye, count: int, num_inference_steps: int | None = None, guidance_scale: float | None = None
) -> dict[str, tuple[int, int]]:
    """For each measure: how many pictures are right, of how many (at least `count`)."""
    found: dict[Callable[[], list[Scene]], tuple[Tensor, Tensor]] = {}
    for scenes_of, _ in MEASURES.values():
        if scenes_of not in found:
            scenes = scenes_of()
            asked = _captions(scenes * -(-count // len(scenes)))
            said = [grammar.answers(grammar.mirrored(scene)) for _, scene in asked]
            seen = []
            for start in tqdm(range(0, len(asked), 16), desc=scenes_of.__name__.replace("_", " "), leave=False):
                captions = [caption for caption, _ in asked[start : start + 16]]
                result = text_to_image(
                    captions,
                    model=model,
                    seed=start,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                )
                seen.append(eye.read(result.images))
            found[scenes_of] = torch.tensor(said), torch.cat(seen)
    results = {}
    for name, (scenes_of, parts) in MEASURES.items():
        truth, answers = found[scenes_of]
        right = (truth[:, parts] == answers[:, parts]).all(1)
        results[name] = int(right.sum()), len(right)
    return results


def interval(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927)."""
    share, spread = right / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / of + spread / (4 * of))
    return middle - half, middle + half


def table(results: dict[str, tuple[int, int]]) -> str:
    rows = ["| measure | right | 95 % interval | pictures |", "|---|---|---|---|"]
    for name, (right, of) in results.items():
        low, high = interval(right, of)
        rows.append(f"| {name} | {right / of:.1%} | {low:.1%} to {high:.1%} | {of} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sdkit.tiny.judge", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="what to judge: a folder in diffusers' layout (default: the embedded model)")
    parser.add_argument("--count", type=int, default=500, help="captions for each measure, at the least")
    given = parser.parse_args()
    eye = trained_eye()
    checked = check_on_drawings(eye)
    print("the judge on unseen drawings:", ", ".join(f"{name} {share:.2%}" for name, share in checked.items()))
    text = table(judge(load(given.model), eye, given.count))
    print(text)
    if given.model is None:
        readme = README.read_text(encoding="utf-8")
        before, rest = readme.split(BETWEEN[0])
        after = rest.split(BETWEEN[1])[1]
        README.write_text(f"{before}{BETWEEN[0]}\n{text}\n{BETWEEN[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
