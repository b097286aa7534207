"""Run the notebooks and keep them with their outputs: `python notebooks/build.py`, or some of them by number; with
`heads`, only write their beginnings anew.

Notebook 6 trains for ten minutes. What a run leaves beside its outputs, times and paths, is taken away. How a notebook
begins is written here: the badge, where `[project.urls]` in pyproject.toml has a Repository, and the set-up cell.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
NOTEBOOKS = sorted(HERE.glob("[0-9]_*.ipynb"))
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT.get("urls", {}).get("Repository")  # on GitHub; without one there is no badge
SETUP = """# Set-up: wherever sdkit is not installed, Colab say, this fetches it.
import importlib.metadata
import pathlib
import subprocess
import sys

known = {one.name for one in importlib.metadata.distributions()}
here = pathlib.Path.cwd()
clones = [one for one in (here, *here.parents) if (one / "sdkit" / "tiny" / "weights").is_dir()]
if "sdkit" in known:
    raise RuntimeError("another project is installed as sdkit; take it away with %pip uninstall -y sdkit, and restart")
if "sdkit-stages" not in known:
    for source in (*clones[:1], "sdkit-stages", *sorted(here.glob("sdkit_stages-*.whl"))[-1:]FETCHED):
        if subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"{source}[plots]"]).returncode == 0:
            break
    else:
        raise RuntimeError("sdkit is not to be had here; open this notebook in a clone, or put its wheel beside it")
import sdkit
"""


def head(path: Path, title: str, first: str) -> tuple[str, str]:
    """How a notebook begins: its first text with the badge, and its first cell with the set-up."""
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    title = re.sub(r"\n\[!\[Open in Colab\].*\n", "", title)
    setup, fetched = SETUP, ""
    if REPOSITORY:
        place = f"{REPOSITORY.removeprefix('https://')}/blob/main/notebooks/{path.name}".removeprefix("github.com/")
        link = f"[![Open in Colab]({badge})](https://colab.research.google.com/github/{place})"
        title = re.sub(r"\n", f"\n\n{link}\n", title, count=1)
        fetched = f', "sdkit-stages @ git+{REPOSITORY}"'
    rest = re.split(r"^ *import sdkit\n", first, maxsplit=2, flags=re.MULTILINE)[-1]
    return title, setup.replace("FETCHED", fetched) + rest


def begin(path: Path, notebook: Any) -> None:
    """Write the beginning of a notebook anew."""
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    notebook.cells[0].source, cell.source = head(path, notebook.cells[0].source, cell.source)


def executed(path: Path) -> Any:
    """The notebook as it is after a run in a folder of its own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    begin(path, notebook)
    root = str(HERE.parent)
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))  # of the kernel
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]  # progress bars and warnings
            for output in cell.outputs:
                _keep_the_smaller_picture(output.get("data", {}))
                if "text" in output:
                    output["text"] = re.sub(rf"{re.escape(gettempdir())}/\w+", "(a temporary folder)", output["text"])
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def _keep_the_smaller_picture(data: dict[str, str]) -> None:
    """A picture of PIL comes as PNG and as JPEG; one will do."""
    if {"image/png", "image/jpeg"} <= data.keys():
        del data[max(("image/png", "image/jpeg"), key=lambda kind: len(data[kind]))]


def main() -> None:
    if sys.argv[1:] == ["heads"]:
        for path in NOTEBOOKS:
            notebook = nbformat.read(path, as_version=4)
            begin(path, notebook)
            nbformat.write(notebook, path)
        return
    for path in NOTEBOOKS:
        if not sys.argv[1:] or path.name[0] in sys.argv[1:]:
            nbformat.write(executed(path), path)
            print(f"{path.name}  {path.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
