"""Ready-made hooks, each a dozen lines, which are also the examples of how to write your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.maps import AttentionMaps
from sdkit.pictures import to_pil
from sdkit.settings import pick
from sdkit.words import find, heard, places_of, read_tokens

T = TypeVar("T")
PARTS = ("begin", "words", "end", "padding")  # of a window of tokens


def guidance_interval(low: int, high: int) -> Hook:
    """Guide only at training timesteps low <= t <= high (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

    @on(Stage.NOISE)
    def guidance_interval(event: Event) -> None:
        if event.t is not None and not low <= event.t <= high and event.origin.guided:
            _, cond = event.value.chunk(2)
            event.value = torch.cat([cond, cond])  # what guidance makes of two halves that agree is either

    return guidance_interval


def dynamic_threshold(percentile: float = 0.995, limit: float = 3.0) -> Hook:
    """Keep each x0 within `limit`: where more than 1 - percentile of its values lie beyond, they are cut at that
    percentile and all is scaled down (Saharia et al. 2022, arXiv:2205.11487, section 2.3, there with limit 1 on
    pixels)."""

    @on(Stage.DENOISED)
    def dynamic_threshold(event: Event) -> None:
        x0 = event.value
        reach = torch.quantile(x0.abs().flatten(1).float(), percentile, dim=1).clamp(min=limit).view(-1, 1, 1, 1)
        event.value = (x0.clamp(-reach, reach) * (limit / reach)).to(x0.dtype)

    return dynamic_threshold


def inject_noise(strength: float, *, seed: int, steps: range) -> Hook:
    """Add noise of standard deviation `strength` to the latents before some steps."""
    generator = torch.Generator().manual_seed(seed)

    @on(Stage.LATENT)
    def inject_noise(event: Event) -> None:
        if event.step in steps:
            noise = torch.randn(event.value.shape, generator=generator)
            event.value = event.value + strength * noise.to(event.value)

    return inject_noise


def blend(mask: Tensor, latents: Tensor) -> Hook:
    """Let the run paint only where the mask (h, w) is 1: elsewhere each x0 is `latents` (C, h, w) or (B, C, h, w)."""

    @on(Stage.DENOISED)
    def blend(event: Event) -> None:
        event.value = torch.lerp(latents.to(event.value), event.value, mask.to(event.value))

    return blend


def steer(loss: Callable[[Tensor], Tensor], scale: float) -> Hook:
    """Move each x0 (B, C, h, w) down the gradient of a loss on it, `scale` times its length of one unit.

    Compare `scale` with the length of x0, about the root of the number of its values: 32 for 4x16x16, 128 for 4x64x64.
    An eighth of that at each step is strong.
    A loss on the picture decodes x0 first, with `model.vae.decode(x0 / model.vae.config.scaling_factor).sample`.
    """

    @on(Stage.DENOISED)
    def steer(event: Event) -> None:
        with torch.enable_grad():
            x0 = event.value.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(x0), x0)
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        event.value = event.value - scale * gradient / length

    return steer


def preview(show: Callable[[int, list[Image.Image]], Any], every: int = 1) -> Hook:
    """Decode the x0 of each n-th step and call `show(step, pictures)`."""

    @on(Stage.DENOISED)
    def preview(event: Event) -> None:
        if event.step is not None and event.step % every == 0:
            show(event.step, to_pil(event.origin.model.decode(event.value)))

    return preview


def stop_after(step: int) -> Hook:
    """End the run with what this step believes in: its x0 is the clean latent, and is decoded."""

    @on(Stage.DENOISED)
    def stop_after(event: Event) -> None:
        event.origin.stop = event.step == step

    return stop_after


def from_diffusers(callback: Callable[..., dict[str, Any]]) -> Hook:
    """A function that was written as diffusers' `callback_on_step_end`, as a hook.

    It is called after every step with the pipeline, the step, the timestep and {"latents": ...}, and may return others.

    Raises:
        ValueError: it returned something else than latents, which diffusers would have taken over.
    """
    last: list[Event] = []

    @on(Stage.LATENT)
    def from_diffusers(event: Event) -> None:
        if last:
            before = last.pop()
            returned = callback(event.origin.model.pipeline, before.step, before.t, {"latents": event.value})
            if others := set(returned) - {"latents"}:
                raise ValueError(
                    f"the callback returned {', '.join(sorted(others))}; a hook of sdkit takes latents alone"
                )
            event.value = returned.get("latents", event.value)
        if event.step is not None:
            last.append(event)

    return from_diffusers


# ---------------------------------------------------------------------------------------------------------------------
# Words: what the U-Net hears of them, and where it looks for them


def mix_words(word: str, other: str, share: float = 0.5) -> Hook:
    """Give the tokens of a word the embeddings of something between it (share 0) and another word (share 1).

    The other is heard in the same prompt, in its place; all other tokens stay, though they have heard of the first.

    Raises:
        ValueError: the prompt has no such word, or the other has more or fewer tokens.
    """

    @on(Stage.TEXT)
    def mix_words(event: Event) -> None:
        run, mixed = event.origin, event.value.clone()
        _, prompts = heard(run)
        new = run.model.tokenizer(other, add_special_tokens=False).input_ids
        find([one for words in prompts for one in words], word)
        for picture, words in enumerate(prompts):
            row, places = picture - len(prompts), places_of(words, word)
            if len(places) % len(new):
                raise ValueError(
                    f"{other!r} has {len(new)} tokens, which do not fit into the {len(places)} of {word!r}"
                )
            ids = run.token_ids[row].clone()
            ids[places] = ids.new_tensor(new * (len(places) // len(new)))
            (instead,), _ = run.model.encode_text(ids[None], run.settings.clip_skip)  # (L, D)
            mixed[row, places] = torch.lerp(mixed[row, places], instead[places], share)
        event.value = mixed

    return mix_words


def hear_only(*parts: str) -> Hook:
    """Let the U-Net hear only some of "begin", "words", "end" and "padding" of the prompt; the rest is the empty one's.

    CLIP's padding has read the whole prompt: in the embedded model it is what carries the background.
    """
    for part in parts:
        pick("part of a prompt", part, PARTS)

    @on(Stage.TEXT)
    def hear_only(event: Event) -> None:
        run, value = event.origin, event.value.clone()
        empty, _ = run.model.encode_text(
            run.model.tokenize([""], length=value.shape[1]), run.settings.clip_skip
        )  # (1, L, D)
        for row in range(-run.shape[0], 0):
            deaf = [i for i, part in enumerate(_parts(run, row)) if part not in parts]
            value[row, deaf] = empty[0, deaf]
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


def reweight(word: str, factor: float) -> Hook:
    """Let a word be looked at `factor` times as much: above 1 there is more of it, below 1 less (Hertz et al. 2022,
    arXiv:2208.01626, section 3)."""
    places = _once_a_run(lambda run: _places(run, word))

    @on(Stage.ATTENTION)
    def reweight(event: Event) -> None:
        scale = torch.ones(len(event.value), 1, 1, event.value.shape[-1])
        for row, at in places(event).items():
            scale[row, ..., at] = factor
        event.value = event.value * scale.to(event.value)

    return reweight


def keep_layout(trace: Any, until: float = 0.8) -> Hook:
    """Look for each word where another run did, in the first `until` of the steps: another word in the same place makes
    the same layout with another thing in it (prompt-to-prompt, Hertz et al. 2022, arXiv:2208.01626).

    Tokens that both prompts share look where they did; one instead of another takes over its place; those that are new
    look where they like.

    Args:
        trace: of a run from the same seed with as many steps, recorded with `Trace(["tokens", "attention"])`.
    """
    source, kept = _recorded(trace, Stage.ATTENTION), _once_a_run(lambda run: _alignment(trace, run))

    @on(Stage.ATTENTION)
    def keep_layout(event: Event) -> None:
        if not _early(event, until):
            return
        moves, free = kept(event)  # (B, L', L), (B, 1, 1, L)
        pictures = len(moves)
        theirs = source(event)[-pictures:].to(event.value)  # (B, heads, h*w, L')
        ours = event.value[-pictures:]
        moved = theirs @ moves.to(ours)[:, None] + ours * free.to(ours)
        event.value = torch.cat([event.value[:-pictures], moved])

    return keep_layout


def keep_self_attention(trace: Any, until: float = 0.5) -> Hook:
    """Let each place look at the places that it looked at in another run, in the first `until` of the steps: shapes
    stay (Tumanyan et al. 2022, arXiv:2211.12572).

    Args:
        trace: of a run with as many pictures, the same size and as many steps, recorded with
            `Trace(["self_attention"])`. Of a run without guidance it serves both halves of one with guidance.
    """
    source = _recorded(trace, Stage.SELF_ATTENTION)

    @on(Stage.SELF_ATTENTION)
    def keep_self_attention(event: Event) -> None:
        if _early(event, until):
            theirs = source(event).to(event.value)
            event.value = torch.cat([theirs] * (len(event.value) // len(theirs)))

    return keep_self_attention


def local_blend(trace: Any, maps: AttentionMaps, word: str, threshold: float = 0.3) -> Hook:
    """Change another run's picture only where a word looks: elsewhere each x0 is that of its trace (local blend of
    prompt-to-prompt, arXiv:2208.01626, section 4). Beside `keep_layout`, so that the word looks at the same place.

    Args:
        trace: of a run from the same seed with as many steps, recorded with "denoised".
        maps: of that run, or those that this run is recording, among its hooks.
        threshold: of `maps.heat(word)`, in [0, 1].
    """
    source = _recorded(trace, Stage.DENOISED)

    @on(Stage.DENOISED)
    def local_blend(event: Event) -> None:
        x0 = event.value
        heats = torch.stack([maps.heat(word, picture=i) for i in range(len(x0))])[:, None]  # (B, 1, H, W)
        mask = (F.interpolate(heats, x0.shape[2:], mode="area") >= threshold).to(x0)  # (B, 1, h, w)
        event.value = torch.lerp(source(event).to(x0), x0, mask)

    return local_blend


def _early(event: Event, until: float) -> bool:
    return event.step is not None and event.step < until * len(event.origin.visits)


def _once_a_run(work: Callable[[Any], T]) -> Callable[[Event], T]:
    """What is the same in every step of a run, worked out once."""
    known: WeakKeyDictionary[Any, T] = WeakKeyDictionary()

    def get(event: Event) -> T:
        if event.origin not in known:
            known[event.origin] = work(event.origin)
        return known[event.origin]

    return get


def _places(run: Any, word: str) -> dict[int, list[int]]:
    """Where a word is in the prompt of each picture, by the row of the batch, from the end."""
    _, prompts = heard(run)
    find([one for words in prompts for one in words], word)  # or say that it is nowhere
    return {picture - len(prompts): places_of(words, word) for picture, words in enumerate(prompts)}


def _recorded(trace: Any, stage: Stage) -> Callable[[Event], Tensor]:
    """What a trace holds of the same step and layer as an event."""
    records = {(record.step, record.layer): record for record in trace[stage]}

    def get(event: Event) -> Tensor:
        if (event.step, event.layer) not in records:
            how = f"record that run with Trace([{stage.value!r}])"
            if steps := sorted({step for step, _ in records if step is not None}):
                how = f"it has steps {steps} of it: record as many as this run makes, with a larger budget if need be"
            raise ValueError(f"the trace has nothing of {event}; {how}")
        value: Tensor = records[event.step, event.layer].value
        return value

    return get


def _alignment(trace: Any, run: Any) -> tuple[Tensor, Tensor]:
    """For each picture, how tokens of a trace (L') become tokens of a run (L): (B, L', L), and those that have none.

    What one span of tokens gave is spread evenly over the span that stands in its stead.
    """
    pictures, guided = run.shape[0], trace.settings["guidance_scale"] > 1
    rows = trace.tokens[len(trace.tokens) // 2 if guided else 0 :]  # the negative prompts come first
    ours, theirs = run.token_ids[-pictures:].tolist(), [[token.id for token in row] for row in rows]
    if len(theirs) != len(ours):
        raise ValueError(f"the trace has tokens of {len(theirs)} prompts for {len(ours)} pictures; record as many")
    moves = torch.zeros(pictures, len(theirs[0]), len(ours[0]))
    for move, a, b in zip(moves, theirs, ours, strict=True):
        for what, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
            if what == "equal" or (what == "replace" and a1 - a0 == b1 - b0):
                move[range(a0, a1), range(b0, b1)] = 1
            elif what == "replace":
                move[a0:a1, b0:b1] = 1 / (b1 - b0)
    return moves, (moves.sum(1) == 0)[:, None, None].float()
