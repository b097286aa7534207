"""The words that a small model knows, and what to say of others. Models of everything list none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

_WORD = re.compile(r"[^\W_]+")


def words_in(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def vocabulary_of(tokenizer: Any) -> tuple[str, ...]:
    """The words that a tokenizer's configuration lists."""
    listed = getattr(tokenizer, "init_kwargs", {}).get("vocabulary")
    return tuple(word for word in listed if isinstance(word, str)) if isinstance(listed, list | tuple) else ()


def unknown_words(prompts: Sequence[str], tokenizer: Any) -> list[str]:
    """The words of prompts that are not in its vocabulary, nor were taught beside it, as by textual inversion: each
    once, in lower case."""
    vocabulary, found = frozenset(vocabulary_of(tokenizer)), dict[str, None]()
    if not vocabulary:
        return []
    added = tokenizer.get_added_vocab()
    for prompt in prompts:
        text = prompt.lower()
        for word in sorted(map(str.lower, added), key=len, reverse=True):
            text = text.replace(word, " ")
        found |= dict.fromkeys(word for word in words_in(text) if word not in vocabulary)
    return list(found)


def sentence(name: str, unknown: Sequence[str], vocabulary: Sequence[str]) -> str:
    """What a user should know of a prompt with such words, or, if there are none, of one that says nothing."""
    told = []
    for word in unknown:
        near = difflib.get_close_matches(word, vocabulary, n=1) or [
            one for one in vocabulary if sorted(one) == sorted(word)
        ]
        told.append(f"{word!r} (did you mean {near[0]!r}?)" if near else repr(word))
    does = f"does not know {', '.join(told)}" if told else "is asked for nothing"
    return (
        f"{name} {does}, and draws what chance gives instead; all that it knows: {' '.join(vocabulary)}; a checkpoint "
        "of Stable Diffusion knows more: give one as model"
    )
