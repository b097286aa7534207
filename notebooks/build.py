"""Run the notebooks and keep them with their outputs: `python notebooks/build.py`, or some of them by number.

Notebook 6 trains for ten minutes. What a run leaves beside its outputs, times and paths, is taken away.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
NOTEBOOKS = sorted(HERE.glob("[0-9]_*.ipynb"))


def executed(path: Path) -> Any:
    """The notebook as it is after a run in a folder of its own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    root = str(HERE.parent)
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
    for path in NOTEBOOKS:
        if not sys.argv[1:] or path.name[0] in sys.argv[1:]:
            nbformat.write(executed(path), path)
            print(f"{path.name}  {path.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
