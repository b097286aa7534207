"""Two judges that read pictures of the embedded model's world, each trained by this file on drawings alone.

They are of two kinds and had other drawings to learn from, so that nothing can have been tuned to the blind spots of
one: the first is a stack of strided convolutions, the second a residual network with pooling (He et al. 2015,
arXiv:1512.03385). The kept one of the second kind learned in 2,200 steps. Inner details are judged in `details.py`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ResNetConfig, ResNetModel

from sdkit.tiny import grammar
from sdkit.tiny.drawing import SIZE, draw_scene
from sdkit.tiny.grammar import CLASSES, COLOURS, KINDS, Scene, Thing

WEIGHTS = Path(__file__).parent / "judge.safetensors"  # delete it to have the judge trained anew
SECOND_WEIGHTS = Path(__file__).parent / "second.safetensors"
SEED, SECOND_SEED = 5_000_000, 7_000_000  # the judges' drawings have seeds from here on; the model's have others
STEPS, BATCH = 4000, 32
SAID = ["kind", "colour", "size", "kind 2", "colour 2", "size 2", "background", "place", "relation"]


class Eye(nn.Module):
    """Reads a picture (B, 3, 128, 128) in [-1, 1]: logits of the nine answers of `grammar.answers`, (B, sum(CLASSES)).

    Two things are named from the left or the top, as in `grammar.mirrored`.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128, 160)
        self.see = nn.Sequential(*halvings(widths), nn.Flatten())  # (B, 160 * 4 * 4)
        self.say = nn.Sequential(nn.Linear(160 * 16, 128), nn.ReLU(), nn.Linear(128, sum(CLASSES)))

    def forward(self, picture: Tensor) -> Tensor:
        logits: Tensor = self.say(self.see(picture))
        return logits

    @torch.no_grad()
    def read(self, pictures: Sequence[object]) -> Tensor:
        """The nine answers for PIL pictures, (B, 9)."""
        logits = self(as_input([np.asarray(picture) for picture in pictures]))
        return torch.stack([part.argmax(1) for part in torch.split(logits, CLASSES, dim=1)], dim=1)


def halvings(widths: Sequence[int]) -> list[nn.Module]:
    """Convolutions from one width to the next, each of which halves the side."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    return layers


class SecondEye(Eye):
    """Another kind of network for the same answers."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        widths = [32, 64, 128]
        self.see = ResNetModel(
            ResNetConfig(embedding_size=32, hidden_sizes=widths, depths=[1, 1, 1], layer_type="basic")
        )
        self.say = nn.Sequential(
            nn.Conv2d(widths[-1], 40, 1), nn.ReLU(), nn.Flatten(), nn.Linear(40 * (SIZE // 16) ** 2, 160), nn.ReLU(),
            nn.Linear(160, sum(CLASSES)),
        )  # fmt: skip

    def forward(self, picture: Tensor) -> Tensor:
        logits: Tensor = self.say(self.see(picture).last_hidden_state)
        return logits


def as_input(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def ramp(rgb: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The soft ramp over a picture (H, W, 3) that fits it best at some of its pixels, (H, W) bool."""
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]] / rgb.shape[0]
    slopes = np.stack([np.ones_like(x), x, y], -1)
    fitted, *_ = np.linalg.lstsq(slopes[where], rgb[where], rcond=None)
    ramp: np.ndarray = slopes @ fitted
    return ramp


def silhouette(picture: Image.Image, threshold: float = 20) -> np.ndarray:
    """Where a picture differs by `threshold` of 255 in some channel from its background, which reaches the rim and is
    flat or a soft ramp; with all that this encloses, (H, W) bool."""
    rgb = np.asarray(picture, dtype=np.float32)
    rim = np.ones(rgb.shape[:2], bool)
    rim[2:-2, 2:-2] = False
    differs = np.abs(rgb - ramp(rgb, rim)).max(-1) > threshold
    filled: np.ndarray = ndimage.binary_fill_holes(differs)
    return filled


def lesson(rng: random.Random) -> tuple[np.ndarray, list[int]]:
    """A drawing of anything, held-out pairs included, and its answers."""
    things = tuple(Thing(kind, rng.choice(COLOURS)) for kind in rng.sample(KINDS, rng.choice((1, 2))))
    seed = SEED + rng.getrandbits(40)
    scene = grammar.complete(Scene(things), seed)
    return np.asarray(draw_scene(scene, seed).image), grammar.answers(grammar.mirrored(scene))


def softened(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) slightly blurred, noised and recoloured, as generated ones are."""
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, soft, torch.rand(len(x), 1, 1, 1)) * (1 + 0.04 * torch.randn(len(x), 3, 1, 1))
    return x + 0.06 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


Kind, Reader = TypeVar("Kind", bound=nn.Module), TypeVar("Reader", bound=Eye)


def teach(eye: Reader, seed: int) -> Reader:
    """Train a judge from nothing on fresh drawings, each softened."""
    optimizer = torch.optim.AdamW(eye.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    rng = random.Random(seed)
    for _ in tqdm(range(STEPS), desc="training the judge"):
        pictures, truth = zip(*(lesson(rng) for _ in range(BATCH)), strict=True)
        x = softened(as_input(list(pictures)))
        answers = torch.tensor(truth)
        parts = zip(torch.split(eye(x), CLASSES, dim=1), answers.T, strict=True)
        loss = torch.stack([F.cross_entropy(part, answer) for part, answer in parts]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return eye.eval()


def trained_eye() -> Eye:
    """The first judge."""
    return kept(Eye, WEIGHTS, SEED, teach)


def trained_second_eye() -> SecondEye:
    return kept(SecondEye, SECOND_WEIGHTS, SECOND_SEED, teach)


def kept(kind: type[Kind], file: Path, seed: int, learn: Callable[[Kind, int], Kind]) -> Kind:
    """The judge that is kept in a file; trained first, which takes a while, where there is none."""
    if not file.exists():
        torch.manual_seed(seed)
        save_file(learn(kind(), seed).half().state_dict(), file)
    eye = kind()
    eye.load_state_dict(load_file(file))
    return eye.eval()


def check_on_drawings(eye: Eye, count: int = 1000) -> dict[str, float]:
    """The share of right answers on drawings that the judge has not seen, for each of the nine."""
    rng = random.Random(SEED - 1)
    right = torch.zeros(len(CLASSES))
    for _ in range(count // 50):
        pictures, truth = zip(*(lesson(rng) for _ in range(50)), strict=True)
        right += (eye.read(pictures) == torch.tensor(truth)).sum(0)
    return dict(zip(SAID, (right / (count // 50 * 50)).tolist(), strict=True))
