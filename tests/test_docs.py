"""The reference names everything that the package shows to the world, and what the page on hooks shows is run."""

import re
from pathlib import Path

import pytest

import sdkit

DOCS = Path(__file__).parent.parent / "docs"
PAGES = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("reference/*.md"))


def test_every_public_name_has_its_place_in_the_reference():
    values = {"SCHEDULERS", "Hook", *sdkit._MODULES}  # a table of names, a type, and what has names of its own
    missing = [
        name
        for name in sdkit.__all__
        if name not in values and f"::: sdkit.{sdkit._ROOMS[name]}.{name}\n" not in PAGES + "\n"
    ]
    assert not missing


def test_every_ready_made_hook_and_every_figure_has_its_place_in_the_reference():
    for module in (sdkit.hooks, sdkit.plots):
        for name in module.__all__:
            assert f"::: {getattr(module, name).__module__}.{name}\n" in PAGES, name


@pytest.mark.slow
def test_the_blocks_of_the_page_on_hooks_run_one_after_another():
    page = (DOCS / "hooks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    names = {}
    for block in blocks:
        exec(compile(block, "docs/hooks.md", "exec"), names)
        result = names.pop("result", None)
        assert result is None or result.settings["edited_by"]
