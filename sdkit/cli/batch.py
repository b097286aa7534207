"""The command that makes many pictures: `sdkit batch`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from sdkit.cli.shared import add_model, check_model, load_model, own_warnings, printable, set_up_of
from sdkit.inputs.checks import whole
from sdkit.many.jobs import TOGETHER

SHOWN = 5  # reasons of jobs that were set aside, which the manifest's neighbour has all


def add_batch(batch: argparse.ArgumentParser) -> None:
    """The options of `sdkit batch`."""
    batch.description = (
        "Make the pictures of a list of jobs. What is in the folder already is not made again: a run that "
        "was stopped goes on when the command is given again. Returns 1 if jobs were set aside."
    )
    batch.epilog = "example: sdkit batch prompts.txt out --grid guidance_scale=1,3,7 --grid scheduler=ddim,euler"
    add = batch.add_argument
    add("jobs", help="a list of jobs: .jsonl, .csv or .yaml with arguments by name, .txt with a prompt on each line")
    add("folder", help="where pictures and manifest.parquet go: a folder, or a URL that fsspec knows")
    add(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=A,B,...",
        help="make every job with each of these values; replace=red,blue puts each in the place of the first in the "
        "prompt; several make every combination, and a labelled sheet.png and sheet.html",
    )
    add(
        "--alternatives",
        nargs="?",
        const=True,
        default=False,
        metavar="FOLDER",
        help="take {red|blue} in prompts apart, and __name__ by the lines of name.txt in this folder",
    )
    add(
        "--batch-size", type=int, default=TOGETHER, metavar="N", help=f"pictures at once, at most (default: {TOGETHER})"
    )
    add("--exact", action="store_true", help="make each job by itself, to the very bytes that it would be alone")
    add("--traces", action="store_true", help="also record each job, in the folder traces")
    ray = batch.add_argument_group("on a cluster")
    ray.add_argument("--ray", action="store_true", help="start Ray on this machine and work on it")
    ray.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster to work on")
    ray.add_argument("--workers", type=int, metavar="N", help="that denoise (default: one for each GPU or processor)")
    add_model(batch)
    batch.set_defaults(do=_batch)


def _batch(options: argparse.Namespace) -> int:
    whole("--batch-size", options.batch_size, at_least=1)
    address = options.address or ("local" if options.ray else None)
    if options.workers is not None:
        whole("--workers", options.workers, at_least=1)
        if address is None:
            raise ValueError("--workers was given without --ray or --address; a single process is one worker")
    if address is not None and options.device is not None:
        raise ValueError("--device goes with a single process; on a cluster workers take what Ray gives them")
    check_model(options)

    from sdkit.many.batch import carry_out
    from sdkit.many.book import Book
    from sdkit.many.grid import axis_of, plan
    from sdkit.many.processes import Processes

    axes = [axis_of(text) for text in options.grid]
    if len({name for name, _ in axes}) < len(axes):
        raise ValueError("an axis was given twice; give all its values in one --grid")
    with own_warnings():
        done = carry_out(
            plan(options.jobs, dict(axes), options.alternatives),
            Book(options.folder),
            set_up_of(options),
            partial(_load, options),
            batch_size=1 if options.exact or options.traces else options.batch_size,
            traces=options.traces,
            address=address,
            workers=options.workers,
        )
    if not Processes().is_first:
        return 0  # the first one says it for all
    before = f", {done.before} were there before" if done.before else ""
    print(f"{done.manifest}  {done.made} of {done.made + done.before + len(done.bad)} jobs made{before}")
    if not done.bad:
        return 0
    for one in done.bad[:SHOWN]:
        print(printable(f"sdkit: set aside: {one.where}: {one.reason}"), file=sys.stderr)
    more = f"; {len(done.bad) - SHOWN} more" if len(done.bad) > SHOWN else ""
    print(f"sdkit: {len(done.bad)} jobs were set aside, in failed.jsonl with their reasons{more}", file=sys.stderr)
    return 1


def _load(options: argparse.Namespace, named: str | None, **where: Any) -> Any:
    """The model of the options, or another that a job names, in its place."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    return load_model(argparse.Namespace(**{**vars(options), **where, **given, "model": named or options.model}))
