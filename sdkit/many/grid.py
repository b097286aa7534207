"""From a list to jobs: files of jobs, alternatives in prompts, and grids, each line by itself, so that a bad one does
not stop the others."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sdkit.inputs.checks import installed, pick, told
from sdkit.many.jobs import MAKES, Bad, Job, job_of, value_of, with_seed

ENDINGS = (".jsonl", ".csv", ".yaml", ".yml", ".txt")
REPLACE = "replace"  # the axis of prompts in which the first of its texts is replaced by each
Axes = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Plan:
    """Everything that is asked for."""

    jobs: list[Job]  # each key once, in the order of the list
    bad: list[Bad]
    axes: dict[str, list[str]]  # the labels of each axis of the grid; lines first, where there are several
    cells: dict[tuple[str, ...], Job]  # of the grid, by a label of each axis


def axis_of(text: str) -> tuple[str, list[Any]]:
    """An axis as the command line has it: guidance_scale=1,3,7. Texts that hold commas are put in double quotes, and
    lists and mappings are written as one JSON list.

    Raises:
        ValueError: it is none.
    """
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(f"an axis of a grid is written name=value,value, as in guidance_scale=1,3,7, but is {text!r}")
    _check_axis(name)
    if values.startswith("["):
        try:
            return name, list(json.loads(values))
        except ValueError as error:
            raise ValueError(f"the axis {name!r} is no JSON list: {error}") from error
    return name, [value_of(name, one.strip()) for one in next(csv.reader([values], skipinitialspace=True))]


def _check_axis(name: str) -> None:
    pick("axis of a grid", name, (*MAKES, REPLACE))


def plan(jobs: Any, grid: Any = None, alternatives: bool | str | Path = False) -> Plan:
    """The jobs of a file or a list, times the grid.

    Args:
        alternatives: whether {red|blue} in prompts is taken apart, into a job for each combination; or the folder with
            the text files that `__name__` in a prompt stands for.

    Raises:
        FileNotFoundError, ValueError, TypeError: the list or the grid as a whole is not what it should be.
    """
    grid = {} if grid is None else grid
    if not isinstance(grid, Mapping) or not all(isinstance(one, list | tuple | range) for one in grid.values()):
        raise TypeError(f"a grid is lists of values by the name of an argument, but is {told(grid)}")
    axes = {name: list(values) for name, values in grid.items()}
    for name, values in axes.items():
        _check_axis(name)
        if not values or (name == REPLACE and not all(isinstance(one, str) and one for one in values)):
            raise ValueError(f"the axis {name!r} has no values that it could take; give a list of them")
    lines, bad = [], []
    apart = _alternatives(alternatives)
    for where, given in _lines(jobs):
        if isinstance(given, Bad):
            bad.append(given)
            continue
        try:
            lines += [(where, with_seed(one)) for one in apart(given)]
        except (TypeError, ValueError) as error:
            bad.append(Bad(where, given, str(error)))
    names = list(axes)
    known: dict[str, Job] = {}
    cells: dict[tuple[str, ...], Job] = {}
    starts: dict[str, None] = {}
    for where, given in lines:
        start = str(given.get("prompt") or given.get("image") or given.get("picture") or where)
        start = start if start not in starts else f"{start} ({where})"
        starts[start] = None
        for place in product(*axes.values()):
            labels = (start, *map(label, place))
            one: Any = given
            try:
                one = _placed(given, dict(zip(names, place, strict=True)), axes)
                job = job_of(one, labels)
            except (TypeError, ValueError, OSError) as error:
                bad.append(Bad(where, one, str(error)))
                continue
            cells[labels] = known.setdefault(job.key, job)
    told_axes = {"line": list(starts), **{name: [label(one) for one in values] for name, values in axes.items()}}
    return Plan(list(known.values()), bad, told_axes if axes else {}, cells if axes else {})


def label(value: Any) -> str:
    """A value as a sheet has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _placed(given: Mapping[str, Any], place: Mapping[str, Any], axes: Axes) -> dict[str, Any]:
    """The job at a place of the grid."""
    placed = {**given, **{name: value for name, value in place.items() if name != REPLACE}}
    if REPLACE in place:
        prompt, sought = placed.get("prompt"), axes[REPLACE][0]
        if not isinstance(prompt, str) or sought not in prompt:
            raise ValueError(f"the prompt must hold {sought!r}, the first text to be replaced, but is {told(prompt)}")
        placed["prompt"] = prompt.replace(sought, place[REPLACE])
    return placed


def _lines(jobs: Any) -> Iterator[tuple[str, Any]]:
    """Each job as it was given, with where that was."""
    if isinstance(jobs, str | Path):
        yield from _from_file(Path(jobs).expanduser())
        return
    if not isinstance(jobs, Sequence):
        raise TypeError(f"jobs are a file ending in {', '.join(ENDINGS)}, or a list, but are {told(jobs)}")
    for number, given in enumerate(jobs, 1):
        yield _checked(f"job {number}", given)


def _checked(where: str, given: Any) -> tuple[str, Any]:
    if isinstance(given, str):
        given = {"prompt": given}
    if not isinstance(given, Mapping):
        given = Bad(where, given, f"a job must be a prompt, or arguments by name, but is {told(given)}")
    return where, given


def _from_file(path: Path) -> Iterator[tuple[str, Any]]:
    pick("ending of a list of jobs", path.suffix.lower(), ENDINGS)
    if not path.is_file():
        raise FileNotFoundError(f"there is no list of jobs {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is no text in UTF-8; save it as such: {error}") from error
    kind = path.suffix.lower()
    if kind in (".yaml", ".yml"):
        yield from _from_yaml(path, text)
    elif kind == ".csv":
        rows = csv.DictReader(text.splitlines())
        for number, row in enumerate(rows, 2):
            yield _from_row(f"line {number}", row)
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            if kind == ".txt":
                yield f"line {number}", {"prompt": line.strip()}
                continue
            try:
                yield _checked(f"line {number}", json.loads(line))
            except (ValueError, RecursionError) as error:
                yield f"line {number}", Bad(f"line {number}", line, f"it is no JSON: {error}")


def _from_row(where: str, row: dict[str | None, Any]) -> tuple[str, Any]:
    if None in row:
        return where, Bad(where, row[None], "it has more cells than the first line has names")
    given = {}
    for name, cell in row.items():
        try:
            if cell:
                given[name] = value_of(str(name), cell)
        except ValueError as error:
            return where, Bad(where, dict(row), str(error))
    return where, given


def _from_yaml(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    import yaml

    try:
        read = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(read, list):
        raise ValueError(f"{str(path)!r} must hold a list of jobs, each after a dash, but is {told(read)}")
    for number, given in enumerate(read, 1):
        yield _checked(f"job {number}", given)


def _alternatives(folder: bool | str | Path) -> Any:
    """What takes a prompt with alternatives apart; it does so with none where they are not asked for."""
    if folder is False:
        return lambda given: [given]
    place = None if folder is True else Path(folder).expanduser()
    if place is not None and not place.is_dir():
        raise FileNotFoundError(f"there is no folder of wildcards {str(folder)!r}")
    installed("dynamicprompts", "alternatives need dynamicprompts", "batch")

    from dynamicprompts.generators import CombinatorialPromptGenerator
    from dynamicprompts.wildcards import WildcardManager

    generator, wildcards = CombinatorialPromptGenerator(WildcardManager(place)), WildcardManager(place)

    def apart(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        prompt = given.get("prompt")
        if not isinstance(prompt, str) or not ("{" in prompt or "__" in prompt):
            return [given]
        for name in re.findall(r"__(.+?)__", prompt):
            if not wildcards.get_values(name):
                raise ValueError(f"there are no words for __{name}__; write them in {name}.txt, and name its folder")
        try:
            return [{**given, "prompt": one} for one in dict.fromkeys(generator.generate(prompt))]
        except Exception as error:  # of a parser, which says at which letter
            raise ValueError(f"the alternatives in {told(prompt)} cannot be read: {error}") from error

    return apart
