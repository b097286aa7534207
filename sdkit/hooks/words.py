"""Words: what the U-Net takes from the text encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sdkit.events import Event, Hook, Stage, on
from sdkit.inputs.checks import pick, typed
from sdkit.model.tokens import read_tokens

PARTS = ("begin", "words", "end", "padding")  # of a window of tokens


@typed()
def mix_words(word: str, other: str, share: float = 0.5) -> Hook:
    """Give the tokens of a word the embeddings of something between it (share 0) and another word (share 1).

    The other is encoded in the same prompt, in its place; the embeddings of all other tokens stay, which depend on the
    first.

    Raises:
        ValueError: the prompt has no such word, or the other has more or fewer tokens.

    Example:
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.mix_words("star", "cat", 0.5)])
    """

    @on(Stage.TEXT)
    def mix_words(event: Event) -> None:
        run, mixed = event.run, event.value.clone()
        new = run.model.tokenizer(other, add_special_tokens=False).input_ids
        for row, places in enumerate(run.places(word), start=-run.shape[0]):
            if not new or len(places) % len(new):
                raise ValueError(
                    f"{other!r} has {len(new)} tokens, which do not fit into the {len(places)} of {word!r}"
                )
            ids = run.token_ids[row].clone()
            ids[places] = ids.new_tensor(new * (len(places) // len(new)))
            (instead,), _ = run.model.encode_text(ids[None], run.settings.clip_skip)  # (L, D)
            mixed[row, places] = torch.lerp(mixed[row, places], instead[places], share)
        event.value = mixed

    return mix_words


@typed()
def hear_only(*parts: str) -> Hook:
    """Keep the embeddings of only some of "begin", "words", "end" and "padding"; the rest are the empty prompt's.

    CLIP's padding attends to the whole prompt: in the embedded model it is what carries the background.

    Example:
        >>> unpadded = sdkit.hooks.hear_only("begin", "words")
        >>> sdkit.text_to_image("a red star on a blue background", seed=7, hooks=[unpadded])
    """
    for part in parts:
        pick("part of a prompt", part, PARTS)

    @on(Stage.TEXT)
    def hear_only(event: Event) -> None:
        run, value = event.run, event.value.clone()
        empty, _ = run.model.encode_text(
            run.model.tokenize([""], length=value.shape[1]), run.settings.clip_skip
        )  # (1, L, D)
        for row in range(-run.shape[0], 0):
            emptied = [i for i, part in enumerate(_parts(run, row)) if part not in parts]
            value[row, emptied] = empty[0, emptied]
        event.value = value

    return hear_only


def _parts(run: Any, row: int) -> Iterable[str]:
    """Which of `PARTS` each position of a prompt is."""
    ended = False
    for token in read_tokens(run.token_ids[row : row + 1 or None], run.model.tokenizer)[0]:
        begins = token.id == run.model.tokenizer.bos_token_id
        ends = token.word is None and not begins and not ended
        yield "begin" if begins else "words" if token.word is not None else "end" if ends else "padding"
        ended = not begins and (ended or ends)
