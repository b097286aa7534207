"""The viewer's web files, in `viewer/`: ES modules, a style and a fragment of HTML. A page loads them one by one from a
server, or holds them whole."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

MODULES = ("values", "run", "plates", "scrubber", "charts", "chapters", "viewer")  # each imports those before it


@cache
def web_file(name: str) -> str:
    """The text of one of these files."""
    return resources.files("sdkit.show").joinpath("viewer", name).read_text(encoding="utf-8")


def joined(last: str) -> str:
    """All modules and a last one as one script without imports and exports, in a scope of its own: for a page that is
    opened from disk, and can load none."""
    texts = (web_file(f"{name}.js") for name in (*MODULES, last))
    plain = (re.sub(r"^export |^import .*\n", "", text, flags=re.MULTILINE) for text in texts)
    return '(() => {\n"use strict";\n' + "\n".join(plain) + "})();\n"
