"""The runs of all visitors that are kept for a while, so that one can go on from them, look again, or download them."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from sdkit.trace.trace import Trace
from sdkit.unet.maps import AttentionMaps

MOST = 128  # runs
MEMORY = 512 * 10**6  # bytes of the traces of all


@dataclass(frozen=True)
class BranchedHeat:
    """The heat of a branch: up to a step that of the run that it comes from, and 0 for words that only the branch has,
    or where nothing is known."""

    before: AttentionMaps | BranchedHeat | None
    step: int
    after: AttentionMaps

    @property
    def words(self) -> list[str]:
        return self.after.words

    @property
    def steps(self) -> list[int]:
        before = self.before.steps if self.before else []
        return [step for step in before if step < self.step] + self.after.steps

    def heat(self, word: str, *, step: int | None = None, picture: int = 0) -> Tensor:
        if step is None or step >= self.step:
            return self.after.heat(word, step=step, picture=picture)
        if self.before and word in self.before.words:
            return self.before.heat(word, step=step, picture=picture)
        return torch.zeros_like(self.after.heat(word, picture=picture))

    def heats(self, words: Sequence[str], *, step: int, size: tuple[int, int]) -> Tensor:
        if step >= self.step:
            return self.after.heats(words, step=step, size=size)
        heat, before = torch.zeros(len(words), *size), self.before
        known = [word for word in words if before and word in before.words]
        if before and known:
            heat[[word in known for word in words]] = before.heats(known, step=step, size=size)
        return heat


@dataclass(eq=False)
class Kept:
    """One run, under a name that nobody can guess."""

    trace: Trace
    maps: BranchedHeat | AttentionMaps | None = None
    name: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    model: str = ""  # its name among those of the page
    method: str = ""  # the hook of the gallery that it was made with
    branched: bool = False  # otherwise than its settings say, which would make another picture
    last: int | None = None  # the step after which it is to pause
    wish: str = ""  # "pause" or "stop", as soon as its visitor has said so

    @property
    def nbytes(self) -> int:
        return sum(record.value.nbytes for record in self.trace.records)


class Shelf:
    """The runs, of which the one that nobody has asked for the longest is forgotten first."""

    def __init__(self, most: int = MOST, memory: int = MEMORY) -> None:
        self.most, self.memory = most, memory
        self._runs: OrderedDict[str, Kept] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._lock = Lock()

    def put(self, kept: Kept) -> None:
        """Keep a run, or note how large it has become."""
        with self._lock:
            self._runs[kept.name], self._sizes[kept.name] = kept, kept.nbytes
            self._runs.move_to_end(kept.name)
            while len(self._runs) > 1 and (len(self._runs) > self.most or sum(self._sizes.values()) > self.memory):
                name, _ = self._runs.popitem(last=False)
                del self._sizes[name]

    def get(self, name: object) -> Kept:
        """The run of a name.

        Raises:
            ValueError: there is none, or no longer.
        """
        with self._lock:
            if not isinstance(name, str) or name not in self._runs:
                raise ValueError("this run is no longer kept; make it again")
            self._runs.move_to_end(name)
            return self._runs[name]

    def __len__(self) -> int:
        return len(self._runs)


def listed(heat: BranchedHeat | AttentionMaps | None, most: int) -> Sequence[str]:
    """The words of some heat, each once."""
    return [] if heat is None else list(dict.fromkeys(heat.words))[:most]
