"""Which word painted which pixel: `AttentionMaps`, the hook that keeps the cross-attention of a run (as DAAM did, Tang
et al. 2022, arXiv:2210.04885).

It is longer than other files because what is kept can be asked for in six ways, each with a sentence where it was not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkit.door import Shown
from sdkit.events import Event, Stage
from sdkit.inputs.checks import instance, size_in_bytes, typed
from sdkit.model.tokens import Word, find, places_of
from sdkit.unet.attention import Look, grid, probabilities

Grid = tuple[int, int]  # (h, w) of a layer
Sums = dict[Grid | str, Tensor]  # of each resolution, or of each layer: (rows, heads or 1, h*w, tokens)
# Layers wait until somebody asks and are then worked out with their other steps: a small model draws up to 3 % faster.
MOST_WAITING = 2**23  # queries
AT_ONCE = 8  # steps of a layer in one operation, so that what comes between stays in the cache


class AttentionMaps(Shown):
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

    @typed()
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
        self.chosen = None if words is None else list(words)
        if self.chosen == []:
            raise ValueError("words is an empty list; give at least one, or None for all")
        self.layered = heads or layers is not False
        self.prefixes = ("",) if isinstance(layers, bool) else tuple(layers)
        self.heads, self.negative, self.each_step = heads, negative, each_step
        self.budget = size_in_bytes(budget)
        self.every = 1
        self.steps: list[int] = []  # that were kept, or added up
        self._run: Any = None  # a weak reference: maps do not keep a run, and so a model, from being freed
        self._shape: tuple[int, ...] = ()  # (B, C, h, w) of the latents
        self._size: tuple[int, int] = (0, 0)  # (H, W) of the pictures
        self._guided = False
        self._words: tuple[list[list[Word]], list[list[Word]]] = ([], [])  # of the negative prompts, of the prompts
        self._columns: list[int] = []  # the tokens that are kept, if not all
        self._names: list[str] = []  # of the layers that are kept
        self._step: int | None = None  # the one in hand
        self._now: Sums = {}  # what it has shown so far
        self._done: dict[int | None, Sums] = {}  # the steps before it, or under None their sum
        self._joined: dict[Grid | str, int] = {}  # how many heads are joined in each
        self._members: dict[Grid | str, list[str]] = {}  # the layers that each of these is the sum of
        self._grids: dict[Grid | str, Grid] = {}
        self._waiting: dict[str, list[tuple[int | None, Look]]] = {}  # of each layer, with its step
        self._size_waiting = 0

    # -----------------------------------------------------------------------------------------------------------------
    # Recording

    def __call__(self, event: Event) -> None:
        """Outside the U-Net it only sees to it that there is one run."""
        instance("event", event, Event)
        if self._run is not None and self._run() is not event.run:
            raise ValueError("these attention maps already hold a run; record another run with another AttentionMaps")
        if event.run is not None:
            self._run = ref(event.run)

    def choose(self, layers: list[str], step: int | None, run: Any) -> list[str]:
        """A call of the U-Net begins: the layers that are kept of it. A step that comes again counts anew."""
        if run is None:
            raise ValueError("attention maps need a run to belong to; for a U-Net alone, use a hook on Stage.ATTENTION")
        if not self._names:
            self._begin(layers, run)
        if step == self._step:
            self._waiting = {name: [one for one in looks if one[0] != step] for name, looks in self._waiting.items()}
        else:
            self._end_step()
        self._step, self._now = step, {}
        if step is None or step % self.every:
            return []
        if step not in self.steps:
            self.steps.append(step)
        return self._names

    def _begin(self, layers: list[str], run: Any) -> None:
        """The words of the run, and which tokens and layers are kept of them."""
        self._shape, self._guided = run.shape, run.guided
        self._size = (run.settings.height, run.settings.width)
        self._words = run.words
        self._names = [name for name in layers if name.startswith(self.prefixes)]
        if not self._names:
            raise ValueError(
                f"no layer of cross-attention begins with {' or '.join(map(repr, self.prefixes))}; there are "
                f"{_listed(layers) or 'none'}"
            )
        prompts = [words for half in self._words[0 if self.negative else 1 :] for words in half]
        columns = {word for word in self.chosen or () if isinstance(word, int)}
        length = run.seen[Stage.TEXT].shape[1] if Stage.TEXT in run.seen else math.inf
        if missing := [place for place in columns if not 0 <= place < length]:
            raise ValueError(f"words holds the place {missing[0]}, but those of this prompt go from 0 to {length - 1}")
        for word in self.chosen or ():
            if isinstance(word, str):
                places = [place for words in prompts for place in places_of(words, word)]
                columns |= set(places or find([word for words in prompts for word in words], word))
        self._columns = sorted(columns)

    def read(self, look: Look) -> None:
        """Keep a layer, to be worked out with its other steps when somebody asks, or when much is waiting."""
        self._waiting.setdefault(look.layer, []).append((self._step, look))
        self._size_waiting += look.query.numel()
        if self._size_waiting >= min(MOST_WAITING, self.budget // 8):
            self._work()

    @torch.no_grad()
    def _work(self) -> None:
        """Work out what is waiting, and add it to what is kept of its step."""
        waiting, self._waiting, self._size_waiting = self._waiting, {}, 0
        for layer, looks in waiting.items():
            for first in range(0, len(looks), AT_ONCE):
                self._add(layer, looks[first : first + AT_ONCE])
        self._thin()

    def _add(self, layer: str, looks: list[tuple[int | None, Look]]) -> None:
        one = looks[0][1]
        pictures, size = self._shape[0], grid(one.query.shape[1], *self._shape[2:])
        rows = slice(0 if self.negative else len(one.query) - pictures, None)
        seen = probabilities([look for _, look in looks], rows)  # (looks * rows, heads, h*w, n)
        if self.chosen is not None:
            seen = seen.index_select(-1, torch.tensor(self._columns, device=seen.device))
        name: Grid | str = layer if self.layered else size
        self._grids[name], self._joined[name] = size, 1 if self.heads else seen.shape[1]
        members = self._members.setdefault(name, [])
        if layer not in members:
            members.append(layer)
        if not self.heads:
            seen = seen.sum(1, keepdim=True)
        for (step, _), each in zip(looks, seen.chunk(len(looks)), strict=True):
            _add_to(self._now if step == self._step else self._kept(step), name, each)

    def _kept(self, step: int | None) -> Sums:
        return self._done.setdefault(step if self.each_step else None, {})

    def _end_step(self) -> None:
        """Put what is worked out of the step in hand with the steps before it."""
        for name, each in self._now.items():
            _add_to(self._kept(self._step), name, each.cpu())
        self._step, self._now = None, {}

    def _thin(self) -> None:
        """Drop every second step where the budget says so."""
        while self.each_step and _bytes(self._done) + _bytes({None: self._now}) > self.budget and len(self.steps) > 1:
            if self.every == 1:
                warnings.warn(
                    f"the attention maps reached their budget of {self.budget:,} bytes and keep fewer steps from here "
                    "on; give a larger budget, chosen words or each_step=False",
                    stacklevel=2,
                )
            self.every *= 2
            self.steps = [step for step in self.steps if step % self.every == 0]
            self._done = {step: kept for step, kept in self._done.items() if step in self.steps}
            if self._step not in self.steps:
                self._now = {}

    # -----------------------------------------------------------------------------------------------------------------
    # Reading

    @property
    def words(self) -> list[str]:
        """The words of the first picture's prompt, in order."""
        return [word.text for word in self._words[1][0]] if self._words[1] else []

    @property
    def resolutions(self) -> list[Grid]:
        """The sizes (h, w) of the layers that were kept, the finest first."""
        self._work()
        return sorted(set(self._grids.values()), reverse=True)

    @property
    def layers(self) -> list[str]:
        """The names of the layers that were kept."""
        self._work()
        return [name for members in self._members.values() for name in members]

    @property
    def nbytes(self) -> int:
        """How much memory the maps take."""
        self._work()
        self._end_step()
        return _bytes(self._done)

    def _sums(self, step: int | None) -> list[Sums]:
        """What one step has shown, or every step."""
        self._work()
        kept = list(self._done.values()) if step is None else [self._done[step]] if step in self._done else []
        return [*kept, self._now] if self._now and step in (None, self._step) else kept

    @typed()
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

        Example:
            >>> maps.heat("star", step=3).shape
            torch.Size([128, 128])
        """
        picked = self._pick(word, step, picture, negative, layer, head, resolution)
        fitted = [F.interpolate(one[None, None], self._size, mode="bicubic")[0, 0] for one in picked.values()]
        heat = torch.stack(fitted).clamp(min=0).sum(0)  # (H, W)
        low, high = heat.aminmax()
        return (heat - low) / (high - low) if high > low else torch.zeros_like(heat)

    @typed()
    def heats(self, words: Sequence[str], *, step: int, size: Grid) -> Tensor:
        """What `heat` gives for words of the first picture at one step, but all at once and small.

        Returns:
            (words, H, W) in [0, 1], of this size.

        Example:
            >>> maps.heats(["red", "star"], step=6, size=(16, 16)).shape
            torch.Size([2, 16, 16])
        """
        places = [self._columns_of(word, self._words[1][0]) for word in words]
        sums, heat = self._sums(step), torch.zeros(len(places), *size)
        if not sums or step not in self.steps:
            raise ValueError(f"step {step} was not kept by itself; kept: {_listed(self.steps)}")
        row = self._shape[0] if self.negative and self._guided else 0
        for group, grid_of in self._grids.items():
            seen = torch.stack([one[group][row].cpu().mean(0) for one in sums]).sum(0) / self._joined[group]  # (h*w, n)
            planes = torch.stack([seen[:, columns].sum(1) for columns in places]).view(-1, 1, *grid_of)
            heat = heat + F.interpolate(planes, size, mode="bicubic")[:, 0].clamp(min=0)
        low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
        return torch.where(high > low, (heat - low) / (high - low), 0.0)

    @typed()
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

        Example:
            >>> maps.share("star", resolution=(16, 16)).shape
            torch.Size([16, 16])
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
        sums = self._sums(None)
        if not sums:
            raise ValueError("these attention maps hold no run; give them to one as hooks=[maps]")
        pictures = self._shape[0]
        if negative and not (self.negative and self._guided):
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
        if head is not None and not all(0 <= head < sums[0][group].shape[1] for group in groups):
            most = min(sums[0][group].shape[1] for group in groups)
            raise ValueError(f"head must be 0 to {most - 1} in these layers, but is {head}")
        length = sums[0][groups[0]].shape[-1]
        if isinstance(word, int) and self.chosen is None and not 0 <= word < length:
            raise ValueError(f"word must be a word or a place from 0 to {length - 1}, but is {word}")
        columns = self._columns_of(word, self._words[0 if negative else 1][picture])
        row = picture + (pictures if self.negative and self._guided and not negative else 0)
        heads = slice(None) if head is None else slice(head, head + 1)
        sums = self._sums(step)
        steps = len(self.steps) if step is None else 1
        picked = {}
        for group in groups:
            each = [one[group][row, heads][..., columns].cpu().sum(-1).mean(0) for one in sums]  # (h*w,)
            picked[group] = torch.stack(each).sum(0).reshape(self._grids[group]) / (steps * self._joined[group])
        return picked  # (h, w) each

    def _columns_of(self, word: str | int, words: list[Word]) -> list[int]:
        """Where the tokens of a word are among those that were kept."""
        places = [word] if isinstance(word, int) else find(words, word)
        if self.chosen is None:
            return places
        if not set(places) <= set(self._columns):
            raise ValueError(f"{word!r} was not kept; AttentionMaps keeps {_listed(self.chosen)}")
        return [self._columns.index(place) for place in places]

    def __repr__(self) -> str:
        if not self.steps:
            return "<AttentionMaps of no run>"
        sizes = ", ".join(f"{h}x{w}" for h, w in self.resolutions)
        return f"<AttentionMaps of {self.words}: {len(self.steps)} steps at {sizes}, {self.nbytes / 1e6:.1f} MB>"


def _add_to(sums: Sums, name: Grid | str, one: Tensor) -> None:
    sums[name] = sums[name] + one if name in sums else one


def _bytes(steps: dict[int | None, Sums]) -> int:
    return sum(one.nbytes for sums in steps.values() for one in sums.values())


def _listed(things: Iterable[Any]) -> str:
    return ", ".join(map(str, things))
