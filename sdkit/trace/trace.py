"""The recording hook: a `Trace` keeps what every stage of a run showed, and can be saved, opened again without a model,
compared, and gone on from at any of its steps.

It is longer than other files because each way of asking a trace says in a sentence what it does not hold.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from PIL import Image
from torch import Tensor

from sdkit.door import Shown, ask
from sdkit.events import INNER, Edit, Event, Hook, Stage
from sdkit.inputs.arguments import DTYPES
from sdkit.inputs.checks import instance, pick, size_in_bytes, typed
from sdkit.model.tokens import Token, read_tokens
from sdkit.noise import NoiseLevel
from sdkit.pictures import to_pil
from sdkit.trace import file
from sdkit.trace.compare import Comparison, compare
from sdkit.trace.record import Record


class Trace(Shown):
    """A hook that records one run.

    Args:
        stages: which stages to keep; by default all but those inside the U-Net, which are large and cost time, and of
            CONTEXT what hooks have changed.
        every: keep each n-th step, and all that belongs to no step.
        dtype: to keep floating-point values in, "float32", "float16" or "bfloat16"; as they come by default.
        budget: how much memory the values may take, as "512MB" or in bytes. When it is reached, `every` is doubled and
            what no longer fits it is dropped, which a warning says once; first and last steps give way like others.

    Values are kept on the CPU, as the last hook left them, wherever in the list of hooks the trace stands.

    Attributes:
        settings: of the run, as in `Result.settings`.
        levels: how noisy the sample of each step is, `NoiseLevel` by step: t, alpha and sigma.
        parent: of a branch the settings of the run that it comes from, and the step where it parts.
        tokens: the tokens of each row for the first text encoder: with guidance the negative prompts', then the
            prompts'.

    Example:
        >>> trace = sdkit.Trace()
        >>> result = sdkit.text_to_image("a red star", seed=7, hooks=[trace])
        >>> trace[Stage.DENOISED][12].value.shape
        torch.Size([1, 4, 16, 16])
    """

    @typed(every=(1, math.inf))
    def __init__(
        self,
        stages: Iterable[Stage | str] | None = None,
        *,
        every: int = 1,
        dtype: str | torch.dtype | None = None,
        budget: str | int = "1GB",
    ) -> None:
        self.every = every
        self.stages = frozenset(_stage(one) for one in stages or ())  # none: all outside the U-Net
        self.dtype = getattr(torch, pick("dtype", dtype, DTYPES)) if isinstance(dtype, str) else dtype
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but is {self.dtype}")
        self.budget = size_in_bytes(budget)
        self.settings: dict[str, Any] = {}
        self.levels: dict[int, NoiseLevel] = {}
        self.parent: dict[str, Any] | None = None
        self.tokens: list[list[Token]] = []
        self.records: list[Record] = []
        self.stepped: dict[int, Any] = {}  # sources of the predictions that edited x0 stand for, by step
        self.pictures: Any = None  # that the run was given, as it still holds them
        self.opened = False  # from a file, which somebody else may have made
        self._begun = self._thinned = False
        self._run: Any = None  # weak references: a trace does not keep a run, and so a model, from being freed
        self._model: Any = None
        self._size = 0

    # -----------------------------------------------------------------------------------------------------------------
    # Recording

    def __call__(self, event: Event) -> None:
        """Record the event when everybody has left it."""
        instance("event", event, Event)
        run = event.run
        if not self._begun:
            self._begun = True
            if run is not None:
                self._run, self._model, self.pictures = ref(run), run.model.weakly(), run.pictures
                self.settings, self.levels = run.record, run.levels
        elif run is not (None if self._run is None else self._run()):
            raise ValueError("this trace already holds a run; record another run with another Trace")
        event.later(self.record)

    def record(self, event: Event) -> None:
        """Keep an event as it is now.

        Example:
            >>> recording = sdkit.Trace()
            >>> recording.record(sdkit.Event(Stage.LATENT, torch.zeros(1, 4, 16, 16)))
            >>> recording.latents.shape
            torch.Size([1, 4, 16, 16])
        """
        instance("event", event, Event)
        run = event.run
        if run is not None:
            if event.stage is Stage.TOKENS and not self.tokens:
                self.tokens = read_tokens(event.value, run.model.tokenizer)
            for step in run.stepped.keys() - self.stepped.keys():
                self.stepped[step] = self._kept_as(run.stepped[step])
        said_again = event.stage is Stage.CONTEXT and not event.edits  # it is TEXT or POOLED, which are recorded
        wanted = event.stage in self.stages if self.stages else event.stage not in INNER and not said_again
        if wanted and (event.step is None or event.step % self.every == 0):
            value = self._kept_as(event.value)
            self.records.append(Record(event.stage, event.step, event.t, event.edits, value, event.layer))
            self._size += value.nbytes
            while self._size > self.budget and self._thin():
                pass

    def _kept_as(self, value: Tensor) -> Tensor:
        dtype = self.dtype if self.dtype is not None and value.is_floating_point() else value.dtype
        return value.detach().to("cpu", dtype)

    def _thin(self) -> bool:
        """Keep every second of the steps that are kept; False if only one is left."""
        steps = {record.step for record in self.records if record.step is not None}
        if len(steps) < 2:
            return False
        if not self._thinned:
            warnings.warn(
                f"the trace reached its budget of {self.budget:,} bytes and keeps fewer steps from here on; "
                "give a larger budget, fewer stages or a smaller dtype to keep all",
                stacklevel=4,
            )
            self._thinned = True
        self.every *= 2
        self.records = [r for r in self.records if r.step is None or r.step % self.every == 0]
        self._size = sum(record.value.nbytes for record in self.records)
        return True

    # -----------------------------------------------------------------------------------------------------------------
    # Reading

    def __iter__(self) -> Iterator[Record]:
        """All that was recorded, in order."""
        return iter(list(self.records))

    def __getitem__(self, stage: Stage | str) -> list[Record]:
        """The records of one stage, in order."""
        wanted = _stage(stage)
        return [record for record in self.records if record.stage is wanted]

    @typed()
    def at(self, step: int, layer: str | None = None) -> dict[Stage, Record]:
        """What one step showed, by stage; with `layer`, what one layer inside the U-Net did.

        Raises:
            ValueError: no such step was recorded.

        Example:
            >>> trace.at(12)[Stage.DENOISED].value.shape
            torch.Size([1, 4, 16, 16])
        """
        shown = {record.stage: record for record in self.records if (record.step, record.layer) == (step, layer)}
        if not shown and layer is not None and step in self.steps:
            layers = ", ".join(dict.fromkeys(record.layer for record in self.records if record.layer))
            raise ValueError(f"layer {layer!r} was not recorded at step {step}; there are {layers or 'none'}")
        if not shown:
            known = f"steps {', '.join(map(str, self.steps))}" if self.steps else "none"
            raise ValueError(f"step {step!r} was not recorded; there are {known}")
        return shown

    @property
    def steps(self) -> list[int]:
        """The steps that were recorded."""
        return sorted({record.step for record in self.records if record.step is not None})

    @property
    def prompt(self) -> str | list[str] | None:
        return self.settings.get("prompt")

    @property
    def images(self) -> list[Image.Image]:
        """The finished pictures, if the run came to its end."""
        return [picture for record in self[Stage.IMAGE] for picture in to_pil(record.value.float())]

    @property
    def latents(self) -> Tensor:
        """The last latents (B, C, h, w): the clean ones of a run, and of an inversion the noise that it found."""
        if not self[Stage.LATENT]:
            raise ValueError("the trace holds no latents; record a run with the stage 'latent'")
        return self[Stage.LATENT][-1].value

    @property
    def edits(self) -> list[tuple[Record, Edit]]:
        """Everything that was replaced, in order: where, by whom, by how much."""
        return [(record, edit) for record in self.records for edit in record.edits]

    @property
    def model(self) -> Any:
        """The model that made the run, for as long as somebody else holds it; otherwise None."""
        return None if self._model is None else self._model()

    def summary(self) -> str:
        """A table of what was recorded: each stage with its number of values, their shape, type, mean and spread.

        Example:
            >>> print(trace.summary())
        """
        rows = [f"{'stage':14} {'values':>6}  {'shape':18} {'dtype':9} {'mean':>8} {'std':>8}"]
        groups: dict[tuple[Stage, torch.Size], list[Tensor]] = {}
        for record in self.records:
            value = record.value
            groups.setdefault((record.stage, value.shape), []).append(value)
        for (stage, size), values in groups.items():
            every = torch.cat([value.flatten().double() for value in values])
            shape, dtype = "x".join(map(str, size)), str(values[0].dtype).removeprefix("torch.")
            rows.append(f"{stage:14} {len(values):6}  {shape:18} {dtype:9} {every.mean():8.3f} {every.std():8.3f}")
        return "\n".join(rows)

    def __repr__(self) -> str:
        sizes = [record.value.nbytes for record in self.records]
        process = self.settings.get("process")
        wordless = f"of a {process} process" if process else "from embeddings"
        words = wordless if self.prompt is None else repr(self.prompt)
        run = f"{words}, seed {self.settings.get('seed')}" if self.settings else "of no run"
        return f"<Trace {run}: {len(self.steps)} steps, {len(sizes)} values, {sum(sizes) / 1e6:.1f} MB>"

    @typed()
    def compare(self, other: Trace) -> Comparison:
        """Where two runs part, stage by stage and step by step.

        Returns:
            A row for each value that both recorded, with cosine and distance, and a verdict. Printed, it is a table.

        Example:
            >>> blue = trace.branch(6, prompt="a blue star on a blue background")
            >>> print(trace.compare(blue).verdict)
            they part at step 6, where noise differs by ...
        """
        return compare(self.records, other.records)

    # -----------------------------------------------------------------------------------------------------------------
    # One file

    @typed()
    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file, whole or not at all: what was there before stays until then.

        The metadata holds a JSON header under "sdkit_trace": settings, levels, tokens, and for each record its stage,
        step, t, layer, edits and the name of its tensor; docs/trace-format.md has the details.

        Returns:
            The path, once the file is written.

        Raises:
            ValueError: the file name does not end in .safetensors.
            FileNotFoundError: its folder does not exist.

        Example:
            >>> trace.save("star.safetensors")
        """
        header = {
            "settings": self.settings,
            "levels": {str(step): [level.t, level.alpha, level.sigma] for step, level in self.levels.items()},
            "parent": self.parent,
            "every": self.every,
            "tokens": [[[token.id, token.text, token.word] for token in row] for row in self.tokens],
        }
        return file.save(path, header, self.records, self.stepped)

    @classmethod
    @typed()
    def load(cls, path: str | Path) -> Trace:
        """Open a saved trace. Needs no model, and reads each value only when it is asked for.

        Returns:
            The trace, as it was saved.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no trace, it is damaged, or it was written by a newer sdkit.

        Example:
            >>> path = trace.save("star.safetensors")
            >>> sdkit.Trace.load(path).prompt
            'a red star on a blue background'
        """
        header, records, stepped = file.load(path)
        trace = cls(every=header["every"])
        trace._begun = trace.opened = True
        trace.settings, trace.parent = header["settings"], header.get("parent")
        trace.levels = {int(step): NoiseLevel(*numbers) for step, numbers in header["levels"].items()}
        trace.tokens = [[Token(*token) for token in row] for row in header["tokens"]]
        trace.records, trace.stepped = records, stepped
        return trace

    @typed()
    def branch(
        self, step: int, *, hooks: Iterable[Hook] = (), model: Any = None, trust_model: bool = False, **changes: Any
    ) -> Trace:
        """Go on from before a recorded step, exactly, with other words, other guidance or other hooks.

        The scheduler steps once more through what was recorded, without the U-Net, so that its memory and its random
        draws are what they were: without a change the picture comes out bit for bit the same.

        Args:
            step: the first step that is computed anew; the earlier ones are the parent's.
            hooks: called with every event from there on.
            model: what `load` takes; by default the model that made the trace, but of one that was opened from a file
                only the embedded model.
            trust_model: load whatever model an opened trace names. Whoever made the file has chosen that name.
            changes: any of prompt, negative_prompt, guidance_scale, guidance_rescale.

        Returns:
            The branch as a trace of its own, the parent's steps first. `parent` has the step where it parted.

        Raises:
            ValueError: the steps before were not all recorded as they were, or something else was to be changed.

        Example:
            >>> blue = trace.branch(6, prompt="a blue star on a blue background")
            >>> blue.parent["step"]
            6
        """
        child: Trace = ask("branch", self, step, hooks=hooks, model=model, trust_model=trust_model, changes=changes)
        return child

    @typed()
    def report(self, path: str | Path, *, maps: Any = None, other: Trace | None = None, picture: int = 0) -> Path:
        """Write one HTML page that takes a reader through the run, whole in itself: it opens from disk, offline.

        Args:
            path: the page, ending in .html.
            maps: the `AttentionMaps` of the run, for words to click.
            other: another run to compare with, its scrubber linked to this one's.
            picture: which of the pictures that were made at once.

        Returns:
            The path, once the page is written.

        Raises:
            ValueError: the trace holds no latents, there is no such picture, or the name does not end in .html.
            FileNotFoundError: the folder does not exist.

        Example:
            >>> trace.report("star.html", maps=maps)
        """
        page: Path = ask("write_report", self, path, maps=maps, other=other, picture=picture)
        return page


def _stage(stage: Stage | str) -> Stage:
    return Stage(pick("stage", str(stage), [one.value for one in Stage]))
