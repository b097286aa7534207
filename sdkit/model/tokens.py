"""Tokens, and the words that they belong to."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Token:
    """One position of a tokenized prompt."""

    id: int
    text: str  # as the tokenizer writes it
    word: int | None  # which word of the prompt it belongs to, from 0; None for begin, end and padding


@dataclass(frozen=True)
class Word:
    """One word of a prompt, as the tokenizer understood it."""

    text: str
    places: tuple[int, ...]  # of its tokens: columns of attention, rows of the text embeddings


def read_tokens(ids: Tensor, tokenizer: Any) -> list[list[Token]]:
    """Every row's tokens (R, L). What comes before a begin or after an end belongs to no word."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    added = frozenset(tokenizer.get_added_vocab())
    rows = []
    for row in ids.tolist():
        tokens: list[Token] = []
        word, within, before = -1, begin is None, None
        pieces = tokenizer.convert_ids_to_tokens(row)
        begins = _word_beginnings(pieces)
        for number, piece in zip(row, pieces, strict=True):
            if number in (begin, end):
                within, before = number == begin, None
            of_a_word = within and number not in (begin, end)
            if of_a_word:
                word += before is None or begins(before, piece, added)
                before = piece
            tokens.append(Token(number, piece.removesuffix("</w>"), word if of_a_word else None))
        rows.append(tokens)
    return rows


def _word_beginnings(pieces: Sequence[str]) -> Callable[[str, str, frozenset[str]], bool]:
    """How this tokenizer marks where a word begins: CLIP marks ends, T5 and GPT-2 beginnings, BERT the rest."""

    def begins(before: str, piece: str, added: frozenset[str]) -> bool:
        if piece in added or before in added:  # a word of textual inversion may go on as <cat>_1, <cat>_2
            return not (piece in added and before in added and _stem(piece) == _stem(before) != piece)
        if any(one.endswith("</w>") for one in pieces):
            return before.endswith("</w>")
        if any(one.startswith(("▁", "Ġ")) for one in pieces):
            return piece.startswith(("▁", "Ġ"))
        return not piece.startswith("##")

    return begins


def _stem(piece: str) -> str:
    return re.sub(r"_\d+$", "", piece)


def words_of(row: Sequence[Token], tokenizer: Any) -> list[Word]:
    """The words of a row of tokens, in order."""
    places: dict[int, list[int]] = {}
    for place, token in enumerate(row):
        if token.word is not None:
            places.setdefault(token.word, []).append(place)

    def text(at: Sequence[int]) -> str:
        first = row[at[0]].text
        if len(at) > 1 and all(_stem(row[i].text) == first for i in at):
            return first  # several vectors of textual inversion, <cat>, <cat>_1, <cat>_2: its name is the first
        decoded: str = tokenizer.decode([row[i].id for i in at])
        return decoded.strip()

    return [Word(text(at), tuple(at)) for at in places.values()]


def find(words: Sequence[Word], wanted: str) -> list[int]:
    """The places of a word, or of several in a row, wherever it stands in a prompt; upper case is as good as lower.

    Raises:
        ValueError: it is not in the prompt; the message has the words that are.
    """
    places = places_of(words, wanted)
    if not places and not words:
        raise ValueError(
            f"there is no word {wanted!r}, as this run was given no words there; give the place of a token"
        )
    if not places:
        known = ", ".join(repr(text) for text in dict.fromkeys(word.text for word in words))
        beside = "; begin, end and padding are asked for by their place, such as 0" if wanted.startswith("<|") else ""
        raise ValueError(f"there is no word {wanted!r} in the prompt; its words are {known}{beside}")
    return places


def places_of(words: Sequence[Word], wanted: str) -> list[int]:
    """The same, and none if it is not there."""
    letters = _letters(wanted)
    return [
        place
        for first in range(len(words))
        for last in range(first, len(words))
        if letters and "".join(_letters(word.text) for word in words[first : last + 1]) == letters
        for word in words[first : last + 1]
        for place in word.places
    ]


def _letters(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
