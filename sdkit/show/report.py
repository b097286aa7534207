"""The report: one HTML page, whole in one file, that takes a reader through a run from its words to its picture.

Python puts the numbers of the trace into the page; the viewer, which the page holds, draws them. Nothing is fetched.
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from sdkit.events import Stage
from sdkit.files import whole_file
from sdkit.inputs.checks import typed
from sdkit.inputs.paths import report_path
from sdkit.measure import ColourMap
from sdkit.show.report_values import distances, run_values
from sdkit.show.tiles import small, uri
from sdkit.show.view import Heat, by_step, colours, noise_share, prompt_of, spread_out, standard
from sdkit.show.web import joined, web_file
from sdkit.trace.trace import Trace

POINTS = 32  # along the longer side of the latents, at most; of larger ones every second or fourth point is kept


@typed()
def write_report(
    trace: Trace, path: str | Path, *, maps: Heat | None = None, other: Trace | None = None, picture: int = 0
) -> Path:
    """Write the page; what `Trace.report` calls.

    Args:
        maps: the attention of the run, for the words to click.
        other: a second run to compare with.
        picture: which of the pictures that were made at once, of either run.

    Raises:
        ValueError: the trace holds nothing to draw, there is no such picture, or the name does not end in .html.
        FileNotFoundError: the folder does not exist.
    """
    path = report_path(path)
    text = page(trace, maps=maps, other=other, picture=picture)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def page(trace: Trace, *, maps: Heat | None = None, other: Trace | None = None, picture: int = 0) -> str:
    """The page as text, of the arguments that `write` takes."""
    runs = [trace] if other is None else [trace, other]
    points = POINTS if other is None else POINTS // 2
    paint = colours(*runs)  # one map for both, so that what is the same looks the same
    values = [run_values(one, maps if one is trace else None, paint, picture, points) for one in runs]
    data: dict[str, Any] = {"runs": values, "apart": []}
    if other is not None:
        data["apart"] = distances(trace, other, values, picture)
    title = " / ".join(dict.fromkeys(filter(None, (prompt_of(one, picture) for one in runs)))) or "A run"
    template = resources.files("sdkit.show").joinpath("report.html").read_text(encoding="utf-8")
    for name, part in (("style", "viewer.css"), ("viewer", "viewer.html")):
        template = template.replace(f"<!--sdkit:{name}-->", web_file(part))
    template = template.replace("<!--sdkit:code-->", joined("report"))
    scripts = re.findall(r"<script>(.*?)</script>", template, flags=re.DOTALL)  # the page's own, and no other, may run
    try:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    except ValueError:
        raise ValueError("the trace holds numbers that are not finite, or too large to be drawn") from None
    parts = {
        "scripts": " ".join(f"'sha256-{b64encode(sha256(one.encode()).digest()).decode()}'" for one in scripts),
        "title": html.escape(title),
        "hero": "".join(_hero(run, "AB"[i] if other else "") for i, run in enumerate(values)),
        "film": "".join(_film(one, paint, picture, "AB"[i] if other else "") for i, one in enumerate(runs)),
        "data": text,
    }
    for name, part in parts.items():
        template = template.replace(f"<!--sdkit:{name}-->", part)
    return template


def _hero(run: dict[str, Any], letter: str) -> str:
    """The finished picture with what made it."""
    unnamed = {"forward": "A picture drowns in noise", "inversion": "A picture, back to its noise"}
    name = html.escape(run["prompt"] or unnamed.get(run["process"], "A picture without words"))
    facts = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in run["facts"])
    shown = run["picture"] or run["input"]
    alt = "The finished picture" if run["picture"] else "The picture that it starts from"
    frame = f'<img src="{shown}" alt="{alt}: {name}">' if shown else ""
    kind = "prompt long" if len(name) > 70 else "prompt"
    heading = f'<h2 class="{kind}">{_tag(letter)} {name}</h2>' if letter else f'<h1 class="{kind}">{name}</h1>'
    return (
        f'<div class="hero-run"><div class="hero-frame" data-hero="{"AB".find(letter or "A")}">{frame}</div>'
        f'<div class="hero-words">{heading}<dl class="facts">{facts}</dl></div></div>'
    )


def _tag(letter: str) -> str:
    return f'<span class="tag tag-{letter.lower()}">{letter}</span>'


def _film(trace: Trace, paint: ColourMap, picture: int, letter: str) -> str:
    """Some steps of the run side by side: the same without a script, and on paper."""
    noisy, clean = by_step(trace, Stage.LATENT), by_step(trace, Stage.DENOISED)
    cells = []
    for step in spread_out(sorted(noisy or clean), 10):
        share = noise_share(trace, step)
        pictures = []
        if step in noisy:
            pictures.append((standard(trace, noisy[step], picture), f"The noisy latent before step {step}, {share}"))
        if step in clean:
            pictures.append((clean[step].value[picture].float(), f"The x0 that step {step} predicts"))
        shown = "".join(
            f'<img class="latent" src="{uri(small(paint(z[None]))[0])}" alt="{alt}">' for z, alt in pictures
        )
        cells.append(f'<li data-step="{step}">{shown}<span>{step}</span></li>')
    return (
        f'<span class="film-tag">{_tag(letter)}</span>' if letter else ""
    ) + f'<ol class="film">{"".join(cells)}</ol>'
