"""The reference names everything that the package shows to the world."""

from pathlib import Path

import sdkit

PAGES = "\n".join(page.read_text(encoding="utf-8") for page in Path(__file__).parent.parent.glob("docs/reference/*.md"))


def test_every_public_name_has_its_place_in_the_reference():
    values = {"SCHEDULERS", "Hook"}  # a table of names, and a type
    missing = [
        name
        for name in sdkit.__all__
        if name not in values and f"::: sdkit.{sdkit._ROOMS[name]}.{name}\n" not in PAGES + "\n"
    ]
    assert not missing


def test_every_ready_made_hook_has_its_place_in_the_reference():
    from sdkit import hooks

    own = [name for name, value in vars(hooks).items() if getattr(value, "__module__", "") == hooks.__name__]
    assert not [
        name for name in own if not name.startswith("_") and name != "T" and f"::: sdkit.hooks.{name}\n" not in PAGES
    ]
