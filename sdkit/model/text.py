"""From prompts to token ids to text embeddings, in windows of the text encoder's size; and SDXL's sizes as numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sdkit.inputs.arguments import Settings
from sdkit.model.extras import adapter_layers

Encoder = tuple[str, Any, Any]  # its name in the pipeline, its tokenizer, and itself


def tokenize(prompts: Sequence[str], tokenizer: Any, *, split: bool, length: int) -> Tensor:
    """Token ids (P, L) in windows of the text encoder's size; `Model.tokenize` says the rest."""
    window: int = min(length or math.inf, tokenizer.model_max_length)
    (empty,) = _windows("", tokenizer, window, split)
    windows = [_windows(prompt, tokenizer, window, split) for prompt in prompts]
    many = max(-(-length // window), *(len(rows) for rows in windows))
    return torch.tensor([list(chain(*rows, *[empty] * (many - len(rows)))) for rows in windows])


def _windows(prompt: str, tokenizer: Any, window: int, split: bool) -> list[list[int]]:
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    ends = [token.endswith("</w>") for token in tokenizer.convert_ids_to_tokens(ids)]
    parts: list[list[int]] = []
    room = window - 2  # beside begin and end
    while ids or not parts:
        end = len(ids)
        if end > room:
            end = next((i for i in range(room, 0, -1) if ends[i - 1]), room) if split else room
        parts.append(ids[:end])
        ids, ends = ids[end:], ends[end:]
        if ids and not split:
            cut = tokenizer.decode(ids)
            warnings.warn(
                f"the prompt is longer than {window} tokens; left out: {cut!r}; long_prompt='split' would use it",
                stacklevel=4,
            )
            break
    begin, end_id, pad = (getattr(tokenizer, f"{what}_token_id") for what in ("bos", "eos", "pad"))
    return [[begin, *part, end_id, *[pad] * (room - len(part))] for part in parts]


@torch.no_grad()
def encode_text(
    encoders: Sequence[Encoder], ids: Sequence[Tensor], clip_skip: int | None, *, is_xl: bool
) -> tuple[Tensor, Tensor | None]:
    """Text embeddings (P, L, D) and the pooled one (P, D'); `Model.encode_text` says the rest."""
    embeddings, pooled = [], None
    for (_, tokenizer, encoder), rows in zip(encoders, ids, strict=True):
        windows = rows.reshape(-1, min(rows.shape[1], tokenizer.model_max_length))
        output = encoder(windows, output_hidden_states=is_xl or clip_skip is not None)
        if is_xl:
            embedding = _hidden_state(output.hidden_states[:-1], clip_skip or 0)
            if pooled is None and output[0].ndim == 2:  # of an encoder with a projection
                pooled = output[0][:: len(windows) // len(rows)]
        elif clip_skip is None:
            embedding = output[0]
        else:
            inner: Any = getattr(encoder, "text_model", encoder)  # transformers 5.6 took a level away
            embedding = inner.final_layer_norm(_hidden_state(output.hidden_states, clip_skip))
        embeddings.append(embedding.reshape(len(rows), -1, embedding.shape[-1]))
    return embeddings[0] if len(embeddings) == 1 else torch.cat(embeddings, dim=-1), pooled


@contextmanager
def scales_kept(modules: Sequence[Any]) -> Iterator[None]:
    """LoRA adapters are afterwards as strong as they were: diffusers divides by a run's scale, which rounds, and takes
    0 back to 1."""
    scales = [scaling for module in modules for _, scaling in adapter_layers(module)]
    before = [dict(scaling) for scaling in scales]
    try:
        yield
    finally:
        for scaling, was in zip(scales, before, strict=True):
            scaling.update(was)


@contextmanager
def lora_scale(encoders: Sequence[Encoder], scale: float | None) -> Iterator[None]:
    """The text encoders' LoRA adapters so strong within this scope, as diffusers has it for the U-Net's scale."""
    modules = [encoder for *_, encoder in encoders]
    if scale is None or not any(hasattr(one, "peft_config") for one in modules):
        yield
        return
    from diffusers.utils import scale_lora_layers

    with scales_kept(modules):
        for encoder in modules:
            scale_lora_layers(encoder, scale)
        yield


def _hidden_state(states: Sequence[Tensor], clip_skip: int) -> Tensor:
    """The last of a text encoder's hidden states but so many; the first are the tokens' own embeddings."""
    if clip_skip >= len(states):
        raise ValueError(f"clip_skip {clip_skip} leaves nothing of {len(states) - 1} layers; take fewer")
    return states[-1 - clip_skip]


def ids_for_all(ids: Tensor, encoders: Sequence[Encoder]) -> list[Tensor]:
    """The first text encoder's ids (P, L) as each of them takes them: only what fills up a window differs."""
    _, tokenizer, _ = encoders[0]
    windows = ids.reshape(-1, min(ids.shape[1], tokenizer.model_max_length))
    end = (windows == tokenizer.eos_token_id).int()
    filling = ((end.cumsum(1) - end) > 0).view_as(ids)  # after the first end
    others = [tokenizer.pad_token_id for _, tokenizer, _ in encoders[1:]]
    return [ids, *(torch.where(filling, pad, ids) for pad in others)]


def time_ids(settings: Settings, numbers: int, *, from_picture: bool) -> tuple[list[float], list[float]]:
    """What SDXL takes as numbers beside its words, for the unconditional half and for the conditional one: 6 of sizes
    and crop, or for its refiner 5 of size, crop and score (Podell et al. 2023, arXiv:2307.01952, section 2.2)."""
    assert settings.height is not None and settings.width is not None  # noqa: PT018 - filled in before a run begins
    size = (settings.height, settings.width)
    original, target = settings.original_size or size, settings.target_size or size
    crop, negative_crop = settings.crops_coords_top_left, settings.negative_crops_coords_top_left
    negative = (settings.negative_original_size or original, settings.negative_target_size or target)
    if numbers == 5:
        uncond: list[float] = [*negative[0], *(negative_crop or (0, 0)), settings.negative_aesthetic_score]
        return uncond, [*original, *crop, settings.aesthetic_score]
    cond: list[float] = [*original, *crop, *target]
    if not from_picture and not (settings.negative_original_size and settings.negative_target_size):
        negative = (original, target)  # as in diffusers, one of the two alone is not used from words alone
    elif not from_picture:
        crop = negative_crop or (0, 0)
    uncond = [*negative[0], *crop, *negative[1]]
    return uncond, cond
