"""How fast sdkit starts and steps and how much memory it takes, beside diffusers, as ratios in one run:

    python -m benchmarks                # every row, an hour on two cores
    python -m benchmarks start busy     # some
    python -m benchmarks gpu            # on a machine with a GPU

It writes docs/benchmarks.json, where the rows that were not asked for stay as they were, and from that the table in
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.rounds import ROOT, Row
from benchmarks.rows import ROWS

PAGE = ROOT / "docs" / "benchmarks.md"
BETWEEN = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def machine() -> str:
    """What was measured on, and with what."""
    names = ("torch", "diffusers", "transformers")
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{date.today()}, {cores} cores ({platform.machine()}), Python {platform.python_version()}, {libraries}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| row | what | target | measured: median (least to most) | met | remarks |", "|---|---|---|---|---|---|"]
    for row in rows:
        met = {True: "yes", False: "no", None: ""}[row["met"]]
        lines.append(
            f"| {row['name']} | {row['what']} | {row['target']} | {row['measured']} | {met} | {row['remark']} |"
        )
    return "\n".join(lines)


def keep(name: str, made: list[Row], file: Path) -> list[dict[str, Any]]:
    """Put the rows of one benchmark in the place of those that it gave before; all rows, in the order of the table."""
    known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    known[name] = {"measured": machine(), "rows": [asdict(row) for row in made]}
    ordered = {one: known[one] for one in ROWS if one in known}
    file.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    return [{**row, "of": one["measured"]} for one in ordered.values() for row in one["rows"]]


def write(rows: list[dict[str, Any]], page: Path) -> None:
    """The table, in its place on the page."""
    before, rest = page.read_text(encoding="utf-8").split(BETWEEN[0])
    told = "\n".join(f"Measured {one}." for one in dict.fromkeys(row["of"] for row in rows))
    whole = f"{before}{BETWEEN[0]}\n{table(rows)}\n\n{told}\n{BETWEEN[1]}{rest.split(BETWEEN[1])[1]}"
    page.write_text(whole, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=f"some of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--rounds", type=int, help="how often each side is measured (default: as each row has it)")
    options = parser.parse_args()
    for name in options.rows or ROWS:
        if name not in ROWS:
            parser.error(f"there is no row {name!r}; expected some of {', '.join(ROWS)}")
    for name in options.rows or ROWS:
        made = ROWS[name](**({} if options.rounds is None else {"times": options.rounds}))
        print(table([asdict(row) for row in made]), flush=True)
        write(keep(name, made, PAGE.with_suffix(".json")), PAGE)


if __name__ == "__main__":
    main()
