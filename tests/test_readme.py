"""What the README and the tour say is run: the Python blocks of each in one session, the `sdkit` lines through the
command line. The Korean ones have the same blocks, and all that they show or link to is there."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from sdkit.cli import main

ROOT = Path(__file__).parent.parent
PAGES = (
    *("README.md", "README.ko.md", "docs/tour.md", "docs/tour.ko.md"),
    *("docs/checkpoints.md", "docs/promises.md", "docs/coming-from.md"),
)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}


def blocks(text, language=r"\w*"):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run(name):
    session = {}
    for block in blocks(TEXTS[name], "python"):
        exec(compile(block, name, "exec"), session)
    return session


def test_the_python_blocks_of_the_readme_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    session = run("README.md")
    assert {path.name for path in tmp_path.iterdir()} == {"star.png", "star.html"}
    assert session["halfway"].shape == (1, 4, 16, 16)
    assert len(session["shown"]) == 4
    assert capsys.readouterr().out.startswith("they part at step 6, where noise differs by ")


@pytest.mark.slow
def test_the_python_blocks_of_the_tour_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = run("docs/tour.md")
    assert (tmp_path / "star.png").exists()
    assert session["heat"].shape == session["early"].shape == (128, 128)
    assert session["halfway"].shape == session["x0"].shape == (1, 4, 16, 16)
    assert len(session["walk"].images) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/tour.md"])
def test_the_command_lines_run(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(TEXTS[name], "bash") for line in block.splitlines()]
    assert {line.split()[1] for line in lines} == {"generate", "rerun", "inspect", "invert", "interpolate"}
    for line in lines:
        name, *arguments = shlex.split(line)
        assert name == "sdkit"
        assert main(arguments) == 0
    assert "again.png  the same bytes as star.png" in capsys.readouterr().out


def test_the_korean_pages_have_the_same_blocks_of_code():
    assert blocks(TEXTS["README.md"]) == blocks(TEXTS["README.ko.md"])
    assert blocks(TEXTS["docs/tour.md"], "python") == blocks(TEXTS["docs/tour.ko.md"], "python")
    for text in TEXTS.values():
        assert len(blocks(text)) == text.count("\n```") / 2


@pytest.mark.parametrize("name", PAGES)
def test_the_pictures_that_it_shows_are_there_and_small(name):
    text = TEXTS[name]
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert len(shown) >= {"README": 6, "tour": 10}.get(Path(name).name.split(".")[0], 0)
    for place in shown:
        place = (ROOT / name).parent / place
        assert place.stat().st_size < 300_000, place
        with Image.open(place) as picture:
            assert picture.width <= 1770, place


@pytest.mark.parametrize("name", PAGES)
def test_what_it_links_to_is_there(name):
    text = TEXTS[name]
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines()
        if line.startswith("#")
    }
    for place in re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", text):
        if place.startswith("#"):
            assert place[1:] in headings, place
        elif not place.startswith("http"):
            assert ((ROOT / name).parent / place.partition("#")[0]).exists(), place
