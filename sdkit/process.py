"""The heart: the reverse process, from words and noise to a picture, as a generator that shows each of its stages."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sdkit import schedulers
from sdkit.attention import Inside
from sdkit.events import Event, Hook, Stage, tap
from sdkit.model import Condition, Control, Model
from sdkit.noise import guide, prediction_from, x0_from
from sdkit.schedulers import Visit
from sdkit.settings import Settings

Generators = list[torch.Generator] | torch.Generator | None


@dataclass(frozen=True, eq=False)
class History:
    """The first steps of an earlier run, to be stepped through again without the U-Net."""

    latents: list[Tensor]  # x of each step, (B, C, h, w), as its prediction saw it
    predictions: list[Tensor]  # what was stepped along, (B, C, h, w)


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures that a run was given, checked."""

    pixels: Tensor | None = None  # (N, 3, H, W) in [-1, 1] to start from, or latents (N, 4, h, w) of them; B = N * n
    mask: Tensor | None = None  # (M, 1, H, W), 1 where to paint anew; M is 1 or N
    control: list[Tensor] = field(default_factory=list)  # for each ControlNet (M, 3, H, W) in [0, 1]
    ip_adapter_image: Any = None  # as diffusers takes it: PIL, or a list for several IP-Adapters
    ip_adapter_image_embeds: list[Tensor] | None = None

    def hashes(self) -> dict[str, Any]:
        """What a record says of them: a hash of each picture, and the shapes of embeddings."""
        embeds = self.ip_adapter_image_embeds
        return {
            "image": _hash(self.pixels),
            "mask_image": _hash(self.mask),
            "control_image": _hash(self.control or None),
            "ip_adapter_image": _hash(self.ip_adapter_image),
            "ip_adapter_image_embeds": embeds and [list(one.shape) for one in embeds],
        }


@dataclass(frozen=True, eq=False)
class Embeds:
    """What stands in for the words of either half."""

    negative_prompt_embeds: Tensor | None = None  # (P, L, D)
    prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None  # (P, D'), of SDXL
    pooled_prompt_embeds: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Painting:
    """What inpainting keeps beside x."""

    x0: Tensor | None  # (B, C, h, w) latents of the picture
    noise: Tensor  # (B, C, h, w)
    mask: Tensor  # (B, 1, h, w), 1 where to paint anew
    masked: Tensor | None  # (B, C, h, w) latents of the picture without what is under the mask


@dataclass(eq=False)
class Run:
    """Everything that one run of the reverse process is made from, checked and complete."""

    model: Model
    settings: Settings  # complete
    guidance_scale: float
    shape: tuple[int, int, int, int]  # (B, C, h, w) of the latents
    generator: Generators  # one for each picture, or one for all
    latents: Tensor | None  # (B, C, h, w) start noise of unit variance, drawn from the generators if None
    pictures: Pictures
    embeds: Embeds
    scheduler: Any  # a fresh one
    visits: list[Visit]  # the timesteps that it was set to
    record: dict[str, Any]  # plain JSON values: all that makes this run but hooks
    history: History | None = None  # of a branch
    hooks: tuple[Hook, ...] = ()  # called in line, at the stages inside the U-Net that they name
    token_ids: Tensor | None = None  # (2B, L) as heard; of one half where embeddings stand for the other
    stepped: dict[int, Tensor] = field(default_factory=dict)  # what was stepped along where an x0 was edited, by step
    stop: bool = False  # set by a hook: end with the x0 of this step

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1 and not self.model.takes_guidance


def reverse(run: Run) -> Generator[Event, None, tuple[Tensor, Tensor]]:
    """Words and noise, or a noised picture, to pictures: the clean latents (B, C, h, w) and the decoded (B, 3, H, W).

    With alpha and sigma from the noise schedule, x = alpha * x0 + sigma * eps, and step by step: predict, guide, see
    the x0 that follows, step back to a less noisy x (Ho et al. 2020, arXiv:2006.11239). Bit-identical to diffusers'
    pipelines of Stable Diffusion 1, 2 and XL for words, pictures and inpainting, as long as nobody edits.
    """
    model, scheduler, visits = run.model, run.scheduler, run.visits
    text, pooled = yield from listen(run)  # (2B, L, D), (2B, P)
    x, painting = yield from _start(run)  # (B, C, h, w)
    condition = conditioned(run, text, pooled, painting)
    kind = scheduler.config.prediction_type
    inside = Inside(model.unet, run.hooks, run)
    for step, visit in enumerate(visits):
        t = visit.t
        if run.history is not None and step < len(run.history.latents):
            x = _keep_around(run, painting, _again(run, run.history, step, x), step)
            continue
        held, x = x, (yield from tap(Stage.LATENT, x, step=step, t=t))
        if x is not held:
            schedulers.accept_edit(scheduler, step, visit)
        seen = scheduler.scale_model_input(x, visit.tensor)
        with inside.at(step, t):
            noise = model.predict(seen, visit.tensor, condition, (step, len(visits)))  # (2B, C, h, w)
        noise = yield from tap(Stage.NOISE, noise, step=step, t=t)
        if run.guided:
            uncond, cond = noise.chunk(2)
            noise = guide(uncond, cond, run.guidance_scale, run.settings.guidance_rescale)
        guided = yield from tap(Stage.GUIDED, noise, step=step, t=t)  # (B, C, h, w)
        alpha, sigma = schedulers.alpha_sigma(scheduler, visit)
        believed = schedulers.clip(scheduler, x0_from(guided, x, alpha, sigma, kind)).to(x.dtype)
        x0 = yield from tap(Stage.DENOISED, believed, step=step, t=t)
        if x0 is not believed:  # step along the prediction that the edited x0 stands for
            guided = run.stepped[step] = prediction_from(x0, x, alpha, sigma, kind).to(guided.dtype)
        if run.stop:
            x = x0
            break
        x = schedulers.step_back(scheduler, guided, visit.tensor, x, eta=run.settings.eta, generator=run.generator)
        x = _keep_around(run, painting, x, step)
    x = yield from tap(Stage.LATENT, x)
    image = yield from tap(Stage.IMAGE, model.decode(x))
    return x, image


def conditioned(run: Run, text: Tensor, pooled: Tensor | None, painting: Painting | None = None) -> Condition:
    """All that the U-Net is told beside x and t."""
    model, pictures = run.model, run.shape[0]
    twice = 2 if run.guided else 1
    time_ids = image_embeds = painted = None
    if pooled is not None:
        negative, positive = model.time_ids(run.settings, from_picture=run.pictures.pixels is not None)
        time_ids = torch.cat([negative.repeat(pictures, 1), positive.repeat(pictures, 1)][-twice:])
    given = run.pictures.ip_adapter_image, run.pictures.ip_adapter_image_embeds
    if any(one is not None for one in given):
        image_embeds = model.pipeline.prepare_ip_adapter_image_embeds(*given, model.device, pictures, run.guided)
    if painting is not None and painting.masked is not None:
        painted = torch.cat([torch.cat([painting.mask, painting.masked], dim=1)] * twice)
    guidance = model.embed_guidance(run.guidance_scale, pictures) if model.takes_guidance else None
    return Condition(text, pooled, time_ids, image_embeds, guidance, painted, _control(run))


def _control(run: Run) -> Control | None:
    if not run.pictures.control:
        return None
    settings, nets = run.settings, run.model.controlnets
    guess_mode = settings.guess_mode or nets[0].config.global_pool_conditions
    twice = run.guided and not guess_mode
    pictures = []
    for net, given in zip(nets, run.pictures.control, strict=True):
        rows = given.repeat_interleave(run.shape[0] // len(given), dim=0).to(run.model.device, net.dtype)
        pictures.append(torch.cat([rows] * 2) if twice else rows)
    values = (settings.controlnet_conditioning_scale, settings.control_guidance_start, settings.control_guidance_end)
    scale, start, end = ([v] * len(nets) if isinstance(v, int | float) else list(v) for v in values)
    return Control(pictures, scale, start, end, guess_mode)


def _keep_around(run: Run, painting: Painting | None, x: Tensor, step: int) -> Tensor:
    """For a U-Net that does not see the mask: the given picture, noised as x is, wherever the mask is 0."""
    if painting is None or painting.x0 is None or run.model.paints:
        return x
    around = painting.x0
    if step + 1 < len(run.visits):
        around = run.scheduler.add_noise(around, painting.noise, run.visits[step + 1].tensor.reshape(1))
    kept: Tensor = (1 - painting.mask) * around + painting.mask * x
    return kept


def _again(run: Run, history: History, step: int, x: Tensor) -> Tensor:
    """A recorded step: the scheduler lives through it as it did, its memory and its random draws included."""
    scheduler, visit = run.scheduler, run.visits[step]
    seen, prediction = history.latents[step].to(x), history.predictions[step].to(x)
    if step > 0 and not torch.equal(seen, x):
        schedulers.accept_edit(scheduler, step, visit)
    scheduler.scale_model_input(seen, visit.tensor)
    return schedulers.step_back(
        scheduler, prediction, visit.tensor, seen, eta=run.settings.eta, generator=run.generator
    )


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
        texts.append(None if text is None else _repeat(text, run.shape[0] // len(text)))
        wholes.append(None if whole is None else _repeat(whole, run.shape[0] // len(whole)))
    text = _filled(texts)
    if not model.is_xl:
        return (yield from tap(Stage.TEXT, text)), None
    text = yield from tap(Stage.TEXT, text)
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
        ids = _repeat(model.tokenize(words, tokenizer, split=settings.long_prompt == "split", length=length), each)
        seen = yield from tap(Stage.TOKENS, ids, layer=name if len(model.encoders) > 1 else None)  # (2B, L)
        edited = edited or seen is not ids
        shown.append(list(_distinct(seen, len(halves), each)))
        run.token_ids = seen if run.token_ids is None else run.token_ids
    found = []
    for half in zip(*shown, strict=True):
        alike = len({len(rows) for _, rows in half}) == 1
        found.append([rows if alike else every for every, rows in half])
    return found, edited


def _distinct(values: Tensor, parts: int, each: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of the parts of a batch: all its rows, and one of every `each` unless someone made them differ."""
    for part in values.chunk(parts):
        first = part[::each]
        yield part, first if torch.equal(_repeat(first, each), part) else part


def _repeat(values: Tensor, each: int) -> Tensor:
    """Every row `each` times in a row. By cat, which keeps the memory layout and so what convolutions round to."""
    return torch.cat([row for row in torch.split(values, 1) for _ in range(each)])


def _start(run: Run) -> Generator[Event, None, tuple[Tensor, Painting | None]]:
    """x before the first step, (B, C, h, w): noise, or the encoded pictures noised up to the first timestep.

    Noise comes from CPU generators, so that a seed means the same on every device. Inpainting draws in the order in
    which diffusers does: the picture's latents, the noise, the latents of what is left of it around the mask.
    """
    model, settings, given = run.model, run.settings, run.pictures
    if given.pixels is None:
        start = run.latents.to(model.device) if run.latents is not None else _noise(run)
        return start * run.scheduler.init_noise_sigma, None
    pixels, mask = given.pixels, given.mask
    x0: Tensor | None = None
    if pixels.shape[1] == 3:
        pixels = _repeat(pixels, run.shape[0] // len(pixels)).to(model.device, model.dtype)
        pixels = yield from tap(Stage.PIXELS, pixels)
    else:
        x0 = _repeat(pixels, run.shape[0] // len(pixels)).to(model.device, model.dtype)
    if mask is not None:
        mask = yield from tap(Stage.MASK, _repeat(mask, run.shape[0] // len(mask)).to(model.device, model.dtype))
    goes_on = settings.denoising_start is not None  # from where another run has stopped
    all_noise = mask is not None and settings.strength == 1 and not goes_on
    if x0 is None and not (all_noise and model.paints):
        x0 = yield from _encode(run, pixels)
    if mask is None and goes_on and x0 is not None:
        return x0, None
    noise = _noise(run)
    if all_noise or x0 is None:
        start = noise * run.scheduler.init_noise_sigma
    else:
        first = run.visits[0].tensor.repeat(run.shape[0])  # (B,)
        start = x0 if goes_on else run.scheduler.add_noise(x0, noise, first)
    if mask is None:
        return start, None
    masked = None
    if model.paints:
        masked = yield from _encode(run, pixels * (mask < 0.5), layer="masked")
    elif pixels.shape[1] == 3:  # diffusers encodes it for such a U-Net too, for nothing but what that draws
        shape = (_given(run), 2 * run.shape[1], *run.shape[2:])
        _sample(run, torch.zeros(shape, device=model.device, dtype=model.encodes_in))
    small = torch.nn.functional.interpolate(mask, size=run.shape[2:])  # nearest
    return start, Painting(x0, noise, small, masked)


def _encode(run: Run, pixels: Tensor, layer: str | None = None) -> Generator[Event, None, Tensor]:
    """Pictures (B, 3, H, W) to latents drawn from the encoder's posterior, (B, C, h, w), as the U-Net knows them.

    As diffusers does: one by one where each picture has its own generator, but those of one given picture share one
    draw when they inpaint or share a generator.
    """
    model, pictures, each = run.model, run.shape[0], run.shape[0] // _given(run)
    single = not isinstance(run.generator, list)
    shared = single or run.pictures.mask is not None
    rows = next(_distinct(pixels, 1, each))[1] if shared else pixels
    posterior = torch.cat([model.encode(part) for part in ([rows] if single else torch.split(rows, 1))])
    posterior = yield from tap(Stage.POSTERIOR, _repeat(posterior, pictures // len(posterior)), layer=layer)
    if shared:
        posterior = next(_distinct(posterior, 1, each))[1]
    latents = _sample(run, posterior).to(model.dtype)
    scaled: Tensor = _repeat(latents, pictures // len(latents)) * model.vae.config.scaling_factor
    # Inpainting repeats them by `repeat` in diffusers, which changes the memory layout, in which convolutions round.
    return scaled if run.pictures.mask is None else scaled.contiguous()


def _sample(run: Run, posterior: Tensor) -> Tensor:
    """Latents (b, C, h, w) drawn from b posteriors, b a divisor of B, with the generators of those pictures."""
    generator = run.generator
    if isinstance(generator, list):
        generator = generator[:: run.shape[0] // len(posterior)]
    latents: Tensor = DiagonalGaussianDistribution(posterior).sample(generator)
    return latents


def _given(run: Run) -> int:
    """N, how many pictures the run was given."""
    assert run.pictures.pixels is not None
    return len(run.pictures.pixels)


def _hash(pictures: Any) -> str | None:
    """SHA-256 of the bytes of pictures, or of lists of them, one after another."""
    if pictures is None:
        return None
    digest = hashlib.sha256()
    rest = [pictures]
    while rest:
        one = rest.pop(0)
        if isinstance(one, list | tuple):
            rest = [*one, *rest]
        elif one is not None:
            digest.update(one.cpu().float().numpy().tobytes() if isinstance(one, Tensor) else one.tobytes())
    return digest.hexdigest()


def _noise(run: Run) -> Tensor:
    noise: Tensor = randn_tensor(run.shape, generator=run.generator, device=run.model.device, dtype=run.model.dtype)
    return noise
