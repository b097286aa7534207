"""Who may import whom, kept by reading the code; and what the package shows to the world."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sdkit

ROOT = Path(sdkit.__file__).parent
GROUND = ("__main__", "collecting", "door", "events", "files", "measure", "noise", "pictures", "progress")
WINGS = (  # from the bottom up; each imports the files at the top and the wings before it
    "inputs",
    "tiny",
    "model",
    "unet",
    "trace",
    "process",
    "latents",
    "hooks",
    "show",
    "tasks",
    "many",
    "live",
    "cli",
)
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
LONGEST = 300  # lines of a file; a longer one gives its reason at its head


def parsed(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def dotted(path):
    """The name of a file within sdkit: process/run.py is "process.run", and a folder's __init__ is the folder."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


NAMES = {dotted(path) for path in FILES}


def imports(path):
    """The files of sdkit that a file imports, wherever in it that is."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("sdkit."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sdkit":
            inner = node.module.partition(".")[2]
            for alias in node.names:
                name = f"{inner}.{alias.name}".strip(".")
                yield name if name in NAMES else inner or sdkit._ROOMS.get(alias.name, alias.name)


def wing_of(name):
    return name.split(".")[0]


def test_every_file_lies_in_a_wing_or_on_the_ground():
    assert {wing_of(dotted(path)) for path in FILES} == {*WINGS, *GROUND}


@pytest.mark.parametrize("path", [path for path in FILES if wing_of(dotted(path)) not in ("cli", "__main__")], ids=str)
def test_imports_run_downwards_between_wings(path):
    wing = wing_of(dotted(path))
    below = {*GROUND, *(WINGS[: WINGS.index(wing)] if wing in WINGS else ()), wing}
    assert {wing_of(name) for name in imports(path)} <= below


def test_no_file_imports_another_in_a_circle():
    graph = {dotted(path): {name for name in imports(path) if name in NAMES} for path in FILES}
    try:
        TopologicalSorter({name: known - {name} for name, known in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_door_upwards_leads_to_rooms_that_are_there():
    from sdkit import door

    for name, room in door._ROOMS.items():
        assert f"def {name}(" in (ROOT / f"{room.removeprefix('sdkit.').replace('.', '/')}.py").read_text("utf-8")
    assert not list(imports(Path("door.py")))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_says_what_it_is(path):
    says = ast.get_docstring(parsed(path))
    assert says is not None
    assert says[0].isupper()


@pytest.mark.parametrize("wing", WINGS)
def test_every_wing_says_what_it_may_import_and_where_to_begin(wing):
    says = ast.get_docstring(parsed(Path(wing) / "__init__.py"))
    assert "Imports" in says
    assert "Read `" in says


def test_a_long_file_gives_its_reason():
    long = {str(path) for path in FILES if len((ROOT / path).read_text("utf-8").splitlines()) > LONGEST}
    for path in long:
        assert "longer than" in ast.get_docstring(parsed(path)), path


def test_events_know_nothing_of_diffusers():
    assert "diffusers" not in (ROOT / "events.py").read_text(encoding="utf-8")


def test_all_is_sorted_and_complete_and_every_name_loads():
    assert sorted(sdkit.__all__) == sorted(sdkit._ROOMS)
    for name in sdkit.__all__:
        assert getattr(sdkit, name) is not None
    assert dir(sdkit) == sorted([*sdkit.__all__, "__version__"])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'txt2img'"):
        sdkit.txt2img  # noqa: B018 - reading it is the test


def test_every_public_name_has_a_docstring():
    for name in sdkit.__all__:
        value = getattr(sdkit, name)
        if callable(value) and name != "Hook":
            assert value.__doc__, name


@pytest.mark.slow
def test_hooks_and_plots_are_reached_by_sdkit_alone():
    code = "import sdkit; print(sdkit.hooks.reweight.__name__, sdkit.plots.film_strip.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "reweight film_strip"


def test_importing_sdkit_imports_neither_torch_nor_diffusers():
    code = "import sdkit, sys; print({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


PROGRAM = """
import sdkit
from sdkit import Event, Stage, Trace

@sdkit.on(Stage.DENOISED, steps=range(3))
def darken(event: Event) -> None:
    event.value = event.value * 0.9

trace = Trace()
result: sdkit.Result = sdkit.text_to_image("a star", seed=7, hooks=[darken, trace, sdkit.hooks.stop_after(3)])
varied = sdkit.image_to_image(result.image, "a cat", strength=0.6, mask_image=None)
steps: list[int] = trace.branch(2, prompt="a cat").steps
for event in sdkit.stages("a star", image=result.image):
    print(event.alpha, varied.seeds, sdkit.plots.film_strip(trace))
"""


@pytest.mark.slow
def test_a_program_with_types_passes_mypy(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mistaken.py").write_text('import sdkit\nsdkit.text_to_image("a star", guidance="much")\n')
    options = [
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--config-file",
        str(ROOT.parent / "pyproject.toml"),
    ]
    done = subprocess.run(
        [sys.executable, *options, str(tmp_path / "program.py"), str(tmp_path / "mistaken.py")],
        capture_output=True, text=True, check=False, cwd=ROOT.parent,
    )  # fmt: skip
    assert "program.py" not in done.stdout, done.stdout
    assert 'Unexpected keyword argument "guidance"' in done.stdout
