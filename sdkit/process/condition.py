"""What the U-Net goes by: prompts to token ids to text embeddings, each shown on its way, and what it takes beside."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Event, Stage
from sdkit.model.condition import Condition, Control
from sdkit.model.text import lora_scale
from sdkit.process.materials import for_each_net
from sdkit.process.run import Run


@dataclass(frozen=True, eq=False)
class _Half:
    """The negative prompts, or the prompts."""

    words: list[list[str]]  # for each text encoder, P prompts
    clip_skip: int | None
    embeds: Tensor | None  # (P, L, D), given instead of words
    pooled: Tensor | None  # (P, D')
    zeros: bool = False  # no negative prompt, and the pipeline uses zeros for it


def _halves(run: Run) -> list[_Half]:
    settings, embeds, model = run.settings, run.embeds, run.model
    many = len(model.encoders)
    positive = _Half(
        [settings.prompts, settings.second_prompts][:many],
        settings.clip_skip,
        embeds.prompt_embeds,
        embeds.pooled_prompt_embeds,
    )
    if not run.guided:
        return [positive]
    negative = _Half(
        [settings.negative_prompts, settings.second_negative_prompts][:many],
        settings.clip_skip if settings.clip_skip_negative else None,
        embeds.negative_prompt_embeds,
        embeds.negative_pooled_prompt_embeds,
        zeros=run.empty_is_zeros,
    )
    return [negative, positive]


def embed(run: Run) -> Generator[Event, None, tuple[Tensor, Tensor | None]]:
    """Prompts to token ids to text embeddings (2B, L, D) and, for SDXL, pooled ones (2B, P), the negative ones first.

    Where embeddings were given instead of words, TOKENS shows the other half alone, or does not come.
    """
    model = run.model
    halves = _halves(run)
    length = max((half.embeds.shape[1] for half in halves if half.embeds is not None), default=0)
    ids, edited = yield from _tokens(run, [half for half in halves if half.embeds is None], length)
    texts: list[Tensor | None] = []
    pooled: list[Tensor | None] = []
    for half in halves:
        text, whole = half.embeds, half.pooled
        zeros = text is None and half.zeros and not edited
        if text is None:  # encoded once a prompt, as diffusers does: another batch size may round differently
            of_half = ids.pop(0)
            if not zeros:
                with lora_scale(model.encoders, (run.attention or {}).get("scale")):
                    text, whole = model.encode_text(of_half, half.clip_skip)
        texts.append(None if text is None else repeat(text, run.shape[0] // len(text)))
        pooled.append(None if whole is None else repeat(whole, run.shape[0] // len(whole)))
    text = yield from run.show(Stage.TEXT, _joined(texts))
    if not model.is_xl:
        return text, None
    return text, (yield from run.show(Stage.POOLED, _joined(pooled)))


def _joined(halves: list[Tensor | None]) -> Tensor:
    """Both halves in one, zeros for the one that is None."""
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
    if not halves or not model.encoders:
        return [[] for _ in halves], False
    by_encoder: list[list[tuple[Tensor, Tensor]]] = []  # of each half: all rows, and the distinct ones
    edited = False
    for i, (name, tokenizer, _) in enumerate(model.encoders):
        words = list(chain(*(half.words[i] for half in halves)))
        split = settings.long_prompt == "split"
        ids = repeat(model.tokenize(words, tokenizer, split=split, length=length, device=run.device), each)
        run.tokens[name] = ids
        after = yield from run.show(Stage.TOKENS, ids, layer=name if len(model.encoders) > 1 else None)  # (2B, L)
        edited = edited or after is not ids
        by_encoder.append(list(distinct(after, len(halves), each)))
        run.tokens[name] = after
    ids_of_halves = []
    for half in zip(*by_encoder, strict=True):
        alike = len({len(rows) for _, rows in half}) == 1
        ids_of_halves.append([rows if alike else every for every, rows in half])
    return ids_of_halves, edited


def distinct(values: Tensor, parts: int, each: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of the parts of a batch: all its rows, and one of every `each` unless someone made them differ."""
    for part in values.chunk(parts):
        first = part[::each]
        yield part, first if torch.equal(repeat(first, each), part) else part


def repeat(values: Tensor, each: int) -> Tensor:
    """Every row `each` times in a row. By cat, which keeps the memory layout and so what convolutions round to."""
    return torch.cat([row for row in torch.split(values, 1) for _ in range(each)])


def condition(run: Run, text: Tensor, pooled: Tensor | None, painting: Any = None) -> Condition:
    """All that the U-Net takes beside x and t; of what inpainting keeps, what the U-Net sees, if it does."""
    model, pictures = run.model, run.shape[0]
    twice = 2 if run.guided else 1
    time_ids = image_embeds = None
    if pooled is not None:
        negative, positive = model.time_ids(run.settings, from_picture=run.pictures.pixels is not None)
        time_ids = torch.cat([negative.repeat(pictures, 1), positive.repeat(pictures, 1)][-twice:]).to(run.device)
    adapter = run.pictures.ip_adapter_image, run.pictures.ip_adapter_image_embeds
    if any(one is not None for one in adapter):
        image_embeds = model.pipeline.prepare_ip_adapter_image_embeds(*adapter, run.device, pictures, run.guided)
    painted = None if painting is None else painting.for_unet(twice)
    guidance = model.embed_guidance(run.guidance_scale, pictures).to(run.device) if model.takes_guidance else None
    return Condition(text, pooled, time_ids, image_embeds, guidance, painted, _control(run), run.attention)


def _control(run: Run) -> Control | None:
    if not run.pictures.control:
        return None
    settings, nets = run.settings, run.model.controlnets
    guess_mode = settings.guess_mode or nets[0].config.global_pool_conditions
    twice = run.guided and not guess_mode
    pictures = []
    for net, picture in zip(nets, run.pictures.control, strict=True):
        rows = picture.repeat_interleave(run.shape[0] // len(picture), dim=0).to(run.device, net.dtype)
        pictures.append(torch.cat([rows] * 2) if twice else rows)
    values = (settings.controlnet_conditioning_scale, settings.control_guidance_start, settings.control_guidance_end)
    scale, start, end = (for_each_net(value, len(nets)) for value in values)
    return Control(pictures, scale, start, end, guess_mode)
