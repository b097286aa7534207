"""The work on a cluster, by Ray Data: words to embeddings, noise to latents, latents to files, each stage with workers
of its own. What is lost with a worker or a node is not in the book, and is done again."""

from __future__ import annotations

import logging
import pickle
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from sdkit.events import Stage
from sdkit.inputs.checks import installed
from sdkit.many.book import Book, Made
from sdkit.many.jobs import Bad, Job
from sdkit.many.work import ALONE, TEXTS, Load, Maker, asked_together, made_of, reason_of, settings_alone
from sdkit.model.loading import best_device, usual_dtype
from sdkit.model.model import Model
from sdkit.pictures import to_pil
from sdkit.process.materials import EMBEDS
from sdkit.process.run import Run
from sdkit.tasks.generate import stages

SHARES = {"words": 0.05, "denoise": 0.8, "write": 0.1}  # of a GPU, or of a processor where there is none
ROUNDS = 3  # that may end without anything new in the book before it is given up
Work = dict[str, Any]  # a group of jobs on its way, and what the stages have made of it
Row = dict[str, bytes]  # the same, as Ray Data carries it


class _Stage:
    """A worker of one stage: what it does with a group. What is no fault of a job goes to the end as a reason."""

    def __init__(self, load: Load, folder: str, traces: bool) -> None:
        self.maker = Maker(load, traces)
        self.book = Book(folder)

    def __call__(self, row: Row) -> Row:
        work: Work = pickle.loads(row["work"])
        if "broken" not in work:
            try:
                work = self.go_on(work)
            except Exception as error:
                work = {"broken": reason_of(error)}
        return {"work": pickle.dumps(work)}

    def go_on(self, work: Work) -> Work:
        raise NotImplementedError


class Words(_Stage):
    """Prompts to text embeddings."""

    def go_on(self, work: Work) -> Work:
        jobs: list[Job] = work["jobs"]
        if "model" not in jobs[0].asked:
            self.maker.model_of(jobs[0])
        if self.maker.traces or any(name in jobs[0].asked for name in ALONE) or jobs[0].function == "inspect":
            return work  # made as a whole by the next stage
        try:
            seen: dict[Stage, Any] = {}
            for event in stages(**asked_together(jobs), model=self.maker.model_of(jobs[0])):
                seen[event.stage] = event.value
                if event.stage is (Stage.POOLED if event.run.model.is_xl else Stage.TEXT):
                    return {**work, "embeds": _embeds(event.run, seen)}
        except Exception:  # the next stage finds out what is wrong, and with which job
            return work
        return work


def _embeds(run: Run, seen: dict[Stage, Any]) -> dict[str, Any]:
    """The arguments that stand for the words that a run has embedded, each prompt once."""
    pictures, each = run.shape[0], run.settings.num_images_per_prompt
    embeds = {}
    for name, value in (("prompt_embeds", seen[Stage.TEXT]), ("pooled_prompt_embeds", seen.get(Stage.POOLED))):
        if value is not None:
            embeds[name] = value[-pictures::each].cpu()  # (P, L, D) or (P, D')
            if len(value) > pictures:
                embeds[f"negative_{name}"] = value[:pictures:each].cpu()
    return embeds


class Denoise(_Stage):
    """Noise to clean latents; or all of it, where a group cannot be taken apart into stages or has failed in one."""

    def go_on(self, work: Work) -> Work:
        jobs: list[Job] = work["jobs"]
        if "embeds" in work:
            try:
                return {**work, **self._latents(jobs, work["embeds"])}
            except Exception:  # said below, for the job that it is about
                pass
        made, bad = [], []
        for some, aside in self.maker.make(jobs):
            made += some
            bad += aside
        return {**work, "made": made, "bad": bad}

    def _latents(self, jobs: Sequence[Job], embeds: dict[str, Any]) -> Work:
        began = time.perf_counter()
        asked = {name: value for name, value in asked_together(jobs).items() if name not in TEXTS}
        for event in stages(**asked, **embeds, model=self.maker.model_of(jobs[0])):
            if event.stage is Stage.LATENT and event.step is None:
                event.run.check_finite()
                settings = {name: value for name, value in event.run.record.items() if name not in EMBEDS}
                return {
                    "latents": event.value.cpu(),
                    "settings": settings | {"prompt": jobs[0].asked["prompt"]},
                    "seconds": time.perf_counter() - began,
                }
        raise RuntimeError("the run has ended without latents")


class Write(_Stage):
    """Clean latents to pictures, and all of a group into the book."""

    def go_on(self, work: Work) -> Work:
        made: list[Made] = work.get("made", [])
        bad: list[tuple[Job, Bad]] = work.get("bad", [])
        if "latents" in work:
            jobs, model = work["jobs"], self.maker.model_of(work["jobs"][0])
            pictures = to_pil(model.decode(work["latents"].to(model.device)))
            made = made_of(jobs, pictures, _settings(jobs, work["settings"]), work["seconds"])
        self.book.keep(made)
        return {"made": [one.key for one in made], "bad": [one for _, one in bad]}


def _settings(jobs: Sequence[Job], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run with its words in place of their embeddings."""
    if len(jobs) > 1:
        return settings  # each job gets its own
    return settings_alone(jobs[0], settings) | {"image": settings["image"]}


def made_on_ray(
    groups: Sequence[list[Job]], book: Book, load: Load, *, traces: bool, address: str, workers: int | None
) -> Iterator[tuple[list[str], list[Bad]]]:
    """Carry out groups of jobs on a cluster, and give the keys of each that is in the book, and what was set aside.

    Raises:
        ValueError: Ray is not installed, or what a worker met is the fault of no job; the message has its reason.
        ConnectionError: there is no cluster at the address.
        ray.exceptions.RayError: round after round has ended without anything new.
    """
    installed("ray", "a cluster needs Ray", "cluster")

    import ray

    left, fruitless = list(groups), 0
    with _connected(address):
        load = partial(arrived, load, shipped(load, left))
        while left:
            before, failure, gone = len(left), None, set[str]()
            try:
                for made, bad in _round(left, book, load, traces, workers):
                    gone.update(made, (one.where for one in bad))
                    yield made, bad
            except ray.exceptions.RayError as error:
                failure = error
            left = [group for group in left if gone.isdisjoint(job.key for job in group)]
            fruitless = fruitless + 1 if len(left) == before else 0
            if fruitless == ROUNDS:
                raise failure or RuntimeError(f"{ROUNDS} rounds have ended without anything new; see Ray's logs")


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """A connection to the cluster, or the one that there is; Ray keeps quiet meanwhile."""
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise ConnectionError(f"there is no Ray cluster at {address!r}: {' '.join(str(error).split())}") from error
    try:
        yield
    finally:
        ray.shutdown()


def shipped(load: Load, groups: Sequence[list[Job]]) -> dict[str | None, Any]:
    """The models of jobs in Ray's store, by name, which brings each to a node once, files and all that lies over them.

    Raises:
        Exception: the model that jobs share cannot be loaded.
    """
    import ray

    kind = usual_dtype("cuda" if ray.cluster_resources().get("GPU", 0) else "cpu")
    models = {}
    for name in {job.asked.get("model") for group in groups for job in group}:
        with suppress(Exception) if name else nullcontext():  # a worker says what is wrong with that of a job
            models[name] = ray.put(load(name, device="cpu", dtype=kind))
    return models


def arrived(load: Load, models: dict[str | None, Any], named: str | None) -> Model:
    """One of these models, on a worker, where it is to work."""
    import ray

    if named not in models:
        return load(named)
    model: Model = ray.get(models[named])
    model.pipeline.to(best_device())
    return model


def _failing_at_once() -> dict[str, Any]:
    """What a dying worker had in hand is not to wait until it is replaced, which may need a node that is gone."""
    return {"max_task_retries": 0}


def _round(
    groups: Sequence[list[Job]], book: Book, load: Load, traces: bool, workers: int | None
) -> Iterator[tuple[list[str], list[Bad]]]:
    """All groups through the stages once. What a dying worker had in hand is missing in the end; those that still work
    do not wait for it."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    there = ray.cluster_resources()
    unit = "num_gpus" if there.get("GPU", 0) >= 1 else "num_cpus"
    units = there.get("GPU" if unit == "num_gpus" else "CPU", 1)
    most = min(workers or max(1, int(units)), len(groups))
    core_group = max(1.0, units / most) if unit == "num_cpus" else 1.0
    rows = [{"work": pickle.dumps({"jobs": group})} for group in groups]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    for stage, share, pool in (
        (Words, "words", ActorPoolStrategy(min_size=1, max_size=most)),
        (Denoise, "denoise", ActorPoolStrategy(size=most, max_tasks_in_flight_per_actor=2)),
        (Write, "write", ActorPoolStrategy(min_size=1, max_size=most)),
    ):
        with warnings.catch_warnings(action="ignore"):  # that Ray 2.64 will not have `ray_remote_args_fn`
            data = data.map(
                stage,
                fn_constructor_args=(load, book.folder, traces),
                compute=pool,
                ray_remote_args_fn=_failing_at_once,
                **{unit: SHARES[share] * (core_group if share == "denoise" else 1)},
            )
    for row in data.iter_rows():
        work = pickle.loads(row["work"])
        if "broken" in work:
            raise ValueError(f"a worker could not go on: {work['broken']}")
        yield work["made"], work["bad"]
