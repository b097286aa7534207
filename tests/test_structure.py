"""Who may import whom, kept by reading the code; and what the package shows to the world."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdkit

ROOT = Path(sdkit.__file__).parent
LAYERS = {
    "events": 0,
    "looks": 0,
    "noise": 0,
    "settings": 0,
    "tiles": 0,
    "attention": 1,
    "model": 1,
    "pictures": 1,
    "schedulers": 1,
    "single_file": 1,
    "style": 1,
    "words": 1,
    "loading": 2,
    "maps": 2,
    "runs": 2,
    "costs": 3,
    "hooks": 3,
    "latents": 3,
    "listening": 3,
    "preparation": 3,
    "text": 3,
    "previews": 4,
    "process": 4,
    "generate": 5,
    "interpolation": 6,
    "trace": 6,  # above generate, because a branch generates
    "forward": 7,  # these give or read traces
    "inversion": 7,
    "reading": 7,
    "statistics": 7,
    "display": 8,
    "film": 8,
    "plots": 8,
    "report": 8,
    "cli": 9,
    "tiny": 9,
}
# Looks upwards: a value that shows itself asks the room that draws it, which needs values of that kind. They stand in
# functions, so that nothing is imported before somebody looks, and no room needs one above it to work.
SHOWING = {
    ("trace", "display"),
    ("trace", "report"),
    ("generate", "display"),
    ("latents", "display"),
    ("maps", "display"),
}
ROOMS = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def room_of(path):
    return path.parts[0].removesuffix(".py")


def imported_rooms(path):
    """The rooms that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sdkit":
            inner = node.module.split(".")[1:2]
            names = inner or [sdkit._ROOMS.get(alias.name, alias.name) for alias in node.names]
            yield from (name for name in names if not name.startswith("__"))
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("sdkit."))


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_rooms_import_downwards_only(path):
    room = room_of(path)
    above = {name for name in imported_rooms(path) if name != room and LAYERS[name] >= LAYERS[room]}
    above -= {to for here, to in SHOWING if here == room}
    assert not above, f"{path} is on layer {LAYERS[room]} and imports {above}"


@pytest.mark.parametrize(("room", "above"), sorted(SHOWING))
def test_what_shows_itself_asks_the_room_above_only_when_somebody_looks(room, above):
    tree = ast.parse((ROOT / f"{room}.py").read_text(encoding="utf-8"))
    asks = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == f"sdkit.{above}"]
    assert asks
    assert not set(asks) & set(tree.body)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert all(any(ask in function.body for function in functions) for ask in asks)


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_every_room_says_what_it_is(path):
    says = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    assert says is not None
    assert says[0].isupper()


def test_events_know_nothing_of_diffusers():
    assert "diffusers" not in {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse((ROOT / "events.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Import)
        for alias in node.names
    }


def test_all_is_sorted_and_complete_and_every_name_loads():
    assert sorted(sdkit.__all__) == sorted(sdkit._ROOMS)
    for name in sdkit.__all__:
        assert getattr(sdkit, name) is not None
        assert name in dir(sdkit)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'txt2img'"):
        sdkit.txt2img  # noqa: B018 - reading it is the test


def test_every_public_name_has_a_docstring():
    for name in sdkit.__all__:
        value = getattr(sdkit, name)
        if callable(value) and name != "Hook":
            assert value.__doc__, name


def test_importing_sdkit_imports_neither_torch_nor_diffusers():
    code = "import sdkit, sys; print({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
