"""Many pictures: a list of jobs into a folder, each made once, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sdkit.inputs.checks import installed, typed
from sdkit.inputs.paths import TINY
from sdkit.many.book import MANIFEST, Book, Row
from sdkit.many.grid import Plan, plan
from sdkit.many.jobs import TOGETHER, Bad, Job
from sdkit.many.processes import Processes
from sdkit.many.sheet import PAGE, write_sheet
from sdkit.progress import bar


@dataclass(frozen=True)
class Batch:
    """What became of a list of jobs."""

    folder: str
    made: int  # jobs that this run has carried out
    before: int  # jobs that earlier runs had
    bad: list[Bad]  # what was set aside, each with its reason

    @property
    def manifest(self) -> str:
        """The file that has a row for each picture."""
        return Book(self.folder).place(MANIFEST)

    def rows(self) -> list[Row]:
        """The rows of the manifest.

        Returns:
            For each picture its file, seed, hash and time, and the settings as JSON, by name.

        Example:
            >>> [row["prompt"] for row in sdkit.batch(["a red star"], "out").rows()]
            ['a red star']
        """
        return Book(self.folder).rows()


@typed(batch_size=(1, 10_000), workers=(1, 100_000))
def batch(
    jobs: Any,
    folder: str | Path,
    *,
    grid: Any = None,
    alternatives: bool | str | Path = False,
    model: Any = None,
    batch_size: int = TOGETHER,
    exact: bool = False,
    traces: bool = False,
    address: str | None = None,
    workers: int | None = None,
) -> Batch:
    """Make the pictures of many jobs. What is in the folder already is not made again, so that a run that was stopped
    goes on when it is called again.

    The start noise of a job is exactly that which it would have alone. Its picture is the same up to the rounding of
    larger matrices, or with `exact` to the byte.

    Args:
        jobs: a list, or a file with one (.jsonl, .csv, .yaml, or .txt with a prompt on each line). A job is a prompt,
            or the arguments of `text_to_image`, or of `image_to_image` if there is an `image`, or of `sdkit inspect`
            if there is a `picture`. Without a seed it gets one that follows from its other arguments. Hooks are names
            of `sdkit.hooks` with their arguments: {"free_u": {"b1": 1.2}}.
        folder: where pictures and manifest go: a folder, or a URL that fsspec knows.
        grid: lists of values by the name of an argument; every job is made with every combination. Under "replace",
            texts of which the first is replaced by each in the prompt.
        alternatives: whether {red|blue} in prompts is taken apart, into a job for each combination; or the folder with
            the text files that `__name__` in a prompt stands for.
        model: what `load` takes.
        batch_size: pictures that are made at once, at most.
        exact: make the pictures of each job by themselves.
        traces: also record each job, which makes it by itself.
        address: of a Ray cluster to work on, or "local" to start one here; needs the extra "cluster".
        workers: on Ray, how many denoise; by default one on each GPU, or on each processor where there is no GPU.

    Returns:
        How many were made and how many were there, what was set aside, and the manifest.

    Raises:
        ValueError, TypeError, FileNotFoundError: the list, the grid or the folder is not what it should be. A job that
            is not is set aside.

    Example:
        >>> sdkit.batch(["a red star", "a blue fish"], "out", grid={"guidance_scale": [1, 3, 7]}).manifest
    """
    if isinstance(model, str | Path | None):
        name = TINY if model is None else str(model)
    else:
        if address is not None:
            raise ValueError("a cluster loads the model by itself, so give its name: a folder, a file or an id")
        model = _load(None, model)
        name = model.name
    return carry_out(
        plan(jobs, grid, alternatives),
        Book(folder),
        {"model": name},
        partial(_load, model=model),
        batch_size=1 if exact or traces else batch_size,
        traces=traces,
        address=address,
        workers=workers,
    )


def _load(named: str | None, model: Any, **where: Any) -> Any:
    """The model, or another that a job names."""
    from sdkit.model.loading import load

    return load(model if named is None else named, **where)


def carry_out(
    asked: Plan,
    book: Book,
    made_by: Mapping[str, Any],
    load: Any,
    *,
    batch_size: int,
    traces: bool,
    address: str | None,
    workers: int | None,
) -> Batch:
    """Do what is not done yet, and write the manifest."""
    installed("pyarrow", "a manifest needs pyarrow", "batch")
    processes, order = Processes(), [job.key for job in asked.jobs]
    aside: list[Bad] = []
    with book.alone(made_by) if processes.is_first else nullcontext():
        processes.wait()
        done = book.done()
        processes.wait()
        left = sum(key not in done for key in order)
        try:
            if left:
                aside += _work(asked.jobs, done, book, load, processes, batch_size, traces, address, workers)
            bad = [*asked.bad, *processes.gathered(aside)]
        except BaseException:
            if processes.is_first:
                book.close(order, [*asked.bad, *aside])
            raise
        if processes.is_first:
            book.close(order, bad)
            if asked.axes and (left or not book.files.exists(book.place(PAGE))):
                write_sheet(asked, book)
        processes.wait()
    return Batch(book.folder, left - (len(bad) - len(asked.bad)), len(order) - left, bad)


def _work(
    jobs: Sequence[Job],
    done: set[str],
    book: Book,
    load: Any,
    processes: Processes,
    batch_size: int,
    traces: bool,
    address: str | None,
    workers: int | None,
) -> Iterator[Bad]:
    """Make what is not done, under a bar, and give what was set aside."""
    from sdkit.many.work import Maker, groups

    every = [[job for job in group if job.key not in done] for group in groups(jobs, batch_size)]
    left = processes.mine([group for group in every if group])
    where = {job.key: job for job in jobs}
    with bar(sum(job.pictures for group in left for job in group), "picture") as shown:
        if address is not None:
            from sdkit.many.cluster import made_on_ray

            for keys, bad in made_on_ray(left, book, load, traces=traces, address=address, workers=workers):
                shown.update(sum(where[key].pictures for key in [*keys, *(one.where for one in bad)]))
                yield from bad
            return
        maker = Maker(load, traces)
        if left and "model" not in left[0][0].asked:
            maker.model_of(left[0][0])  # what is wrong with it is no fault of a job
        for group in left:
            for made, aside in maker.make(group):
                book.keep(made)
                shown.update(sum(where[one.key].pictures for one in made) + sum(job.pictures for job, _ in aside))
                yield from (reason for _, reason in aside)
