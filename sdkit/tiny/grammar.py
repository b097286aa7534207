"""The grammar of captions that the embedded model understands: words to scenes and back.

A caption names one thing with its place, "a small red fish at the top on a gray background", or two with their
relation, "a red house left of a green tree". It may leave out everything but the kinds.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

KINDS = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "house",
    "tree",
    "flower",
    "fish",
    "boat",
    "mushroom",
    "cat",
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
BACKGROUNDS = ("white", "gray", "black", "blue", "green", "pink", "yellow", "purple")
SIZES = ("small", "medium", "large")  # a caption says small or large
PLACES = ("left", "right", "top", "bottom", "centre")
RELATIONS = ("left of", "right of", "above", "below")  # of the first thing to the second
HELD_OUT: frozenset[tuple[str, str]] = frozenset(  # (colour, kind), never trained on: they measure generalisation
    {
        ("brown", "circle"),
        ("pink", "square"),
        ("white", "triangle"),
        ("purple", "star"),
        ("green", "heart"),
        ("blue", "house"),
        ("orange", "tree"),
        ("black", "flower"),
        ("red", "fish"),
        ("yellow", "boat"),
        ("blue", "mushroom"),
        ("green", "cat"),
    }
)
SYNONYMS = {"grey": "gray", "center": "centre", "middle": "centre", "little": "small", "big": "large"}


@dataclass(frozen=True)
class Thing:
    """One object. None stands for what a caption leaves open."""

    kind: str
    colour: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Scene:
    """What a caption says: one thing with its place, or two with their relation. None is what it leaves open."""

    things: tuple[Thing, ...]
    background: str | None = None
    place: str | None = None  # one of PLACES, for one thing
    relation: str | None = None  # one of RELATIONS, for two things


def _either(words: Sequence[str]) -> str:
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_BACKGROUND = re.compile(
    rf"\b(?:on|with|against) (?:an? )?{_either(BACKGROUNDS)} background\b"
    rf"|\b(?:an? )?{_either(BACKGROUNDS)} background with\b"
)
_PLACE = re.compile(rf"\b(?:on|at|in|to) the {_either(PLACES)}(?: side)?\b(?! of)")
_RELATION = re.compile(r"\b(?:to the |on the )?(left of|right of|above|below|over|under)\b")
_FILLERS = frozenset(["a", "an", "the", "one", "picture", "drawing", "of", "there", "is"])


def parse(caption: str) -> Scene:
    """Read a caption of this grammar, such as "a small red fish at the top on a gray background".

    Raises:
        ValueError: the caption has a word or an order of words that the grammar does not have.
    """
    text = " ".join(SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+", caption.lower()))
    background = place = relation = None
    if match := _BACKGROUND.search(text):
        background = match[1] or match[2]
        text = text[: match.start()] + text[match.end() :]
    if match := _PLACE.search(text):
        place = match[1]
        text = text[: match.start()] + text[match.end() :]
    parts = [text]
    if match := _RELATION.search(text):
        relation = {"over": "above", "under": "below"}.get(match[1], match[1])
        parts = [text[: match.start()], text[match.end() :]]
        if place is not None:
            raise ValueError(f"caption {caption!r} gives both a place and a relation: say one of them")
    return Scene(tuple(_parse_thing(part, caption) for part in parts), background, place, relation)


def _parse_thing(text: str, caption: str) -> Thing:
    words = [word for word in text.split() if word not in _FILLERS]
    size = words.pop(0) if words and words[0] in ("small", "large") else None
    colour = words.pop(0) if words and words[0] in COLOURS else None
    if len(words) != 1 or words[0] not in KINDS:
        raise ValueError(
            f"caption {caption!r} is outside the grammar at {' '.join(words) or 'its end'!r}: "
            f"expected [small|large] [{'|'.join(COLOURS)}] and one of {', '.join(KINDS)}"
        )
    return Thing(words[0], colour, size)


def caption_of(scene: Scene, rng: random.Random) -> str:
    """Say a scene in words, in one of many wordings. What is None goes unsaid, and so does the size "medium"."""
    subject = _noun_phrase(scene.things[0], rng)
    if scene.relation is not None:
        horizontal = scene.relation in ("left of", "right of")
        wordings = (scene.relation, f"to the {scene.relation}") if horizontal else (scene.relation,)
        subject += f" {rng.choice(wordings)} {_noun_phrase(scene.things[1], rng)}"
    if scene.place is not None:
        preposition = {"left": "on", "right": "on", "centre": "in"}.get(scene.place, "at")
        subject += f" {preposition} the {scene.place}"
    if scene.background is not None:
        behind = f"a {scene.background} background"
        subject = rng.choice((f"{subject} on {behind}",) * 3 + (f"{subject} with {behind}", f"{behind} with {subject}"))
    return rng.choice(("", "", "", "a picture of ", "a drawing of ")) + subject


def _noun_phrase(thing: Thing, rng: random.Random) -> str:
    size = {"small": rng.choice(("small", "small", "little")), "large": rng.choice(("large", "large", "big"))}
    words = [size.get(thing.size or "", ""), thing.colour or "", thing.kind]
    phrase = " ".join(word for word in words if word)
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def complete(scene: Scene, seed: int) -> Scene:
    """Draw by lot what a scene leaves open. Only a caption that names a held-out pair gets one: chance never does.

    The same seed leaves the same things to chance, so two captions that differ in a word differ in that alone.
    """
    rng = random.Random(seed)
    things = []
    for thing in scene.things:
        colours = [colour for colour in COLOURS if (colour, thing.kind) not in HELD_OUT]
        colour, size = rng.choice(colours), rng.choice(SIZES)
        things.append(Thing(thing.kind, thing.colour or colour, thing.size or size))
    background, place, relation = rng.choice(BACKGROUNDS), rng.choice(PLACES), rng.choice(RELATIONS)
    if len(things) == 2:
        return Scene(tuple(things), scene.background or background, None, scene.relation or relation)
    return Scene(tuple(things), scene.background or background, scene.place or place, None)


def random_scene(rng: random.Random, things: int = 1) -> Scene:
    """A complete scene without held-out pairs, every fact of it equally likely."""
    kinds = rng.sample(KINDS, things)
    return complete(Scene(tuple(Thing(kind) for kind in kinds)), rng.getrandbits(32))


def leave_out(scene: Scene, rng: random.Random) -> Scene:
    """Forget parts of a scene at random, as captions do: each part goes unsaid in some of them."""

    def maybe(value: str | None, probability: float) -> str | None:
        return value if rng.random() < probability else None

    things = tuple(replace(t, colour=maybe(t.colour, 0.93), size=maybe(t.size, 0.6)) for t in scene.things)
    return Scene(things, maybe(scene.background, 0.75), maybe(scene.place, 0.6), scene.relation)


def mirrored(scene: Scene) -> Scene:
    """The same scene, told from the left or the top: "a cat right of a fish" is "a fish left of a cat"."""
    swapped = {"right of": "left of", "below": "above"}.get(scene.relation or "")
    return replace(scene, things=scene.things[::-1], relation=swapped) if swapped else scene


CLASSES = [1 + len(x) for x in (KINDS, COLOURS, SIZES, KINDS, COLOURS, SIZES, BACKGROUNDS, PLACES, RELATIONS)]


def answers(scene: Scene) -> list[int]:
    """What is said of a scene as nine class numbers, each below its number in `CLASSES`; 0 stands for what is not.

    Kind, colour and size of the first thing, the same of the second, background, place, relation.
    """

    def number(value: str | None, among: Sequence[str]) -> int:
        return 0 if value is None else 1 + among.index(value)

    answers = []
    for i in range(2):
        thing = scene.things[i] if i < len(scene.things) else None
        answers.append(number(thing.kind if thing else None, KINDS))
        answers.append(number(thing.colour if thing else None, COLOURS))
        answers.append(number(thing.size if thing else None, SIZES))
    answers.append(number(scene.background, BACKGROUNDS))
    answers.append(number(scene.place, PLACES))
    answers.append(number(scene.relation, RELATIONS))
    return answers
