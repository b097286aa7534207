"""What `mkdocs build` asks beside its own: trailing comments of fields as their documentation, arguments that stand in
a table, and the parts of pages that the code itself says, so that they cannot rot."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import os
import re
import tokenize
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any

import griffe

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "sdkit"
GROUND = "ground"  # the files at the top of the package, taken together
ACROSS, DOWN, WIDE, HIGH = 54, 38, 58, 26  # between two boxes of the drawing, and the size of each
_TAKES = "sdkit.inputs.signatures.takes"  # makes signature and docstring of a function from the table of arguments


class Comments(griffe.Extension):
    """Documents the fields of a class by the comments that end their lines, gives functions made by `takes` the
    arguments of their table, and reads "Example:" as a section."""

    def on_instance(self, *, obj: griffe.Object, **_rest: Any) -> None:
        """One object of the package was read."""
        if isinstance(obj, griffe.Function) and any(one.callable_path == _TAKES for one in obj.decorators):
            _give_arguments(obj)
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_class_members(self, *, cls: griffe.Class, **_rest: Any) -> None:
        """A class of the package was read, its members too."""
        fields = [one for one in cls.members.values() if one.is_attribute and "property" not in one.labels]
        told = {one.name: _comment(one) for one in fields if not one.name.startswith("_")}
        known = [name for name, comment in told.items() if comment]
        if cls.docstring is not None and known:
            whole = told if any("dataclass" in decorator.callable_path for decorator in cls.decorators) else known
            lines = [f"    {name}: {told[name] or name.replace('_', ' ') + '.'}" for name in whole]
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)


def _give_arguments(function: griffe.Function) -> None:
    """Take the arguments of a function and its docstring from the function itself, once it is made: its source has
    neither."""
    made = getattr(importlib.import_module(function.module.path), function.name)
    assert function.docstring is not None
    function.docstring.value = inspect.getdoc(made) or ""
    function.parameters = griffe.Parameters(
        *(
            griffe.Parameter(
                one.name,
                annotation=_expression(str(one.annotation).replace("Size", "Sequence[int]"), function),
                kind=griffe.ParameterKind(one.kind.description),
                default=None if one.default is one.empty else repr(one.default),
            )
            for one in inspect.signature(made).parameters.values()
        )
    )


def _expression(annotation: str, function: griffe.Function) -> Any:
    """A type as griffe reads it in a file, with its names for links."""
    return griffe.get_expression(ast.parse(annotation, mode="eval").body, parent=function.module)


def _comment(field: griffe.Object) -> str:
    """The comment behind a field, or below it where it goes on there in lower case; shapes as code."""
    lines = field.module.source.splitlines()
    first, last = field.lineno, field.endlineno
    if first is None or last is None:
        return ""
    while last < len(lines) and re.match(r" *# [a-z]", lines[last]):
        last += 1
    tokens = tokenize.generate_tokens(io.StringIO("\n".join(lines[first - 1 : last]).lstrip()).readline)
    said = []
    try:
        said = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    except tokenize.TokenError:
        return ""
    return re.sub(r"^(\([^)]*\))\s*", r"`\1` ", re.sub(r"\s+type: ignore.*", "", " ".join(said)))


def on_page_markdown(markdown: str, page: Any, **_rest: Any) -> str:
    """Fill in what the code says: `<!-- schedulers -->`, `<!-- help -->`,
    `<!-- wings -->` and `<!-- wings in words -->`; and lead links to files beside `docs/` to the repository."""
    folder = (DOCS / page.file.src_uri).parent
    markdown = re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)]+)\)", partial(_in_repository, folder), markdown)
    if "<!-- schedulers -->" in markdown:
        from sdkit import SCHEDULERS

        markdown = markdown.replace("<!-- schedulers -->", ", ".join(f"`{name}`" for name in SCHEDULERS) + ".")
    if "<!-- help -->" in markdown:
        markdown = markdown.replace("<!-- help -->", "\n".join(_help()))
    if "<!-- wings -->" in markdown:
        markdown = markdown.replace("<!-- wings -->", "\n".join(_drawing(_imports())))
    return markdown.replace("<!-- wings in words -->", "\n".join(_in_words()))


def _in_repository(folder: Path, link: re.Match[str]) -> str:
    """A link to a file of the repository: to where `[project.urls]` says that it lies, or its name until that does."""
    text, place = link.groups()
    path = (folder / place.partition("#")[0]).resolve()
    if path.is_relative_to(DOCS):
        return link[0]
    if not path.exists():
        raise FileNotFoundError(f"the docs link to {place!r}, which is not there")
    name = path.relative_to(DOCS.parent).as_posix()
    urls = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))["project"].get("urls", {})
    return f"[{text}]({urls['Repository']}/blob/main/{name})" if "Repository" in urls else f"{text} (`{name}`)"


def _help() -> Iterator[str]:
    """What each command says of itself."""
    from sdkit.cli import parser

    os.environ["COLUMNS"] = "80"  # as many as fit beside the contents
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        yield f"## sdkit {name}\n\n```text\n{command.format_help()}```\n"


Imports = dict[str, dict[str, set[str]]]  # for each wing the wings that it imports, each with the files that do


def _imports() -> Imports:
    """Who imports whom, read from every file of the package but its table of contents, `sdkit/__init__.py`, and its
    front door, `sdkit/__main__.py`."""
    found: Imports = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE)
        if here.parts not in (("__init__.py",), ("__main__.py",)):
            wing = found.setdefault(here.parts[0] if len(here.parts) > 1 else GROUND, defaultdict(set))
            for name in _imported(path):
                other = name if (PACKAGE / name).is_dir() else GROUND
                if other != here.parts[0] and (other != GROUND or len(here.parts) > 1):
                    wing[other].add(here.as_posix())
    return found


def _imported(path: Path) -> Iterator[str]:
    """The files and folders at the top of the package that a file imports, wherever in the file it does."""
    from sdkit import _ROOMS

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "sdkit":
            yield from (_ROOMS.get(one.name, one.name).split(".")[0] for one in node.names if one.name[0] != "_")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sdkit."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (one.name.split(".")[1] for one in node.names if one.name.startswith("sdkit."))


def _from_the_top(found: Imports) -> list[str]:
    """The wings in an order in which each imports only later ones.

    Raises:
        RecursionError: some import each other in a circle.
    """

    @cache
    def height(wing: str) -> int:
        return 1 + max(map(height, found[wing]), default=0)

    return sorted(found, key=lambda wing: (-height(wing), wing))


def _drawing(found: Imports) -> Iterator[str]:
    """The wings as a staircase: a line from each to the right, with a dot above each wing that it imports."""
    order = _from_the_top(found)
    x = {wing: WIDE / 2 + 4 + ACROSS * i for i, wing in enumerate(order)}
    y = {wing: HIGH / 2 + 4 + DOWN * i for i, wing in enumerate(order)}
    width, height = x[order[-1]] + WIDE / 2 + 4, y[order[-1]] + HIGH / 2 + 4
    yield '<figure style="width: 100%">'  # the theme would make it as narrow as it can
    yield f'<svg class="wings" viewBox="0 0 {width:g} {height:g}" width="100%" role="img" font-size="12">'
    yield "<title>Which wing of sdkit imports which</title>"
    yield (
        "<style>"
        ".wings {color: var(--md-default-fg-color); font-family: var(--md-code-font, monospace), monospace}"
        ".wings path {stroke: currentColor; stroke-opacity: .5; fill: none}"
        ".wings rect {stroke: currentColor; stroke-opacity: .55; fill: var(--md-code-bg-color)}"
        ".wings text {fill: currentColor; text-anchor: middle; dominant-baseline: central}"
        ".wings circle {fill: currentColor}"
        ".wings g:hover {color: var(--md-accent-fg-color)}"
        ".wings g:hover path {stroke-opacity: 1; stroke-width: 2}"
        "</style>"
    )
    for wing in order:  # below all else: the ways down, from the highest dot to the wing
        above = [other for other in order if wing in found[other]]
        if above:
            top, end = y[above[0]], y[wing] - HIGH / 2
            yield f'<path d="M{x[wing]:g} {top:g}V{end - 1:g}m-4 -6l4 6l4 -6"/>'
    for wing in order:
        yield "<g>"
        imported = [other for other in order if other in found[wing]]
        if imported:
            yield f'<path d="M{x[wing] + WIDE / 2:g} {y[wing]:g}H{x[imported[-1]]:g}"/>'
        yield f'<rect x="{x[wing] - WIDE / 2:g}" y="{y[wing] - HIGH / 2:g}" width="{WIDE}" height="{HIGH}" rx="4"/>'
        yield f'<text x="{x[wing]:g}" y="{y[wing]:g}">{wing}</text>'
        for other in imported:
            files = ", ".join(sorted(found[wing][other]))
            told = escape(f"{wing} imports {other}, in {files}")
            yield f'<circle cx="{x[other]:g}" cy="{y[wing]:g}" r="4.5"><title>{told}</title></circle>'
        yield "</g>"
    yield "</svg>"
    yield "</figure>"


def _in_words() -> Iterator[str]:
    """A table of the wings from top to bottom, with what each says of itself and which file to read first."""
    yield "| wing | what it is | where to begin |"
    yield "|---|---|---|"
    for wing in _from_the_top(_imports()):
        if wing == GROUND:
            files = ", ".join(f"`{path.stem}`" for path in sorted(PACKAGE.glob("[a-z]*.py")))
            yield f"| the ground | the files at the top of the package: {files} | Read `events`, the mechanism. |"
            continue
        says = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text(encoding="utf-8"))) or ""
        first, _, rest = " ".join(says.split()).partition(". ")
        _, read, begin = rest.partition("Read ")
        yield f"| `{wing}` | {first.rstrip('.')}. | {read}{begin} |"
