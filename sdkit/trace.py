"""The recording hook: a `Trace` keeps what every stage of a run showed, in memory and in one file, opens again without
a model, and goes on from any of its steps."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdkit.events import INNER, Edit, Event, Hook, Stage
from sdkit.generate import branch as go_on
from sdkit.pictures import to_pil
from sdkit.runs import History, Pictures
from sdkit.settings import DTYPES, pick, size_in_bytes
from sdkit.words import Token, read_tokens

FORMAT = 1  # of the file; a reader refuses what is newer
KEY = "sdkit_trace"  # of the file's metadata, which holds the header as JSON


@dataclass(eq=False)
class Record:
    """What a stage showed, as everybody left it. From a file it is read when `value` is asked for."""

    stage: Stage
    step: int | None
    t: int | None
    edits: list[Edit]
    source: Any  # a tensor, or the open file, the tensor's name in it, and how the tensor lay in memory
    layer: str | None = None  # inside the U-Net: the name of the module there

    @property
    def value(self) -> Tensor:
        if isinstance(self.source, Tensor):
            return self.source
        file, name, layout = self.source
        tensor: Tensor = file.get_tensor(name).contiguous(memory_format=layout)
        return tensor

    def __repr__(self) -> str:
        where = "" if self.step is None else f", step {self.step} (t={self.t})"
        where += "" if self.layer is None else f", layer {self.layer!r}"
        return f"<Record of stage {self.stage.value!r}{where}: {tuple(self.value.shape)}>"


class Trace:
    """A hook that records one run.

    Args:
        stages: which stages to keep; by default all but those inside the U-Net, which are large and cost time.
        every: keep each n-th step, and all that belongs to no step.
        dtype: to keep floating-point values in, "float32", "float16" or "bfloat16"; as they come by default.
        budget: how much memory the values may take, as "512MB" or in bytes. When it is reached, `every` is doubled and
            what no longer fits it is dropped, which a warning says once; first and last steps give way like others.

    Values are kept on the CPU, as the last hook left them, wherever in the list of hooks the trace stands.

    Example:
        >>> trace = sdkit.Trace()
        >>> result = sdkit.text_to_image("a red star", seed=7, hooks=[trace])
        >>> trace[Stage.DENOISED][12].value.shape
        torch.Size([1, 4, 16, 16])
    """

    def __init__(
        self,
        stages: Iterable[Stage | str] | None = None,
        *,
        every: int = 1,
        dtype: str | torch.dtype | None = None,
        budget: str | int = "1GB",
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number from 1 up, but is {every!r}")
        known = [stage.value for stage in Stage]
        outer = (stage for stage in Stage if stage not in INNER)
        self.stages = frozenset(outer if stages is None else (Stage(pick("stage", str(one), known)) for one in stages))
        self.every = every
        self.dtype = getattr(torch, pick("dtype", dtype, DTYPES)) if isinstance(dtype, str) else dtype
        self.budget = size_in_bytes(budget)
        self.settings: dict[str, Any] = {}  # of the run, as in `Result.settings`
        self.parent: dict[str, Any] | None = None  # of a branch: its parent's settings, and the step where it parts
        self._tokens: list[list[Token]] = []
        self._records: list[Record] = []
        self._stepped: dict[int | None, Any] = {}  # sources of the predictions that edited x0 stood for
        self._size = 0
        self._pending: Event | None = None
        self._origin: Any = None
        self._thinned = False

    # -----------------------------------------------------------------------------------------------------------------
    # Recording

    def __call__(self, event: Event) -> None:
        """Keep an event as soon as the next one says that everybody has left it."""
        if self._origin is None and not self._records:
            self._origin = event.origin
            self.settings = dict(event.origin.record) if event.origin is not None else {}
        elif event.origin is not self._origin:
            raise ValueError("this trace already holds a run; record another run with another Trace")
        self._flush()
        self._pending = event

    def _flush(self) -> None:
        event, self._pending = self._pending, None
        if event is None:
            return
        if event.stage is Stage.TOKENS and event.origin is not None and not self._tokens:  # of the first text encoder
            self._tokens = read_tokens(event.value, event.origin.model.tokenizer)
        if event.origin is not None and event.stage is Stage.DENOISED and event.step in event.origin.stepped:
            self._stepped[event.step] = self._at_home(event.origin.stepped[event.step])
        if event.stage in self.stages and (event.step is None or event.step % self.every == 0):
            value = self._at_home(event.value)
            self._records.append(Record(event.stage, event.step, event.t, event.edits, value, event.layer))
            self._size += value.nbytes
            while self._size > self.budget and self._thin():
                pass

    def _at_home(self, value: Tensor) -> Tensor:
        dtype = self.dtype if self.dtype is not None and value.is_floating_point() else value.dtype
        return value.detach().to("cpu", dtype)

    def _thin(self) -> bool:
        """Keep every second of the steps that are kept; False if only one is left."""
        steps = {record.step for record in self._records if record.step is not None}
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
        self._records = [r for r in self._records if r.step is None or r.step % self.every == 0]
        self._size = sum(record.value.nbytes for record in self._records)
        return True

    # -----------------------------------------------------------------------------------------------------------------
    # Reading

    def __iter__(self) -> Iterator[Record]:
        """All that was recorded, in order."""
        self._flush()
        return iter(list(self._records))

    def __getitem__(self, stage: Stage | str) -> list[Record]:
        """The records of one stage, in order."""
        wanted = Stage(pick("stage", str(stage), [stage.value for stage in Stage]))
        return [record for record in self if record.stage is wanted]

    def at(self, step: int, layer: str | None = None) -> dict[Stage, Record]:
        """What one step showed, by stage; with `layer`, what one layer inside the U-Net did.

        Raises:
            ValueError: no such step was recorded.
        """
        found = {record.stage: record for record in self if (record.step, record.layer) == (step, layer)}
        if not found:
            raise ValueError(f"step {step!r} was not recorded; there are {_ranges(self.steps)}")
        return found

    @property
    def steps(self) -> list[int]:
        """The steps that were recorded."""
        return sorted({record.step for record in self if record.step is not None})

    @property
    def prompt(self) -> str | list[str] | None:
        return self.settings.get("prompt")

    @property
    def tokens(self) -> list[list[Token]]:
        """The tokens of each row that the text encoder read: with guidance the negative prompts', then the prompts'."""
        self._flush()
        return self._tokens

    @property
    def images(self) -> list[Image.Image]:
        """The finished pictures, if the run came to its end."""
        return [picture for record in self[Stage.IMAGE] for picture in to_pil(record.value.float())]

    @property
    def latents(self) -> Tensor:
        """The last latents (B, C, h, w): the clean ones of a run, and of an inversion the noise that it found."""
        return self[Stage.LATENT][-1].value

    @property
    def edits(self) -> list[tuple[Record, Edit]]:
        """Everything that a hook replaced, in order: where, by whom, by how much."""
        return [(record, edit) for record in self for edit in record.edits]

    def summary(self) -> str:
        """A table of what was recorded: each stage with its number of values, their shape, type, mean and spread."""
        rows = [f"{'stage':14} {'values':>6}  {'shape':18} {'dtype':9} {'mean':>8} {'std':>8}"]
        groups: dict[tuple[Stage, torch.Size], list[Tensor]] = {}
        for record in self:
            value = record.value
            groups.setdefault((record.stage, value.shape), []).append(value)
        for (stage, size), values in groups.items():
            every = torch.cat([value.flatten().double() for value in values])
            shape, dtype = "x".join(map(str, size)), str(values[0].dtype).removeprefix("torch.")
            rows.append(f"{stage:14} {len(values):6}  {shape:18} {dtype:9} {every.mean():8.3f} {every.std():8.3f}")
        return "\n".join(rows)

    def __repr__(self) -> str:
        sizes = [record.value.nbytes for record in self]
        wordless = f"of a {process} process" if (process := self.settings.get("process")) else "from embeddings"
        told = wordless if self.prompt is None else repr(self.prompt)
        run = f"{told}, seed {self.settings.get('seed')}" if self.settings else "of no run"
        return f"<Trace {run}: {len(self.steps)} steps, {len(sizes)} values, {sum(sizes) / 1e6:.1f} MB>"

    # -----------------------------------------------------------------------------------------------------------------
    # Showing. A trace knows that it can be shown and not how: the rooms that draw it lie above this one and are asked
    # for by name when somebody looks. tests/test_structure.py lists these looks upwards, and allows them in functions.

    def report(self, path: str | Path, *, maps: Any = None, other: Trace | None = None, picture: int = 0) -> Path:
        """Write one HTML page that takes a reader through the run, whole in itself: it opens from disk, offline.

        Args:
            path: the page, ending in .html.
            maps: the `AttentionMaps` of the run, for words to click.
            other: another run to compare with, its scrubber linked to this one's.
            picture: which of the pictures that were made at once.

        Raises:
            ValueError: the trace holds no latents, there is no such picture, or the name does not end in .html.
            FileNotFoundError: the folder does not exist.
        """
        from sdkit.report import write

        return write(self, path, maps=maps, other=other, picture=picture)

    def _repr_html_(self) -> str:
        from sdkit.display import show_trace

        return show_trace(self)

    # -----------------------------------------------------------------------------------------------------------------
    # One file

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file, whole or not at all: what was there before stays until then.

        The metadata holds a JSON header under "sdkit_trace": settings, tokens, and for each record its stage, step, t,
        layer, edits and the name of its tensor; docs/trace-format.md has the details.
        """
        path = Path(path).expanduser()
        if path.suffix != ".safetensors":
            raise ValueError(f"a trace is saved as safetensors, so {str(path)!r} must end in .safetensors")
        tensors: dict[str, Tensor] = {}
        names: dict[tuple[int, torch.Size], str] = {}
        last: set[str] = set()  # tensors that lie with their channels last, in which convolutions round otherwise

        def name_of(value: Tensor, name: str) -> str:
            """The same memory is written once: without guidance what was guided is what was predicted."""
            if (
                value.dim() == 4
                and not value.is_contiguous()
                and value.is_contiguous(memory_format=torch.channels_last)
            ):
                last.add(name)
            key = (value.data_ptr(), value.shape)
            if key not in names:
                names[key] = name
                tensors[name] = value.contiguous()
            return names[key]

        kept = [record.value for record in self]  # one object each while names are given: no address comes twice
        records = [
            {
                "stage": record.stage.value,
                "step": record.step,
                "t": record.t,
                "layer": record.layer,
                "edits": [asdict(edit) for edit in record.edits],
                "tensor": name_of(value, f"{i:05d}.{record.stage.value}"),
            }
            for i, (record, value) in enumerate(zip(self, kept, strict=True))
        ]
        stepped = {step: _tensor(source) for step, source in self._stepped.items()}
        header = {
            "format": FORMAT,
            "settings": self.settings,
            "parent": self.parent,
            "every": self.every,
            "tokens": [[[token.id, token.text, token.word] for token in row] for row in self.tokens],
            "stepped": {str(step): name_of(value, f"stepped.{step}") for step, value in stepped.items()},
            "channels_last": sorted(last & tensors.keys()),
            "records": records,
        }
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
        os.close(handle)
        part = Path(name)
        try:
            save_file(tensors, part, metadata={KEY: json.dumps(header)})
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Open a saved trace. Needs no model, and reads each value only when it is asked for.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no trace, it is damaged, or it was written by a newer sdkit.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no trace {str(path)!r}")
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{str(path)!r} is cut short or no safetensors file; save the trace again") from error
        header = json.loads((file.metadata() or {}).get(KEY, "{}"))  # type: ignore[no-untyped-call]
        if not header:
            raise ValueError(f"{str(path)!r} holds tensors but no trace; expected a file that Trace.save wrote")
        if header["format"] > FORMAT:
            raise ValueError(
                f"{str(path)!r} has format {header['format']}, newer than the {FORMAT} known here; update sdkit"
            )
        trace = cls(every=header["every"])
        trace.settings, trace.parent = header["settings"], header["parent"]
        trace._tokens = [[Token(*token) for token in row] for row in header["tokens"]]
        last = set(header.get("channels_last", []))

        def source(name: str) -> Any:
            return file, name, torch.channels_last if name in last else torch.contiguous_format

        trace._stepped = {int(step): source(name) for step, name in header["stepped"].items()}
        trace._records = [
            Record(
                stage=Stage(r["stage"]),
                step=r["step"],
                t=r["t"],
                edits=[Edit(**edit) for edit in r["edits"]],
                source=source(r["tensor"]),
                layer=r.get("layer"),
            )
            for r in header["records"]
        ]
        return trace

    # -----------------------------------------------------------------------------------------------------------------
    # Going on, and comparing

    def branch(self, step: int, *, hooks: Iterable[Hook] = (), model: Any = None, **changes: Any) -> Trace:
        """Go on from before a recorded step, exactly, with other words, other guidance or other hooks.

        The scheduler steps once more through what was recorded, without the U-Net, so that its memory and its random
        draws are what they were: without a change the picture comes out bit for bit the same.

        Args:
            step: the first step that is computed anew; the earlier ones are the parent's.
            hooks: called with every event from there on.
            model: what `load` takes; by default the model that made the trace.
            changes: any of prompt, negative_prompt, guidance_scale, guidance_rescale.

        Returns:
            The branch as a trace of its own, the parent's steps first. `parent` tells where it parted.

        Raises:
            ValueError: the steps before were not all recorded as they were, or something else was to be changed.
        """
        allowed = ("prompt", "negative_prompt", "guidance_scale", "guidance_rescale")
        for name in changes:
            pick("change of a branch", name, allowed)
        if process := self.settings.get("process"):
            raise ValueError(f"this trace cannot be branched: it shows the {process} process; branch a run from noise")
        if not self.settings or self.settings["seed"] is None:
            raise ValueError("this trace cannot be branched: its run had no seed; record a run that was given one")
        if any(self.settings.get(name) for name in ("prompt_embeds", "negative_prompt_embeds")):
            raise ValueError(
                "this trace cannot be branched: its run was given embeddings; record one that was given words"
            )
        if step == 0 and self.settings.get("latents"):
            raise ValueError("a run from latents that were given is branched at step 1 or later; begin it anew instead")
        latents, predictions = self._history(step)
        owner = model
        if owner is None:
            owner = self._origin.model if self._origin is not None else self.settings["model"]
        child = Trace(budget=self.budget)
        go_on(
            self.settings,
            History(latents, predictions),
            model=owner,
            pictures=self._pictures(),
            changes=changes,
            hooks=[*hooks, child],
        )
        child._flush()
        before = [record for record in self if record.step is not None and record.step < step]
        first = next((i for i, r in enumerate(child._records) if r.step is not None), len(child._records))
        child._records[first:first] = before
        child._stepped |= {at: source for at, source in self._stepped.items() if at is not None and at < step}
        child.parent = {"step": step, "settings": self.settings}
        return child

    def _pictures(self) -> Pictures:
        """The pictures that the run was given: as recorded, otherwise as the run still holds them."""
        held = Pictures() if self._origin is None else self._origin.pictures
        each = self.settings["num_images_per_prompt"]
        recorded: dict[str, Tensor] = {}
        for name, field, stage in (("image", "pixels", Stage.PIXELS), ("mask_image", "mask", Stage.MASK)):
            if self.settings.get(name) and self[stage]:
                recorded[field] = self[stage][0].value.float()[::each]
        found: Pictures = replace(held, **recorded)
        for name, value in found.hashes().items():
            if self.settings.get(name) and value is None:
                raise ValueError(f"this trace cannot be branched: it does not hold {name}, which its run was given")
        return found

    def _history(self, step: int) -> tuple[list[Tensor], list[Tensor]]:
        """x and what was stepped along, of every step before this one."""
        latents = {r.step: r for r in self[Stage.LATENT]}
        guided = {r.step: r for r in self[Stage.GUIDED]}
        count = self.settings["start"]["steps"]
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < count:
            raise ValueError(f"a branch starts at a step of the run, 0 to {count - 1}, but was to start at {step!r}")
        if self.dtype is not None or any(at not in latents or at not in guided for at in range(step)):
            raise ValueError(
                f"a branch at step {step} needs the stages latent and guided of every step before it, as they came; "
                "record with every=1, without dtype and with room enough"
            )
        steps = range(step)
        stepped = [_tensor(self._stepped[at]) if at in self._stepped else guided[at].value for at in steps]
        return [latents[at].value for at in steps], stepped

    def compare(self, other: Trace) -> Comparison:
        """Where two runs part, stage by stage and step by step."""
        theirs = {(r.stage, r.step, r.layer): r for r in other}
        rows = []
        for record in self:
            match = theirs.get((record.stage, record.step, record.layer))
            if match is not None and match.value.shape == record.value.shape:
                rows.append(_difference(record, match))
        return Comparison(rows)


@dataclass(frozen=True)
class Difference:
    """How far two runs are apart at one stage of one step."""

    stage: Stage
    step: int | None
    cosine: float  # of the two values as vectors: 1 where they point the same way
    distance: float  # Euclidean norm of the difference
    psnr: float | None  # dB, of finished pictures; infinite where they are equal
    layer: str | None = None


@dataclass(frozen=True)
class Comparison(Sequence[Difference]):
    """The differences of two runs, in the order of the run."""

    rows: list[Difference]

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def parting(self) -> Difference | None:
        """The first that is not zero, or None if the runs are the same."""
        return next((row for row in self.rows if row.distance), None)

    def __str__(self) -> str:
        lines = [f"{'stage':14} {'step':>4} {'cosine':>9} {'distance':>10} {'PSNR':>7}"]
        for row in self.rows:
            step, psnr = "" if row.step is None else row.step, "" if row.psnr is None else f"{row.psnr:.2f}"
            where = f"{row.stage.value:14} {step:>4}"
            line = f"{where} {row.cosine:9.5f} {row.distance:10.4f} {psnr:>7} {row.layer or ''}"
            lines.append(line.rstrip())
        return "\n".join(lines)


def _difference(one: Record, other: Record) -> Difference:
    a, b = one.value.double().flatten(), other.value.double().flatten()
    lengths = (a.norm() * b.norm()).item()
    cosine = (a @ b).item() / lengths if lengths else float(torch.equal(a, b))
    psnr = None
    if one.stage is Stage.IMAGE:
        error = (a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean()
        psnr = (10 * torch.log10(4 / error)).item()  # of a range of 2
    return Difference(one.stage, one.step, cosine, (a - b).norm().item(), psnr, one.layer)


def _tensor(source: Any) -> Tensor:
    return Record(Stage.GUIDED, None, None, [], source).value


def _ranges(steps: list[int]) -> str:
    return f"steps {', '.join(map(str, steps))}" if steps else "none"
