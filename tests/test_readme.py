"""What the README says is run: its Python blocks in one session, its `sdkit` lines through the command line. The Korean
one has the same blocks, and all that either shows or links to is there."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from sdkit.cli import main

ROOT = Path(__file__).parent.parent
ENGLISH, KOREAN = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md"))
both = pytest.mark.parametrize("text", [ENGLISH, KOREAN], ids=["English", "Korean"])


def blocks(text, language=r"\w*"):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = {}
    for block in blocks(ENGLISH, "python"):
        exec(compile(block, "README.md", "exec"), session)
    assert (tmp_path / "star.png").exists()
    assert session["heat"].shape == session["early"].shape == (128, 128)
    assert session["halfway"].shape == session["x0"].shape == (1, 4, 16, 16)
    assert len(session["walk"].images) == 4


def test_the_command_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(ENGLISH, "bash") for line in block.splitlines()]
    assert {line.split()[1] for line in lines} == {"generate", "rerun", "inspect", "invert", "interpolate"}
    for line in lines:
        name, *arguments = shlex.split(line)
        assert name == "sdkit"
        assert main(arguments) == 0
    assert "again.png  the same bytes as star.png" in capsys.readouterr().out


def test_both_readmes_have_the_same_blocks_of_code():
    assert blocks(ENGLISH) == blocks(KOREAN)
    assert len(blocks(ENGLISH)) == ENGLISH.count("\n```") / 2


@both
def test_the_pictures_that_it_shows_are_there_and_small(text):
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert len(shown) > 10
    for place in shown:
        assert (ROOT / place).stat().st_size < 300_000, place
        with Image.open(ROOT / place) as picture:
            assert picture.width <= 1770, place


@both
def test_what_it_links_to_is_there(text):
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines()
        if line.startswith("#")
    }
    for place in re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", text):
        if place.startswith("#"):
            assert place[1:] in headings, place
        elif not place.startswith("http"):
            assert (ROOT / place).exists(), place
