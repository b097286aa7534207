"""Which word painted which pixel: `AttentionMaps`, the hook that keeps the cross-attention of a run (as DAAM did, Tang
et al. 2022, arXiv:2210.04885)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkit.events import Event, Stage
from sdkit.looks import Look, columns, grid, rows
from sdkit.settings import size_in_bytes
from sdkit.words import Word, find, heard, places_of

Grid = tuple[int, int]  # (h, w) of a layer
FEW = 8  # chosen tokens up to which reading them one by one costs less than reading all
SMALL, PILE = 2**17, 2**23  # queries of a layer that waits to be worked out together with others, and of all that wait
GROUP = 2**19  # queries that are worked out in one operation, so that what comes between stays in the cache


class AttentionMaps:
    """A hook that keeps where each word looked: the cross-attention of one run, without changing it.

    Args:
        words: keep these alone, which costs nearly nothing; by default every token. Several words in a row may be given
            as one, and a number is the place of a token.
        layers: keep each layer by itself instead of the mean over those of one resolution: True for all, or names of
            some or what these begin with, such as "mid_block".
        heads: keep each head by itself instead of their mean, and so each layer.
        negative: keep those of the negative prompts too.
        each_step: keep every step; False adds them up, so that memory stays what one step takes: 1.6 MB for all 77
            tokens of Stable Diffusion 1.5 at 512x512.
        budget: how much memory the maps may take, as "256MB" or in bytes. When it is reached, every second of the kept
            steps is dropped and fewer are kept from there on, which a warning says once.

    Example:
        >>> maps = sdkit.AttentionMaps()
        >>> result = sdkit.text_to_image("a red star", seed=7, hooks=[maps])
        >>> maps.heat("star").shape
        torch.Size([128, 128])
    """

    stages = frozenset({Stage.ATTENTION})

    def __init__(
        self,
        words: Iterable[str | int] | None = None,
        *,
        layers: bool | Iterable[str] = False,
        heads: bool = False,
        negative: bool = False,
        each_step: bool = True,
        budget: str | int = "256MB",
    ) -> None:
        if isinstance(words, str) or isinstance(layers, str):
            given = words if isinstance(words, str) else layers
            raise TypeError(f"words and layers are lists; put {given!r} in brackets")
        self.chosen = None if words is None else list(words)
        self.layered = heads or layers is not False
        self.prefixes = ("",) if isinstance(layers, bool) else tuple(layers)
        self.heads, self.negative, self.each_step = heads, negative, each_step
        self.budget = size_in_bytes(budget)
        self.every = 1
        self.steps: list[int] = []  # that were kept, or added up
        self._origin: Any = None
        self._heard: tuple[list[list[Word]], list[list[Word]]] = ([], [])  # of the negative prompts, of the prompts
        self._columns: list[int] = []  # the tokens that are kept, if not all
        self._pile: list[tuple[int, Look]] = []  # small layers of the last steps, not yet worked out
        self._piled = 0
        self._step = 0
        self._names: list[str] = []  # of the layers that are kept
        self._found: dict[
            int | None, dict[Grid | str, Tensor]
        ] = {}  # sums over layers: (rows, heads or 1, h*w, tokens)
        self._many: dict[Grid | str, int] = {}  # how many heads were joined in each
        self._members: dict[Grid | str, list[str]] = {}  # the layers that each of these is the sum of
        self._grids: dict[Grid | str, Grid] = {}

    # -----------------------------------------------------------------------------------------------------------------
    # Recording

    def __call__(self, event: Event) -> None:
        """Outside the U-Net it only sees to it that there is one run."""
        if self._origin is not None and event.origin is not self._origin:
            raise ValueError("these attention maps already hold a run; record another run with another AttentionMaps")
        self._origin = event.origin

    def choose(self, layers: list[str], step: int | None, origin: Any) -> list[str]:
        """A step begins inside the U-Net: the layers that are kept of it."""
        if origin is None:
            raise ValueError("attention maps need a run to belong to; for a U-Net alone, use a hook on Stage.ATTENTION")
        if not self._heard[1]:
            self._origin = origin
            self._listen()
            self._names = [name for name in layers if name.startswith(self.prefixes)]
        if not self._names:
            raise ValueError(
                f"no layer of cross-attention begins with {' or '.join(map(repr, self.prefixes))}; there are "
                f"{_listed(layers) or 'none'}"
            )
        last = self._found.get(self._step, {}) if self.each_step else {}  # it has ended
        last.update({name: one.cpu() for name, one in last.items()})
        self._thin()
        if step is None or step % self.every:
            return []
        self._step = step
        self.steps.append(step)
        return self._names

    def _thin(self) -> None:
        """Drop every second step where the budget says so."""
        while self.each_step and _bytes(self._found) > self.budget and len(self.steps) > 1:
            if self.every == 1:
                warnings.warn(
                    f"the attention maps reached their budget of {self.budget:,} bytes and keep fewer steps from here "
                    "on; give a larger budget, chosen words or each_step=False",
                    stacklevel=2,
                )
            self.every *= 2
            self.steps = [step for step in self.steps if step % self.every == 0]
            self._found = {step: kept for step, kept in self._found.items() if step in self.steps}

    def _listen(self) -> None:
        """The words of the run, and which tokens are kept of them."""
        self._heard = heard(self._origin)
        prompts = [words for half in self._heard[0 if self.negative else 1 :] for words in half]
        columns = {word for word in self.chosen or () if isinstance(word, int)}
        for word in self.chosen or ():
            if isinstance(word, str):
                places = [place for words in prompts for place in places_of(words, word)]
                columns |= set(places or find([word for words in prompts for word in words], word))
        self._columns = sorted(columns)

    def few(self) -> bool:
        return self.chosen is not None and len(self._columns) <= FEW

    def read(self, look: Look) -> None:
        """Keep what a layer did: if it is large at once, otherwise when somebody asks, with others that are alike."""
        if look.query.numel() >= SMALL or look.query.requires_grad:
            self._add([(self._step, look)])
            return
        self._pile.append((self._step, look))
        self._piled += look.query.numel()
        if self._piled >= min(PILE, self.budget // 8):
            self._done()

    def _done(self) -> dict[int | None, dict[Grid | str, Tensor]]:
        """All that was found, once what waits is worked out, those of one kind together."""
        pile, self._pile, self._piled = self._pile, [], 0
        alike: dict[Any, list[tuple[int, Look]]] = {}
        for step, look in pile:
            kind = look.layer if self.layered else (look.query.shape, look.key.shape, look.scale)
            alike.setdefault(kind, []).append((step, look))
        for group in alike.values():
            some = max(1, GROUP // group[0][1].query.numel())
            for first in range(0, len(group), some):
                self._add(group[first : first + some])
        if pile:
            self._thin()
        return self._found

    @torch.no_grad()
    def _add(self, group: list[tuple[int, Look]]) -> None:
        """Add layers of one size, step by step in order, to what was found of it."""
        looks = [look for _, look in group]
        pictures, size = self._origin.shape[0], grid(looks[0].query.shape[1], *self._origin.shape[2:])
        which = slice(0 if self.negative else len(looks[0].query) - pictures, None)
        seen = rows(looks, which) if self.chosen is None else columns(looks, which, self._columns)
        seen = seen.view(len(looks), -1, *seen.shape[1:])  # (looks, rows, heads, h*w, n)
        name: Grid | str = looks[0].layer if self.layered else size
        self._grids[name], self._many[name] = size, 1 if self.heads else seen.shape[2]
        members = self._members.setdefault(name, [])
        members += dict.fromkeys(look.layer for look in looks if look.layer not in members)
        first = 0
        for step, part in groupby(step if self.each_step else None for step, _ in group):
            last = first + len(list(part))
            if step is None or step in self.steps:
                some = seen[first:last]
                one = some.sum(0) if self.heads else some.sum((0, 2)).unsqueeze(1)  # (rows, heads or 1, h*w, n)
                if step not in (None, self._step):
                    one = one.cpu()  # as that step's others are by now
                kept = self._found.setdefault(step, {})
                kept[name] = kept[name] + one if name in kept else one
            first = last

    # -----------------------------------------------------------------------------------------------------------------
    # Reading

    @property
    def words(self) -> list[str]:
        """The words of the first picture's prompt, in order."""
        return [word.text for word in self._heard[1][0]] if self._heard[1] else []

    @property
    def resolutions(self) -> list[Grid]:
        """The sizes (h, w) of the layers that were kept, the finest first."""
        self._done()
        return sorted(set(self._grids.values()), reverse=True)

    @property
    def layers(self) -> list[str]:
        """The names of the layers that were kept."""
        self._done()
        return [name for members in self._members.values() for name in members]

    @property
    def nbytes(self) -> int:
        """How much memory the maps take."""
        return _bytes(self._done())

    def heat(
        self,
        word: str | int,
        *,
        step: int | None = None,
        picture: int = 0,
        negative: bool = False,
        layer: str | None = None,
        head: int | None = None,
        resolution: Grid | None = None,
    ) -> Tensor:
        """Where a word looked, (H, W) in [0, 1] at the picture's size: 0 is the least of all places, 1 the most.

        Args:
            word: a word of the prompt or several in a row, or the place of a token. The tokens of a word are joined,
                and so is what stands there more than once.
            step: one step; the mean over all by default.
            picture: which of the batch.
            negative: the word is one of the negative prompt.
            layer: a layer, or what several begin with; the mean over all by default.
            head: one head; the mean over all by default.
            resolution: layers of this size (h, w) alone.

        Raises:
            ValueError: there is no such word (the message has those that there are), or what was asked for was not
                kept.
        """
        picked = self._pick(word, step, picture, negative, layer, head, resolution)
        size = (self._origin.settings.height, self._origin.settings.width)
        fitted = [F.interpolate(one[None, None], size, mode="bicubic")[0, 0] for one in picked.values()]
        found = torch.stack(fitted).clamp(min=0).sum(0)  # (H, W)
        low, high = found.aminmax()
        return (found - low) / (high - low) if high > low else torch.zeros_like(found)

    def share(
        self,
        word: str | int,
        *,
        step: int | None = None,
        picture: int = 0,
        negative: bool = False,
        layer: str | None = None,
        head: int | None = None,
        resolution: Grid | None = None,
    ) -> Tensor:
        """How much of its attention each place gave to a word, (h, w) in [0, 1], as the U-Net computed it.

        The arguments are those of `heat`; where layers of several sizes were kept, one has to be picked.
        """
        picked = self._pick(word, step, picture, negative, layer, head, resolution)
        if len({self._grids[group] for group in picked}) > 1:
            raise ValueError(f"layers of several sizes were kept; give resolution, one of {_listed(self.resolutions)}")
        return torch.stack(list(picked.values())).sum(0) / sum(len(self._members[group]) for group in picked)

    def _pick(
        self,
        word: str | int,
        step: int | None,
        picture: int,
        negative: bool,
        layer: str | None,
        head: int | None,
        resolution: Grid | None,
    ) -> dict[Grid | str, Tensor]:
        """What was asked for as sums over layers (h, w), the mean over steps and heads."""
        found = self._done()
        if not found:
            raise ValueError("these attention maps hold no run; give them to one as hooks=[maps]")
        guided, pictures = self._origin.guided, self._origin.shape[0]
        if negative and not (self.negative and guided):
            raise ValueError("the negative prompt was not kept; it takes guidance, and AttentionMaps(negative=True)")
        if not 0 <= picture < pictures:
            raise ValueError(f"picture must be 0 to {pictures - 1}, but is {picture}")
        if step is not None and not (self.each_step and step in self.steps):
            kept = _listed(self.steps) if self.each_step else "only the sum over all of them"
            raise ValueError(f"step {step} was not kept by itself; kept: {kept}")
        if (layer is not None and not self.layered) or (head is not None and not self.heads):
            raise ValueError("layers and heads were joined; record with AttentionMaps(layers=True) or (heads=True)")
        groups = [
            group
            for group, size in self._grids.items()
            if (layer is None or str(group).startswith(layer)) and (resolution is None or size == tuple(resolution))
        ]
        if not groups:
            raise ValueError(
                f"nothing was kept of layer {layer!r} at resolution {resolution}; kept: {_listed(self.resolutions)}"
                + (f" in {_listed(self.layers)}" if self.layered else "")
            )
        columns = self._columns_of(word, self._heard[0 if negative else 1][picture])
        row = picture + (pictures if self.negative and guided and not negative else 0)
        heads = slice(None) if head is None else slice(head, head + 1)
        sums = list(found.values()) if step is None else [found[step]]
        steps = len(self.steps) if step is None else 1
        picked = {}
        for group in groups:
            each = [one[group][row, heads][..., columns].cpu().sum(-1).mean(0) for one in sums]  # (h*w,)
            picked[group] = torch.stack(each).sum(0).reshape(self._grids[group]) / (steps * self._many[group])  # (h, w)
        return picked

    def _columns_of(self, word: str | int, words: list[Word]) -> list[int]:
        """Where the tokens of a word are among those that were kept."""
        places = [word] if isinstance(word, int) else find(words, word)
        if self.chosen is None:
            return places
        if not set(places) <= set(self._columns):
            raise ValueError(f"{word!r} was not kept; AttentionMaps was told to keep {_listed(self.chosen)}")
        return [self._columns.index(place) for place in places]

    def _repr_html_(self) -> str:
        from sdkit.display import show_maps

        return show_maps(self)

    def __repr__(self) -> str:
        if not self._done():
            return "<AttentionMaps of no run>"
        sizes = ", ".join(f"{h}x{w}" for h, w in self.resolutions)
        return f"<AttentionMaps of {self.words}: {len(self.steps)} steps at {sizes}, {self.nbytes / 1e6:.1f} MB>"


def _bytes(found: dict[int | None, dict[Grid | str, Tensor]]) -> int:
    return sum(one.nbytes for kept in found.values() for one in kept.values())


def _listed(things: Iterable[Any]) -> str:
    return ", ".join(map(str, things))
