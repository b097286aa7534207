"""A grid on one labelled sheet, the X/Y plot that people know: as PNG, and as a page whose pictures are the files."""

from __future__ import annotations

import html
import io
from itertools import product
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sdkit.many.book import Book
from sdkit.many.grid import Plan

PICTURE, PAGE = "sheet.png", "sheet.html"
SIDE, LONGEST = 256, 12_000  # pixels of a small picture, and of a side of the sheet, at most
LEAST = 24  # pixels of a small picture, below which nothing would be seen
SIZE = 14  # of letters, in pixels
GAP = 6
_STYLE = (
    ":root{color-scheme:light dark}body{font:15px system-ui,sans-serif;margin:24px}table{border-collapse:collapse}"
    "caption{text-align:left;font-weight:600;padding:24px 0 8px}th{font-weight:400;padding:6px;text-align:left}"
    "th.y{max-width:16em}td{padding:3px}td.none{color:#888}img{display:block;width:192px;height:auto}"
)
Cells = dict[tuple[str, ...], list[str]]  # the files of the pictures at each place of the grid


def write_sheet(asked: Plan, book: Book) -> None:
    """Write both, of what there is; a place whose job was set aside stays empty."""
    files: dict[str, list[str]] = {}
    for row in book.rows():
        files.setdefault(row["key"], []).append(row["file"])
    cells = {place: files[job.key] for place, job in asked.cells.items() if job.key in files}
    axes = _axes(asked.axes)
    book.write(PAGE, _page(axes, cells).encode())
    if cells:
        book.write(PICTURE, _picture(axes, cells, book))


def _axes(axes: dict[str, list[str]]) -> dict[str, list[str]]:
    """At least two, the last of them across and the one before it down."""
    return axes if len(axes) > 1 else {"": [""], **axes}


def _tables(axes: dict[str, list[str]]) -> Any:
    """Each combination of the axes beyond two, as its title and the labels that lead to it."""
    *others, _, _ = axes
    for place in product(*(axes[name] for name in others)):
        told = [
            value if name == "line" else f"{name} = {value}"
            for name, value in zip(others, place, strict=True)
            if len(axes[name]) > 1
        ]
        yield ", ".join(told), place


def _page(axes: dict[str, list[str]], cells: Cells) -> str:
    *_, (down, rows), (across, columns) = axes.items()
    tables = []
    for title, place in _tables(axes):
        head = "".join(f"<th>{html.escape(f'{across} = {one}')}</th>" for one in columns)
        body = ""
        for row in rows:
            shown = "".join(_cell(cells.get((*place, row, column))) for column in columns)
            name = row if down == "line" else f"{down} = {row}"
            body += f'<tr><th class="y">{html.escape(name)}</th>{shown}</tr>'
        tables.append(f"<table><caption>{html.escape(title)}</caption><tr><th></th>{head}</tr>{body}</table>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>A grid of pictures</title>'
        f"<style>{_STYLE}</style>{''.join(tables)}</html>\n"
    )


def _cell(files: list[str] | None) -> str:
    if files is None:
        return '<td class="none">set aside</td>'
    return "<td>" + "".join(f'<a href="{one}"><img src="{one}" alt="" loading="lazy"></a>' for one in files) + "</td>"


def _picture(axes: dict[str, list[str]], cells: Cells, book: Book) -> bytes:
    *_, (down, rows), (across, columns) = axes.items()
    tables = list(_tables(axes))
    font = ImageFont.load_default(SIZE)
    with book.files.open(book.place(next(iter(cells.values()))[0]), "rb") as file, Image.open(file) as first:
        width, height = first.size
    left, line = 14 * SIZE, 2 * SIZE
    most = min((LONGEST - left) // len(columns), (LONGEST - 2 * line * len(tables)) // (len(rows) * len(tables))) - GAP
    share = min(1.0, max(LEAST, min(SIDE, most)) / max(width, height))
    width, height = max(1, round(width * share)), max(1, round(height * share))
    high = 2 * line + len(rows) * (height + GAP)
    sheet = Image.new("RGB", (left + len(columns) * (width + GAP) + GAP, len(tables) * high + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, place) in enumerate(tables):
        top = number * high
        draw.text((GAP, top + GAP), _fitted(title, font, sheet.width - 2 * GAP), "black", font)
        for j, column in enumerate(columns):
            text = f"{across} = {column}" if j == 0 else column
            draw.text((left + j * (width + GAP), top + line + GAP), _fitted(text, font, width), "black", font)
        for i, row in enumerate(rows):
            y = top + 2 * line + i * (height + GAP)
            text = row if down in ("line", "") else f"{down} = {row}" if i == 0 else row
            draw.multiline_text((GAP, y), _broken(text, font, left - 2 * GAP, height), "black", font)
            for j, column in enumerate(columns):
                if files := cells.get((*place, row, column)):
                    with book.files.open(book.place(files[0]), "rb") as file, Image.open(file) as opened:
                        small = opened.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
                    sheet.paste(small, (left + j * (width + GAP), y))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _fitted(text: str, font: Any, width: float) -> str:
    """Text that is cut to a width."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _broken(text: str, font: Any, width: float, height: int) -> str:
    """Text broken between words into lines of a width, as many as there is room for."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    room = max(1, height // (SIZE + 4))
    if len(lines) > room:
        lines = [*lines[: room - 1], f"{lines[room - 1]}..."]
    return "\n".join(_fitted(one, font, width) for one in lines)
