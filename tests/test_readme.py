"""What the README says is run: its Python blocks in one session, its `sdkit` lines through the command line."""

import re
import shlex
from pathlib import Path

from sdkit.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert found
    session = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), session)
    assert (tmp_path / "star.png").exists()


def test_the_command_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("sdkit generate")]
    assert lines
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0


def test_the_pictures_that_it_shows_are_there():
    for place in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README):
        assert (Path(__file__).parent.parent / place).exists(), place
