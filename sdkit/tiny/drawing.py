"""The pen of the embedded model's little world: true pictures of captions, antialiased, with masks and facts.

`draw("a red star on a blue background", seed=3)` gives the picture, `draw_with_facts` gives it with the mask of each
thing and everything that is true of it, which makes this world a ruler for what a model generates. It is longer than
other files because each of the twelve kinds has a shape of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sdkit.tiny.grammar import Scene, complete, parse

SIZE = 128  # pixels, width and height of every picture
OVERSAMPLING = 4  # drawn this many times larger, then averaged down: that is the antialiasing

RGB = tuple[int, int, int]
Point = tuple[float, float]

PAINTS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "orange": (243, 130, 30),
    "yellow": (250, 208, 36),
    "green": (44, 150, 66),
    "blue": (42, 92, 214),
    "purple": (128, 60, 178),
    "pink": (240, 108, 168),
    "brown": (122, 74, 40),
    "black": (32, 32, 36),
    "white": (250, 250, 250),
}
BACKDROPS: dict[str, RGB] = {
    "white": (244, 244, 242),
    "gray": (176, 178, 184),
    "black": (74, 76, 84),
    "blue": (184, 212, 246),
    "green": (192, 230, 190),
    "pink": (252, 214, 226),
    "yellow": (253, 241, 184),
    "purple": (214, 198, 242),
}
# Half extents in pixels, of a thing alone and of one of two.
EXTENTS: dict[str, tuple[float, float]] = {"small": (17, 20), "medium": (26, 29), "large": (35, 39)}
PAIR_EXTENTS: dict[str, tuple[float, float]] = {"small": (15, 17), "medium": (20, 22), "large": (25, 27)}
TOWARDS: dict[str, Point] = {  # direction from the centre of the picture
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "centre": (0, 0),
}
APART: dict[str, Point] = {  # direction from the second thing to the first
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}


@dataclass(frozen=True)
class Drawing:
    """A true picture and what is true of it."""

    image: Image.Image  # (128, 128) RGB
    masks: np.ndarray  # (things, 128, 128) float32 coverage, in [0, 1]
    scene: Scene  # complete: nothing left open


# ---------------------------------------------------------------------------------------------------------------------
# The pen: shapes in a unit square around each thing, x to the right and y down, both in [-1, 1]


def _mix(colour: RGB, other: RGB, share: float) -> RGB:
    r, g, b = (round(a + (c - a) * share) for a, c in zip(colour, other, strict=True))
    return r, g, b


INK: RGB = (38, 38, 44)
PAPER: RGB = (255, 255, 255)


class Pen:
    """Draws shapes of one thing onto a picture and its mask; `contour` grows every shape by that many pixels."""

    def __init__(
        self, image: Image.Image, mask: Image.Image, centre: Point, extent: float, colour: RGB, mirror: bool
    ) -> None:
        self.picture, self.mask = ImageDraw.Draw(image), ImageDraw.Draw(mask)
        self.centre, self.extent, self.mirror = centre, extent, mirror
        self.body = colour
        light = sum(colour) > 690
        self.shade = _mix(colour, INK, 0.22) if sum(colour) > 130 else _mix(colour, PAPER, 0.22)
        self.outline = _mix(colour, INK, 0.5 if not light else 0.4) if sum(colour) > 130 else _mix(colour, PAPER, 0.38)
        self.contour = 0.0

    def _at(self, x: float, y: float) -> Point:
        scale = self.extent * OVERSAMPLING
        return self.centre[0] * OVERSAMPLING + (-x if self.mirror else x) * scale, self.centre[
            1
        ] * OVERSAMPLING + y * scale

    def _inks(self, fill: RGB) -> Iterator[tuple[ImageDraw.ImageDraw, RGB | int]]:
        yield self.picture, self.outline if self.contour else fill
        yield self.mask, 255

    def polygon(self, points: Sequence[Point], fill: RGB) -> None:
        corners = [self._at(*point) for point in points]
        for target, ink in self._inks(fill):
            target.polygon(corners, fill=ink)
            if self.contour:
                around = [*corners, corners[0], corners[1]]
                target.line(around, fill=ink, width=round(2 * self.contour * OVERSAMPLING), joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB) -> None:
        cx, cy = self._at(x, y)
        grow = self.contour * OVERSAMPLING
        rx, ry = rx * self.extent * OVERSAMPLING + grow, ry * self.extent * OVERSAMPLING + grow
        for target, ink in self._inks(fill):
            target.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=ink)

    def line(self, points: Sequence[Point], width: float, fill: RGB) -> None:
        corners = [self._at(*point) for point in points]
        pixels = round(width * self.extent * OVERSAMPLING + 2 * self.contour * OVERSAMPLING)
        for target, ink in self._inks(fill):
            target.line(corners, fill=ink, width=pixels, joint="curve")


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _circle(pen: Pen) -> None:
    pen.ellipse(0, 0, 0.95, 0.95, pen.body)


def _square(pen: Pen) -> None:
    pen.polygon(_rectangle(-0.85, -0.85, 0.85, 0.85), pen.body)


def _triangle(pen: Pen) -> None:
    pen.polygon([(0, -0.95), (0.98, 0.82), (-0.98, 0.82)], pen.body)


def _star(pen: Pen) -> None:
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    radii = [1.05, 0.46] * 5
    pen.polygon([(r * math.cos(a), 0.05 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)], pen.body)


def _heart(pen: Pen) -> None:
    angles = [math.tau * i / 48 for i in range(48)]
    outline = [
        (
            16 * math.sin(a) ** 3 / 16.5,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) + 2.5) / 15.5,
        )
        for a in angles
    ]
    pen.polygon(outline, pen.body)


def _house(pen: Pen) -> None:
    pen.polygon(_rectangle(0.38, -0.85, 0.62, -0.2), pen.shade)
    pen.polygon(_rectangle(-0.76, -0.12, 0.76, 0.92), pen.body)
    pen.polygon([(-1, -0.1), (0, -0.95), (1, -0.1)], pen.shade)
    pen.polygon(_rectangle(-0.5, 0.3, -0.06, 0.92), pen.outline)
    pen.polygon(_rectangle(0.16, 0.18, 0.56, 0.56), (255, 240, 190))


def _tree(pen: Pen) -> None:
    pen.polygon([(-0.15, 0.2), (0.15, 0.2), (0.22, 0.98), (-0.22, 0.98)], (104, 66, 40))
    for x, y, r in ((-0.45, 0.02, 0.5), (0.45, 0.02, 0.5), (0, -0.42, 0.55)):
        pen.ellipse(x, y, r, r, pen.body)
    if not pen.contour:
        pen.ellipse(0, 0, 0.45, 0.4, pen.body)
        for x, y in ((-0.45, 0.1), (0.35, -0.1), (-0.1, -0.5)):
            pen.ellipse(x, y, 0.1, 0.1, pen.shade)


def _flower(pen: Pen) -> None:
    pen.line([(0, -0.2), (0, 0.98)], 0.13, (58, 140, 66))
    pen.polygon([(0, 0.85), (0.2, 0.5), (0.6, 0.4), (0.4, 0.75)], (58, 140, 66))
    for i in range(6):
        angle = math.tau * i / 6
        pen.ellipse(0.4 * math.cos(angle), -0.3 + 0.4 * math.sin(angle), 0.29, 0.29, pen.body)
    yellowish = pen.body[0] > 200 and pen.body[1] > 110 and pen.body[2] < 80
    pen.ellipse(0, -0.3, 0.24, 0.24, (150, 84, 30) if yellowish else (252, 205, 60))


def _fish(pen: Pen) -> None:
    pen.polygon([(0.4, 0), (1, -0.58), (0.86, 0), (1, 0.58)], pen.shade)
    pen.polygon([(-0.3, -0.35), (0.2, -0.78), (0.35, -0.25)], pen.shade)
    pen.ellipse(-0.2, 0, 0.78, 0.52, pen.body)
    pen.ellipse(-0.6, -0.12, 0.15, 0.15, PAPER)
    pen.ellipse(-0.63, -0.12, 0.08, 0.08, INK)
    pen.polygon([(-0.05, -0.05), (0.28, 0.12), (-0.05, 0.25)], pen.shade)


def _boat(pen: Pen) -> None:
    pen.line([(0, -0.98), (0, 0.3)], 0.09, (96, 64, 42))
    pen.polygon([(0.09, -0.92), (0.82, 0.14), (0.09, 0.14)], (246, 240, 226))
    pen.polygon([(-0.09, -0.72), (-0.66, 0.14), (-0.09, 0.14)], pen.body)
    pen.polygon([(-1, 0.26), (1, 0.26), (0.66, 0.88), (-0.66, 0.88)], pen.body)
    pen.polygon([(-0.92, 0.42), (0.92, 0.42), (0.86, 0.54), (-0.86, 0.54)], pen.shade)


def _mushroom(pen: Pen) -> None:
    pen.polygon([(-0.24, 0), (0.24, 0), (0.34, 0.92), (-0.34, 0.92)], (240, 226, 204))
    pen.polygon([(math.cos(a), 0.15 - 1.0 * math.sin(a)) for a in (math.pi * i / 24 for i in range(25))], pen.body)
    spots = (206, 206, 214) if sum(pen.body) > 690 else PAPER
    for x, y, r in ((-0.5, -0.2, 0.15), (0.05, -0.5, 0.18), (0.5, -0.12, 0.13)):
        pen.ellipse(x, y, r, r, spots)


def _cat(pen: Pen) -> None:
    for side in (-1, 1):
        pen.polygon([(side * 0.88, 0.1), (side * 0.8, -0.98), (side * 0.12, -0.4)], pen.body)
    pen.ellipse(0, 0.2, 0.92, 0.74, pen.body)
    for side in (-1, 1):
        pen.polygon([(side * 0.72, -0.3), (side * 0.68, -0.7), (side * 0.4, -0.45)], pen.shade)
        pen.ellipse(side * 0.36, 0.05, 0.17, 0.2, PAPER)
        pen.ellipse(side * 0.36, 0.07, 0.08, 0.15, INK)
        for y in (0.38, 0.52):
            pen.line([(side * 0.4, 0.42), (side * 0.84, y)], 0.05, pen.outline)
    pen.polygon([(-0.12, 0.34), (0.12, 0.34), (0, 0.48)], pen.outline)


SHAPES: dict[str, Callable[[Pen], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "house": _house,
    "tree": _tree,
    "flower": _flower,
    "fish": _fish,
    "boat": _boat,
    "mushroom": _mushroom,
    "cat": _cat,
}


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def draw(caption: str, seed: int = 0) -> Image.Image:
    """The true picture of a caption, (128, 128) RGB. What the caption leaves out is drawn by lot from the seed."""
    return draw_with_facts(caption, seed).image


def draw_with_facts(caption: str, seed: int = 0) -> Drawing:
    """The same picture with the mask of each thing and the complete scene."""
    return draw_scene(complete(parse(caption), seed), seed)


def draw_scene(scene: Scene, seed: int) -> Drawing:
    """Draw a complete scene; the seed decides what no caption can say (exact place and size, shade, direction)."""
    rng = random.Random(seed + 1_000_003)
    assert scene.background is not None
    canvas = _background(BACKDROPS[scene.background], rng)
    masks = []
    for thing, centre, extent in zip(scene.things, *_layout(scene, rng), strict=True):
        assert thing.colour is not None
        r, g, b = (min(max(channel + rng.randint(-7, 7), 0), 255) for channel in PAINTS[thing.colour])
        mask = Image.new("L", canvas.size)
        pen = Pen(canvas, mask, centre, extent, (r, g, b), mirror=rng.random() < 0.5)
        for pen.contour in (1.2, 0.0):  # first the contour of all shapes, then the shapes
            SHAPES[thing.kind](pen)
        masks.append(np.asarray(mask.reduce(OVERSAMPLING), dtype=np.float32) / 255)
    return Drawing(canvas.reduce(OVERSAMPLING), np.stack(masks), scene)


def _background(colour: RGB, rng: random.Random) -> Image.Image:
    """Flat in half of the pictures, otherwise softly lighter on one side."""
    side = SIZE * OVERSAMPLING
    strength, downwards, flip = rng.uniform(0.03, 0.06), rng.random() < 0.7, rng.random() < 0.3
    if rng.random() < 0.5:
        return Image.new("RGB", (side, side), colour)
    ramp = np.linspace(strength, -strength, SIZE, dtype=np.float32)[:: -1 if flip else 1]
    ramp = ramp[:, None] if downwards else ramp[None, :]
    shades = np.clip(np.asarray(colour, np.float32) * (1 + ramp[..., None]), 0, 255)
    picture = np.broadcast_to(shades, (SIZE, SIZE, 3)).round().astype(np.uint8)
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)


def _layout(scene: Scene, rng: random.Random) -> tuple[list[Point], list[float]]:
    """Centres and half extents in pixels. Things stay inside the picture and apart from each other."""
    middle = SIZE / 2
    sizes = EXTENTS if len(scene.things) == 1 else PAIR_EXTENTS
    extents = [rng.uniform(*sizes[thing.size or "medium"]) for thing in scene.things]
    along, across = rng.uniform(0, 1), [rng.uniform(-1, 1) for _ in scene.things]
    if len(scene.things) == 2:
        assert scene.relation is not None
        dx, dy = APART[scene.relation]
        centres = []
        for sign, extent, offset in zip((1, -1), extents, across, strict=True):
            distance = 31 + 3 * (along - 0.5)
            distance = min(distance, middle - 4 - extent)
            centres.append(
                (
                    middle + sign * dx * distance + abs(dy) * 10 * offset,
                    middle + sign * dy * distance + abs(dx) * 10 * offset,
                )
            )
        return centres, extents
    assert scene.place is not None
    dx, dy = TOWARDS[scene.place]
    room = middle - 4 - extents[0]  # farthest that the centre may move
    near = min(20.0, room)
    distance = near + along * (min(34.0, room) - near)
    jitter = min(5.0, room) if dx == dy == 0 else min(9.0, room)
    sideways = across[0] * jitter
    if dx == dy == 0:
        return [(middle + sideways, middle + (2 * along - 1) * jitter)], extents
    return [(middle + dx * distance + abs(dy) * sideways, middle + dy * distance + abs(dx) * sideways)], extents
