"""From one prompt, seed, latent or picture to another: the pictures in between, and the walk as a GIF or MP4."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sdkit.events import Hook, checked
from sdkit.inputs.checks import pick, typed
from sdkit.inputs.seeds import check_seed
from sdkit.latents.autoencoder import Latents, check_latents, decode, encode
from sdkit.model.loading import load
from sdkit.model.model import Model
from sdkit.model.vocabulary import sentence
from sdkit.noise import lerp, slerp
from sdkit.process.result import Result
from sdkit.process.run import generators
from sdkit.progress import bar
from sdkit.show.film import HOLD, save_film
from sdkit.show.notebook import frames_html
from sdkit.tasks.generate import text_to_image

LINES = {"linear": lerp, "spherical": slerp}
FURTHER = 2  # times as many frames as asked for are tried further, for even steps
Line = Callable[[Tensor, Tensor, float], Tensor]
Draw = Callable[..., Result]  # `text_to_image` with what all frames share
Frame = tuple[Tensor, Image.Image]  # clean latents (1, C, h, w) and their picture


@dataclass(frozen=True, eq=False)
class Walk:
    """The frames of a walk from one end to the other."""

    images: list[Image.Image]
    latents: Tensor  # (N, C, h, w) clean, one a frame
    weights: list[float]  # how far each frame is on the way, 0 to 1
    settings: dict[str, Any]  # what made it

    @property
    def steps(self) -> list[float]:
        """How far each frame is from the one before it: Euclidean distance of their clean latents."""
        return [float(step) for step in (self.latents[1:] - self.latents[:-1]).double().flatten(1).norm(dim=1)]

    @property
    def evenness(self) -> float:
        """The longest of the steps as a multiple of their mean: 1 where all are equally long."""
        longest, mean = max(self.steps), sum(self.steps) / len(self.steps)
        return longest / mean if mean else 1.0

    def _repr_html_(self) -> str:
        facts = [("frames", len(self.images)), ("longest step of the mean one", f"{self.evenness:.2f}")]
        return frames_html("a walk", facts, self.images, [f"{weight:.0%} of the way" for weight in self.weights])

    def __repr__(self) -> str:
        return f"<Walk of {len(self.images)} frames: evenness {self.evenness:.2f}>"

    @typed()
    def save(self, path: str | Path, *, fps: float = 8) -> Path:
        """Write the frames as a film, by the file's ending: .gif, .webp, or .mp4 (needs the extra "plots").

        The ends stay for a while.

        Returns:
            The path, once the film is written.

        Example:
            >>> sdkit.interpolate("a red star", "a blue fish", frames=3, seed=7).save("walk.gif")
        """
        return save_film(self.images, path, fps, hold=HOLD, hold_first=HOLD)


@typed(frames=(2, 10_000), num_inference_steps=(1, 10_000))
def interpolate(
    start: Any,
    end: Any,
    *,
    frames: int = 16,
    prompt: str | None = None,
    seed: int = 0,
    how: str | None = None,
    even: bool = False,
    model: Any = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: Any = None,
    hooks: Iterable[Hook] = (),
) -> Walk:
    """The pictures between two prompts, two seeds, two latents or two pictures.

    The first and the last frame are the two ends, bit for bit as each comes out alone.

    | ends | what is interpolated | how |
    |---|---|---|
    | strings: prompts | text embeddings, under the noise of `seed` | linear |
    | ints: seeds | the start noise, under `prompt` | spherical |
    | tensors (1, C, h, w), with `prompt` | the same | spherical |
    | tensors or `Latents`, without `prompt` | clean latents, then decoded | linear |
    | pictures (anything else that `encode` takes; a path as `Path`) | the posterior's means, then decoded | linear |

    Args:
        frames: how many, the ends included; at least 2.
        prompt: what to draw, for seeds and for tensors that are start noise.
        seed: of the noise between prompts.
        how: "linear" or "spherical", where the default is not wanted. Noise lies on a sphere; a straight line cuts
            through it, and the pictures half-way come out dull. Text embeddings and clean latents do not.
        even: steps of about equal length between the clean latents of the frames, which otherwise change by jumps where
            the ends' own space is crossed evenly. It takes three times as many runs; `Walk.evenness` says what came of
            it.
        model, num_inference_steps, guidance_scale, scheduler, hooks: as for `text_to_image`, for what is generated.
            A scheduler that draws noise in its steps draws that of the first seed between the ends.

    Returns:
        The frames, their clean latents (N, C, h, w), and how far each is on the way, from 0 to 1.

    Raises:
        TypeError: the two ends are not of one kind.
        ValueError: they differ in shape, or an argument is not what it should be.

    Example:
        >>> walk = sdkit.interpolate("a red star", "a blue fish", frames=3, seed=7)
        >>> walk.weights
        [0.0, 0.5, 1.0]
    """
    kind, model = _kind(start, end, prompt), load(model)
    for one in [seed, *((start, end) if kind == "seeds" else ())]:
        check_seed(one)
    how = pick(
        "way to interpolate",
        ("spherical" if kind in ("seeds", "noise") else "linear") if how is None else how,
        list(LINES),
    )
    draw = partial(
        text_to_image,
        model=model,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        hooks=checked(hooks),
        progress=False,
    )
    if unknown := model.unknown_words(start, end) if kind == "prompts" else []:
        warnings.warn(sentence(model.name, unknown, model.vocabulary), stacklevel=3)
    frame_at = _way(kind, (start, end), LINES[how], model, draw, prompt, seed)
    weights: list[float] = np.linspace(0, 1, frames).tolist()
    with bar(frames * (1 + FURTHER * even), "frame") as shown:

        def at(weight: float) -> Frame:
            shown.update()
            return frame_at(weight)

        known = {weight: at(weight) for weight in weights}
        if even:
            weights = _even(known, at, frames)
    latents, images = zip(*(known[weight] for weight in weights), strict=True)
    ends = {"start": start, "end": end} if kind in ("prompts", "seeds") else {}  # tensors and pictures are no JSON
    settings = {"between": kind, **ends, "prompt": prompt, "seed": seed, "how": how, "even": even, "model": model.name}
    return Walk(list(images), torch.cat(latents), weights, settings)


def _way(
    kind: str, ends: tuple[Any, Any], line: Line, model: Model, draw: Draw, prompt: str | None, seed: int
) -> Callable[[float], Frame]:
    """The frame at each weight from 0 to 1."""
    if kind == "prompts":
        (a, a_pooled), (b, b_pooled) = (model.encode_text(model.tokenize([end])) for end in ends)  # (1, L, D), (1, D')

        def between(weight: float) -> Frame:
            pooled = None if a_pooled is None or b_pooled is None else line(a_pooled, b_pooled, weight)
            return _frame(draw(prompt_embeds=line(a, b, weight), pooled_prompt_embeds=pooled, seed=seed))

        return between
    if kind == "seeds":
        shape = model.latent_shape(1, *model.size)
        a, b = (randn_tensor(shape, generators([end]), dtype=model.dtype) for end in ends)
        # The ends draw their noise themselves: a scheduler that draws more in its steps goes on from there.
        return lambda weight: _frame(
            draw(prompt, seed=ends[int(weight)], latents=None if weight in (0, 1) else line(a, b, weight))
        )
    if kind == "noise":
        a, b = _alike(model, ends)
        return lambda weight: _frame(draw(prompt, latents=line(a, b, weight), seed=seed))
    a, b = _alike(model, [encode(end, model=model) if kind == "pictures" else end for end in ends])
    return lambda weight: (line(a, b, weight), decode(line(a, b, weight), model=model)[0])


def _frame(result: Result) -> Frame:
    return result.latents, result.image


def _alike(model: Model, ends: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Both ends as latents (1, C, h, w)."""
    a, b = (check_latents(model, end) for end in ends)
    if len(a) != 1 or a.shape != b.shape:
        raise ValueError(
            f"a walk goes between two latents (1, C, h, w), but they are {tuple(a.shape)}, {tuple(b.shape)}"
        )
    return a, b


def _kind(start: Any, end: Any, prompt: str | None) -> str:
    """What is to be interpolated: prompts, seeds, noise, latents or pictures."""
    kinds = [_kind_of(one) for one in (start, end)]
    if kinds[0] != kinds[1]:
        raise TypeError(f"a walk goes between two of one kind, but was given {kinds[0]} and {kinds[1]}")
    if kinds[0] == "latents" and prompt is not None:
        return "noise"
    if kinds[0] in ("prompts", "pictures") and prompt is not None:
        raise ValueError(f"prompt was given with {kinds[0]}; it says what to draw between seeds or start noise")
    if kinds[0] == "seeds" and prompt is None:
        raise ValueError("seeds were given without prompt; it says what to draw from them")
    return kinds[0]


def _kind_of(one: Any) -> str:
    if isinstance(one, str):
        return "prompts"
    if isinstance(one, int):
        return "seeds"
    picture = one.ndim > 2 and one.shape[-3] == 3 if isinstance(one, Tensor) else not isinstance(one, Latents)
    return "pictures" if picture else "latents"


def _even(known: dict[float, Frame], at: Callable[[float], Frame], frames: int) -> list[float]:
    """So many weights from 0 to 1 whose latents are about equally far apart along the way, added to `known`.

    Each further frame halves the longest step so far, since the way may jump anywhere; then those are chosen that lie
    nearest to even distances along all of them.
    """
    for _ in range(FURTHER * frames):
        weights, lengths = _lengths(known)
        longest = int(np.diff(lengths).argmax())
        middle = (weights[longest] + weights[longest + 1]) / 2
        known[middle] = at(middle)
    weights, lengths = _lengths(known)
    chosen = [0]
    for i, length in enumerate(np.linspace(0, lengths[-1], frames)[1:-1], start=1):
        first, last = chosen[-1] + 1, len(weights) - (frames - i)  # leave room for the frames to come
        chosen.append(first + int(np.abs(lengths[first : last + 1] - length).argmin()))
    return [weights[i] for i in chosen] + [1.0]


def _lengths(known: dict[float, Frame]) -> tuple[list[float], np.ndarray]:
    """The weights in order, and how far the latents have come at each along the polyline through all."""
    weights = sorted(known)
    latents = torch.cat([known[weight][0] for weight in weights]).cpu().double()
    steps = (latents[1:] - latents[:-1]).flatten(1).norm(dim=1)
    return weights, np.concatenate([[0.0], steps.cumsum(0).numpy()])
