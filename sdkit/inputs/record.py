"""The record of a run as a file has it, which somebody else may have made: checked once, where it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from sdkit.inputs.arguments import GIVEN, Settings


def _is(*kinds: type) -> Callable[[Any], bool]:
    """Of one of these types; a truth value is no number."""
    return lambda value: isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(one) for one in value)


def _dict_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and check(v) for k, v in value.items())


_NUMBERS, _TEXT = _dict_of(_is(int, float, type(None))), _is(str, type(None))
_SHAPE = _is(list, type(None))
# What a record has beside the arguments: what each entry must be, and that in words.
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("model", "model_hash", "device", "dtype", "engine", "process", "space"), (_is(str), "text")),
    **dict.fromkeys((*GIVEN, "masked_image_latents"), (_TEXT, "a hash")),
    **dict.fromkeys(("index", "stopped_after", "refinements"), (_is(int), "a whole number")),
    **dict.fromkeys(("latents", "step_by_step"), (_is(bool), "true or false")),
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds", "ip_adapter_image_embeds"), (_SHAPE, "a shape")),
    "seed": (lambda value: value is None or _list_of(_is(int))(value), "a list of whole numbers"),
    "visited": (_list_of(_is(int)), "a list of steps"),
    "given": (_list_of(_is(str)), "a list of the U-Net's parts"),
    "cross_attention_kwargs": (_is(dict, type(None)), "names with values"),
    "edited_by": (_list_of(_is(str)), "a list of names"),
    "unknown_words": (_list_of(_is(str)), "a list of words"),
    "residuals": (_list_of(_is(int, float)), "a list of numbers"),
    "levels": (_list_of(_NUMBERS), "a list of noise levels"),
    "extras": (_dict_of(_is(dict, list)), "what acts beside the weights, by name"),
    "start": (_NUMBERS, "numbers by name"),
    "versions": (_dict_of(_is(str)), "versions by name"),
    "scheduler": (lambda value: _dict_of(lambda _: True)(value) and isinstance(value.get("class"), str), "a scheduler"),
}


def check_record(record: Any, source: str, needed: Iterable[str] = ()) -> dict[str, Any]:
    """The record of a file, if every entry is what it should be.

    Args:
        source: the file, for the message.
        needed: entries without which nothing can be done with it.

    Raises:
        ValueError: the record is damaged, or none of sdkit; the message names the file and the entry.
    """
    if not isinstance(record, dict):
        raise ValueError(f"the settings in {source} are damaged: expected names with values")
    for name in needed:
        if name not in record:
            raise ValueError(f"the settings in {source} are damaged: they lack {name!r}")
    for name, (check, words) in _ENTRIES.items():
        if name in record and not check(record[name]):
            raise ValueError(
                f"the settings in {source} are damaged: {name} must be {words}, but is {record[name]!r:.80}"
            )
    arguments = {one.name: record[one.name] for one in fields(Settings) if one.name in record}
    if arguments.get("prompt") is None:  # embeddings stood in its place
        arguments["prompt"] = ""
    try:
        Settings(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the settings in {source} are damaged: {error}") from error
    return record
