"""The work: jobs of equal shape in one run, each from the noise that it would have alone, and what a failure leaves of
them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from sdkit import hooks as ready_made
from sdkit.events import run
from sdkit.inputs.arguments import GIVEN
from sdkit.inputs.checks import pick
from sdkit.inputs.seeds import seed_each
from sdkit.many.book import Made
from sdkit.many.jobs import Bad, Job, canonical
from sdkit.model.model import Model
from sdkit.model.vocabulary import words_in
from sdkit.pictures import hash_of, picture_bytes, to_pixels
from sdkit.process.result import Result
from sdkit.tasks.generate import stages
from sdkit.tasks.inspect import look_into
from sdkit.trace.trace import Trace

TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
OWN = (*TEXTS, "seed", "image")  # what jobs that are made together may differ in
ALONE = ("hooks", *(one for one in GIVEN if one not in OWN))  # of which a run of several might mean another thing
Load = Callable[..., Model]  # by the name in a job, None for the model that jobs share, and with `device` and `dtype`


def groups(jobs: Sequence[Job], most: int) -> list[list[Job]]:
    """Jobs that can be made together, at most so many pictures at once, in an order that loads each model once.

    What is grouped follows from the list alone, so that a run that goes on makes the same groups.
    """
    alike: dict[tuple[str, str], list[Job]] = {}
    for number, job in enumerate(jobs):
        shape = _shape(job) if most > 1 else None
        alike.setdefault((job.asked.get("model", ""), str(number) if shape is None else shape), []).append(job)
    made = []
    for _, members in sorted(alike.items(), key=lambda one: one[0][0]):
        size = max(1, most // members[0].pictures)
        made += [members[start : start + size] for start in range(0, len(members), size)]
    return made


def _shape(job: Job) -> str | None:
    """What jobs must share to be made together, or None for one that is made alone."""
    asked = job.asked
    alone = any(name in asked for name in ALONE) or asked.get("long_prompt") == "split"
    alone = alone or ("image" in asked and job.pictures > 1)  # which diffusers would pair otherwise, as a warning says
    if job.function == "inspect" or alone or not all(isinstance(asked.get(name, ""), str) for name in TEXTS):
        return None
    shared = {name: value for name, value in asked.items() if name not in OWN}
    size: Any = None
    if "image" in asked:
        try:
            with Image.open(asked["image"]) as picture:
                size = picture.size
        except Exception:  # that it is none is said when its turn comes
            return None
    return canonical([job.function, sorted(asked), shared, size])


@dataclass
class Maker:
    """What makes the pictures of jobs: a model, loaded when it is first needed."""

    load: Load
    traces: bool = False
    most: int = 0  # pictures at once that have fitted into memory, once more have not

    def __post_init__(self) -> None:
        self._model = lru_cache(maxsize=1)(self.load)

    def model_of(self, job: Job) -> Model:
        """The model that a job names; the one before it is let go."""
        return self._model(job.asked.get("model"))

    def make(self, jobs: Sequence[Job]) -> Iterator[tuple[list[Made], list[tuple[Job, Bad]]]]:
        """Carry out jobs that can be made together; where that fails, each half by itself, so that what is wrong with
        one is not the end of the others. What it gives is to be kept before it is asked for more."""
        many = sum(job.pictures for job in jobs)
        try:
            if self.most and many > self.most and len(jobs) > 1:
                raise MemoryError
            made = self._make(jobs)
        except Exception as error:
            if len(jobs) == 1:
                yield [], [(jobs[0], Bad(jobs[0].key, dict(jobs[0].asked), reason_of(error)))]
                return
            if "memory" in str(error):
                self.most = max(1, many // 2)
        else:
            yield made, []
            return
        half = len(jobs) // 2
        yield from self.make(jobs[:half])
        yield from self.make(jobs[half:])

    def _make(self, jobs: Sequence[Job]) -> list[Made]:
        began = time.perf_counter()
        if jobs[0].function == "inspect":
            return [self._inspect(jobs[0], began)]
        trace = Trace() if self.traces else None
        model = self.model_of(jobs[0])
        result: Result = run(stages(**asked_together(jobs, [] if trace is None else [trace]), model=model))
        return made_of(jobs, result.images, result.settings, time.perf_counter() - began, trace)

    def _inspect(self, job: Job, began: float) -> Made:
        asked = {name: value for name, value in job.asked.items() if name != "model"}
        seen = look_into(**asked, model=self.model_of(job))
        settings = {**asked, **seen.numbers, "seed": [asked["seed"]]}
        content = picture_bytes(seen.page, "page.png")
        return Made(job.key, job.function, [content], [seen.page.size], settings, time.perf_counter() - began, 1)


def reason_of(error: Exception) -> str:
    """A sentence; where the error is none that we know, with its kind."""
    known = isinstance(error, ValueError | TypeError | OSError | ArithmeticError)
    return " ".join(str(error).split()) if known and str(error) else f"{type(error).__name__}: {error}"


def asked_together(jobs: Sequence[Job], hooks: Sequence[Any] = ()) -> dict[str, Any]:
    """The arguments of one run that makes the pictures of all these jobs, one job after another."""
    asked = {name: value for name, value in jobs[0].asked.items() if name not in ("hooks", "model")}
    if len(jobs) > 1:
        for name in (*TEXTS, "image"):
            if name in asked:
                asked[name] = [job.asked[name] for job in jobs]
        asked["seed"] = [seed for job in jobs for seed in seeds_of(job)]
    return {**asked, "hooks": [*_hooks_of(jobs[0]), *hooks]}


def seeds_of(job: Job) -> list[int]:
    """One seed for each of its pictures."""
    return seed_each(job.asked["seed"], job.pictures)


def _hooks_of(job: Job) -> list[Any]:
    return [
        getattr(ready_made, pick("hook", name, ready_made.__all__))(**dict(given))
        for name, given in job.asked.get("hooks", {}).items()
    ]


def made_of(
    jobs: Sequence[Job],
    pictures: Sequence[Image.Image],
    settings: Mapping[str, Any],
    seconds: float,
    trace: Trace | None = None,
) -> list[Made]:
    """The pictures of a run to the jobs that they belong to, each with the settings that it would have alone."""
    made, rest = [], list(pictures)
    for job in jobs:
        own, rest = rest[: job.pictures], rest[job.pictures :]
        alone = settings_alone(job, settings) if len(jobs) > 1 else settings
        content = [picture_bytes(one, "picture.png", {**alone, "index": index}) for index, one in enumerate(own)]
        share = seconds * len(own) / len(pictures)
        saved = None if trace is None else _saved(trace)
        made.append(Made(job.key, job.function, content, [one.size for one in own], alone, share, len(pictures), saved))
    return made


def settings_alone(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one job out of those of the run that made it with others."""
    alone = {**settings, **{name: job.asked.get(name) for name in TEXTS}, "seed": seeds_of(job)}
    if "image" in job.asked:
        size = job.asked.get("height"), job.asked.get("width")
        alone["image"] = hash_of(to_pixels(job.asked["image"], *size))
    if unknown := alone.pop("unknown_words", None):
        own = {word for name in TEXTS for word in words_in(str(job.asked.get(name) or ""))}
        alone |= {"unknown_words": some} if (some := [word for word in unknown if word in own]) else {}
    return alone


def _saved(trace: Trace) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return trace.save(Path(folder) / "trace.safetensors").read_bytes()
