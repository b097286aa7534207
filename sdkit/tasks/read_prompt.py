"""A prompt in the text encoder: its hidden states layer by layer, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkit.door import Shown
from sdkit.inputs.checks import typed
from sdkit.model.loading import load
from sdkit.model.tokens import Token, Word, find, read_tokens, words_of


@dataclass(frozen=True, eq=False)
class Reading(Shown):
    """What the text encoder made of a prompt."""

    tokens: list[Token]  # L of them, begin, end and padding included
    words: list[Word]
    hidden: Tensor  # (layers + 1, L, D): the tokens' own embeddings, then what each layer made of them

    def __repr__(self) -> str:
        words = " ".join(word.text for word in self.words)
        return f"<Reading of {words!r}: hidden states {tuple(self.hidden.shape)}>"

    @typed()
    def of(self, word: str) -> Tensor:
        """The hidden states of a word, the mean over its tokens, (layers + 1, D).

        Raises:
            ValueError: it is not in the prompt.

        Example:
            >>> sdkit.read_prompt("a red star").of("star").shape
            torch.Size([4, 128])
        """
        return self.hidden[:, find(self.words, word)].mean(1)

    @typed()
    def likeness(self, word: str, layer: int = -1) -> Tensor:
        """The cosine of each position with a word, (L,): how far the others, padding too, have come to mean it.

        Example:
            >>> sdkit.read_prompt("a red star").likeness("star").shape
            torch.Size([32])
        """
        if not -len(self.hidden) <= layer < len(self.hidden):
            raise ValueError(f"layer must be 0 to {len(self.hidden) - 1}, or count from the last, but is {layer}")
        return torch.cosine_similarity(self.hidden[layer], self.of(word)[layer], dim=-1)


@typed()
@torch.no_grad()
def read_prompt(prompt: str, *, model: Any = None) -> Reading:
    """Read a prompt with a model's (first) text encoder, in as many windows as it takes.

    Args:
        model: what `load` takes; the embedded model by default.

    Returns:
        Its L tokens and its words, and the hidden states (layers + 1, L, D).

    Example:
        >>> reading = sdkit.read_prompt("a red star")
        >>> [token.text for token in reading.tokens[:4]], reading.hidden.shape
        (['<|startoftext|>', 'a', 'red', 'star'], torch.Size([4, 32, 128]))
    """
    model = load(model)
    ids = model.tokenize([prompt], split=True)  # (1, L)
    windows = ids.reshape(-1, min(ids.shape[1], model.tokenizer.model_max_length))
    states = model.text_encoder(windows, output_hidden_states=True).hidden_states
    (tokens,) = read_tokens(ids, model.tokenizer)
    return Reading(tokens, words_of(tokens, model.tokenizer), torch.stack(states).flatten(1, 2))
