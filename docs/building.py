"""What `mkdocs build` asks beside its own: trailing comments of fields as their documentation, and the parts of pages
that the code itself says, so that they cannot rot."""

from __future__ import annotations

import argparse
import io
import os
import re
import tokenize
from collections.abc import Iterator
from typing import Any

import griffe


class Comments(griffe.Extension):
    """Documents the fields of a class by the comments that end their lines, and reads "Example:" as a section."""

    def on_instance(self, *, obj: griffe.Object, **_rest: Any) -> None:
        """One object of the package was read."""
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


def on_page_markdown(markdown: str, **_rest: Any) -> str:
    """Fill in what the code says: `<!-- schedulers -->` and `<!-- help -->`."""
    if "<!-- schedulers -->" in markdown:
        from sdkit import SCHEDULERS

        markdown = markdown.replace("<!-- schedulers -->", ", ".join(f"`{name}`" for name in SCHEDULERS) + ".")
    if "<!-- help -->" in markdown:
        markdown = markdown.replace("<!-- help -->", "\n".join(_help()))
    return markdown


def _help() -> Iterator[str]:
    """What each command says of itself."""
    from sdkit.cli import parser

    os.environ["COLUMNS"] = "80"  # as many as fit beside the contents
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        yield f"## sdkit {name}\n\n```text\n{command.format_help()}```\n"
