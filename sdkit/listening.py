"""How a run listens: prompts to token ids to text embeddings, each shown on its way."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from sdkit.events import Event, Stage, tap
from sdkit.runs import Run


@dataclass(frozen=True, eq=False)
class _Half:
    """What is heard of the negative prompts, or of the prompts."""

    words: list[list[str]]  # for each text encoder, P prompts
    clip_skip: int | None
    embeds: Tensor | None  # (P, L, D), given instead of words
    pooled: Tensor | None  # (P, D')
    silent: bool = False  # nothing was said to a model that then hears zeros, not ""


def _halves(run: Run) -> list[_Half]:
    settings, given, model = run.settings, run.embeds, run.model
    many = len(model.encoders)
    positive = _Half(
        [settings.prompts, settings.second_prompts][:many],
        settings.clip_skip,
        given.prompt_embeds,
        given.pooled_prompt_embeds,
    )
    if not run.guided:
        return [positive]
    negative = _Half(
        [settings.negative_prompts, settings.second_negative_prompts][:many],
        settings.clip_skip if settings.clip_skip_negative else None,
        given.negative_prompt_embeds,
        given.negative_pooled_prompt_embeds,
        silent=settings.negative_prompt is None
        and bool(model.pipeline.config.get("force_zeros_for_empty_prompt", False)),
    )
    return [negative, positive]


def listen(run: Run) -> Generator[Event, None, tuple[Tensor, Tensor | None]]:
    """Prompts to token ids to text embeddings (2B, L, D) and, for SDXL, pooled ones (2B, P), the negative ones first.

    Embeddings that were given are no words: TOKENS then shows the other half alone, or does not come.
    """
    model = run.model
    halves = _halves(run)
    length = max((half.embeds.shape[1] for half in halves if half.embeds is not None), default=0)
    heard, edited = yield from _tokens(run, [half for half in halves if half.embeds is None], length)
    texts: list[Tensor | None] = []
    wholes: list[Tensor | None] = []
    for half in halves:
        text, whole = half.embeds, half.pooled
        silent = text is None and half.silent and not edited
        if text is None:  # encoded once a prompt, as diffusers does: another batch size may round differently
            ids = heard.pop(0)
            if not silent:
                text, whole = model.encode_text(ids, half.clip_skip)
        texts.append(None if text is None else repeat(text, run.shape[0] // len(text)))
        wholes.append(None if whole is None else repeat(whole, run.shape[0] // len(whole)))
    text = yield from tap(Stage.TEXT, _filled(texts))
    if not model.is_xl:
        return text, None
    return text, (yield from tap(Stage.POOLED, _filled(wholes)))


def _filled(halves: list[Tensor | None]) -> Tensor:
    """Both halves in one, zeros for the one that hears nothing."""
    (known, *_) = [half for half in reversed(halves) if half is not None]
    filled = [torch.zeros_like(known) if half is None else half for half in halves]
    if len({half.shape for half in filled}) > 1:
        lengths = " and ".join(str(half.shape[1]) for half in filled)
        raise ValueError(
            f"the text embeddings are {lengths} tokens long; give negative_prompt_embeds of equal length too"
        )
    return torch.cat(filled)


def _tokens(run: Run, halves: list[_Half], length: int) -> Generator[Event, None, tuple[list[list[Tensor]], bool]]:
    """For each half that comes as words its token ids for each text encoder, (P, L), or (B, L) where somebody made the
    pictures of one prompt differ; and whether anybody replaced any."""
    model, settings, each = run.model, run.settings, run.settings.num_images_per_prompt
    if not halves:
        return [], False
    shown: list[list[tuple[Tensor, Tensor]]] = []  # for each text encoder, for each half: all rows, and the distinct
    edited = False
    for i, (name, tokenizer, _) in enumerate(model.encoders):
        words = list(chain(*(half.words[i] for half in halves)))
        ids = repeat(model.tokenize(words, tokenizer, split=settings.long_prompt == "split", length=length), each)
        seen = yield from tap(Stage.TOKENS, ids, layer=name if len(model.encoders) > 1 else None)  # (2B, L)
        edited = edited or seen is not ids
        shown.append(list(distinct(seen, len(halves), each)))
        run.token_ids = seen if run.token_ids is None else run.token_ids
    found = []
    for half in zip(*shown, strict=True):
        alike = len({len(rows) for _, rows in half}) == 1
        found.append([rows if alike else every for every, rows in half])
    return found, edited


def distinct(values: Tensor, parts: int, each: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of the parts of a batch: all its rows, and one of every `each` unless someone made them differ."""
    for part in values.chunk(parts):
        first = part[::each]
        yield part, first if torch.equal(repeat(first, each), part) else part


def repeat(values: Tensor, each: int) -> Tensor:
    """Every row `each` times in a row. By cat, which keeps the memory layout and so what convolutions round to."""
    return torch.cat([row for row in torch.split(values, 1) for _ in range(each)])
