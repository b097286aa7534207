"""Every public function, method, hook and figure has an example, and the examples of the reference run."""

import doctest
import inspect
import re
from pathlib import Path

import pytest

import sdkit

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
FOR_USERS = {"Model": {"vocabulary", "unknown_words"}}  # of a class whose other members are the verbs of processes
FOR_RUNS = {"AttentionMaps.choose", "AttentionMaps.read"}  # methods that a run calls
SAID_AT_ONCE = {  # whose first sentence is what they return
    *("AttentionMaps.heat", "AttentionMaps.share", "Latents.sample", "Model.unknown_words", "Reading.likeness"),
    *("Reading.of", "Trace.at", "Trace.summary", "contact_sheet", "run", "tap"),
}


def members():
    """All that the reference shows and that may have an example, by name."""
    for name in sdkit.__all__:
        value = getattr(sdkit, name)
        yield name, value
        for member, inner in vars(value).items() if inspect.isclass(value) else ():
            if member[0] != "_" and member in FOR_USERS.get(name, {member}):
                yield f"{name}.{member}", getattr(inner, "__func__", inner)
    for room in (sdkit.hooks, sdkit.plots):
        yield from ((f"{room.__name__}.{name}", getattr(room, name)) for name in room.__all__)


MEMBERS = dict(members())
FUNCTIONS = {name for name, value in MEMBERS.items() if inspect.isfunction(value)} - FOR_RUNS
EXAMPLES = {
    name: doctest.DocTestParser().get_examples(value.__doc__)
    for name, value in MEMBERS.items()
    if "Example:" in (value.__doc__ or "")
}


def test_every_function_and_method_has_an_example():
    assert len(FUNCTIONS) > 80
    assert sorted(FUNCTIONS - EXAMPLES.keys()) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_python(name):
    assert EXAMPLES[name]
    for line in EXAMPLES[name]:
        compile(line.source, name, "single")


def test_every_function_that_returns_something_says_what():
    gives = {
        name
        for name in FUNCTIONS
        if inspect.signature(MEMBERS[name]).return_annotation not in ("None", "Hook", "Figure")
    }
    told = {name for name in gives if re.search(r"^ *Returns:$", MEMBERS[name].__doc__, re.MULTILINE)}
    assert gives - told == SAID_AT_ONCE


class WhatIsShown(doctest.OutputChecker):
    """Compares what an example shows; what it does not show may be anything."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def begun(place):
    """What the examples go on from, as the first page of the reference says."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (REFERENCE / "generating.md").read_text("utf-8"), re.M | re.S)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(compile(block, "docs/reference/generating.md", "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_gives_what_it_shows(name, begun, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("PIL.ImageShow._viewers", [])  # no window opens
    said = []
    example = doctest.DocTest(EXAMPLES[name], dict(begun), name, None, None, None)
    doctest.DocTestRunner(WhatIsShown(), verbose=False, optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert not said, "".join(said)
