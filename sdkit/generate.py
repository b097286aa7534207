"""Words in, or a picture and words, and pictures out: `text_to_image`, `image_to_image`, and `stages`, which is either
as a loop of your own."""

from __future__ import annotations

import hashlib
import secrets
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from sdkit import __version__, schedulers
from sdkit.events import Event, Hook, run
from sdkit.loading import load
from sdkit.model import Model
from sdkit.pictures import read_settings, save_png, to_pil, to_pixels
from sdkit.process import Generators, History, Run, reverse
from sdkit.settings import Settings, output_paths

T = TypeVar("T")
UNHELD = ("latents", "prompt_embeds", "negative_prompt_embeds")  # tensors that a record tells of and does not hold


@dataclass(frozen=True, eq=False)
class Result:
    """Pictures and what made them."""

    images: list[Image.Image]
    latents: Tensor  # (B, C, h, w), what diffusers returns for output_type="latent"
    seeds: list[int] | None  # one a picture; None where generators were given instead
    settings: dict[str, Any]  # plain JSON values, all that made them but hooks
    first: int = 0  # number of the first of them among those that were made together

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]

    def save(self, path: str | Path) -> list[Path]:
        """Write the pictures as PNG with their settings inside: out.png, or out-1.png, out-2.png, ... for several."""
        paths = output_paths(path, len(self.images))
        for index, (picture, place) in enumerate(zip(self.images, paths, strict=True)):
            save_png(picture, place, {**self.settings, "index": self.first + index})
        return paths


def text_to_image(
    prompt: str | Sequence[str] | None = None,
    *,
    model: Any = None,
    negative_prompt: str | Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    num_images_per_prompt: int = 1,
    seed: int | Sequence[int] | None = None,
    generator: Generators = None,
    latents: Tensor | None = None,
    scheduler: Any = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    clip_skip: int | None = None,
    clip_skip_negative: bool = True,
    long_prompt: str = "cut",
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    hooks: Iterable[Hook] = (),
) -> Result:
    """Generate pictures from words.

    Args:
        prompt: what to draw, or a list of such.
        model: what `load` takes; the embedded model by default.
        negative_prompt: what to steer away from, one for all prompts or one each; used only with guidance.
        height, width: in pixels, multiples of 8; by default what the model was trained on.
        num_inference_steps: by default the model's own, 50 for Stable Diffusion and 20 for the embedded model.
        guidance_scale: g in uncond + g * (cond - uncond), off at 1 and below; by default the model's own.
        guidance_rescale: in [0, 1], against overexposure (arXiv:2305.08891).
        eta: in [0, 1], the noise that DDIM puts back in each step (arXiv:2010.02502); of the others only TCD heeds it.
        num_images_per_prompt: pictures of each prompt, which come one after another.
        seed: stands for one CPU generator a picture, so that each starts from the noise that it would have had alone.
            Seed 7 for three pictures means 7, 8, 9; a list gives each its own; without one it is drawn by lot.
        generator: torch generators instead of a seed, as diffusers takes them.
        latents: (B, C, h, w) start noise of unit variance instead of noise drawn from the seed.
        scheduler: a short name of `SCHEDULERS` or a diffusers scheduler; by default the model's own.
        timesteps: the training timesteps to visit, falling, instead of `num_inference_steps`.
        sigmas: the noise levels to visit, falling and ending at 0, instead of `num_inference_steps`; for `euler`.
        clip_skip: so many layers of the text encoder are left out at its end, for the negative prompt too.
        clip_skip_negative: False spares the negative prompt, as diffusers does.
        long_prompt: what to do with a prompt beyond the text encoder's window: "cut" it, as diffusers does, with a
            warning that names what is not heard, or "split" it at ends of words into as many windows as it takes.
        prompt_embeds: (P, L, D) text embeddings instead of `prompt`, from compel for instance.
        negative_prompt_embeds: the same instead of `negative_prompt`.
        hooks: called with every `Event`, in their order; assigning `event.value` edits the run.

    Raises:
        ValueError, TypeError, FileNotFoundError: an argument is not what it should be; the message says which.
    """
    settings = Settings(
        _prompts(prompt, prompt_embeds),
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        eta=eta,
        num_images_per_prompt=num_images_per_prompt,
        seed=seed,
        timesteps=timesteps,
        sigmas=sigmas,
        clip_skip=clip_skip,
        clip_skip_negative=clip_skip_negative,
        long_prompt=long_prompt,
    )
    embeds = (negative_prompt_embeds, prompt_embeds)
    return run(_begin(prepare(settings, model, generator, scheduler, embeds, latents=latents)), hooks)


def image_to_image(
    image: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    strength: float = 0.8,
    model: Any = None,
    negative_prompt: str | Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    num_images_per_prompt: int = 1,
    seed: int | Sequence[int] | None = None,
    generator: Generators = None,
    scheduler: Any = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    clip_skip: int | None = None,
    clip_skip_negative: bool = True,
    long_prompt: str = "cut",
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    hooks: Iterable[Hook] = (),
) -> Result:
    """Generate variations of a picture: noise it part of the way, then denoise it under new words (SDEdit, Meng et al.
    2021, arXiv:2108.01073).

    Args:
        image: the picture, or a list of them: PIL, a path, an array (H, W, 3) of 0..255 or of [0, 1], or a tensor
            (3, H, W) of [0, 1]. With several pictures and one prompt, the prompt is for all; otherwise one each.
        prompt: what to make of it.
        strength: in (0, 1], how far to noise it: the share of the steps that is run. 1 keeps next to nothing.
        height, width: to fit the picture to, multiples of 8; by default its own, cut down to a multiple of 8.

    The other arguments are those of `text_to_image`. The result's settings tell in "start" where the run began.

    Raises:
        ValueError, TypeError, FileNotFoundError: an argument is not what it should be; the message says which.
    """
    settings = Settings(
        _prompts(prompt, prompt_embeds),
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        eta=eta,
        num_images_per_prompt=num_images_per_prompt,
        strength=strength,
        seed=seed,
        timesteps=timesteps,
        sigmas=sigmas,
        clip_skip=clip_skip,
        clip_skip_negative=clip_skip_negative,
        long_prompt=long_prompt,
    )
    embeds = (negative_prompt_embeds, prompt_embeds)
    return run(_begin(prepare(settings, model, generator, scheduler, embeds, image=image)), hooks)


def stages(
    prompt: str | Sequence[str] | None = None,
    *,
    image: Any = None,
    strength: float | None = None,
    model: Any = None,
    negative_prompt: str | Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    num_images_per_prompt: int = 1,
    seed: int | Sequence[int] | None = None,
    generator: Generators = None,
    latents: Tensor | None = None,
    scheduler: Any = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    clip_skip: int | None = None,
    clip_skip_negative: bool = True,
    long_prompt: str = "cut",
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
) -> Generator[Event, None, Result]:
    """A run as a loop of your own: every `Event` in turn, and `break` when you have seen enough.

    Takes the arguments of `text_to_image`, or with `image` those of `image_to_image`; all are checked before the first
    event. Assigning `event.value` edits.
    What the generator returns in the end is the `Result`.

    Example:
        >>> for event in sdkit.stages("a red star", seed=7):
        ...     if event.stage is Stage.DENOISED and event.step == 12:
        ...         break
    """
    settings = Settings(
        _prompts(prompt, prompt_embeds),
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        eta=eta,
        num_images_per_prompt=num_images_per_prompt,
        strength=0.8 if strength is None and image is not None else strength,
        seed=seed,
        timesteps=timesteps,
        sigmas=sigmas,
        clip_skip=clip_skip,
        clip_skip_negative=clip_skip_negative,
        long_prompt=long_prompt,
    )
    embeds = (negative_prompt_embeds, prompt_embeds)
    return _begin(prepare(settings, model, generator, scheduler, embeds, latents=latents, image=image))


def rerun(path: str | Path, *, image: Any = None, model: Any = None, hooks: Iterable[Hook] = ()) -> Result:
    """The picture of a PNG that sdkit saved, generated again: the same bytes where the surroundings are the same.

    Where they are not (another version, device, precision or other weights) a warning says what differs.

    Args:
        path: the PNG. Of several pictures that were made together, all are made again, and this one is returned.
        image: for image to image, the picture that it started from, which a PNG does not carry.
        model: what `load` takes; by default the model that the settings name.

    Raises:
        ValueError: the PNG carries no settings, or its run started from something that settings cannot hold.
    """
    record, hooks = read_settings(path), list(hooks)
    if unheld := [name for name in UNHELD if record.get(name)] + ["a generator"] * (record["seed"] is None):
        raise ValueError(f"{path} was made from {unheld[0]}, which its settings do not hold; it cannot be rerun")
    if (record.get("strength") is None) != (image is None):
        wanted = "give the picture that it started from as image" if image is None else "leave image out"
        raise ValueError(f"{path} was made from {'words alone' if image is not None else 'a picture'}; {wanted}")
    if record.get("edited_by") and not hooks:
        names = ", ".join(record["edited_by"])
        warnings.warn(f"{path} was edited by hooks, which settings do not hold: {names}; give them again", stacklevel=2)
    owner = load(record["model"] if model is None else model)
    settings, scheduler = _recorded(record)
    made = run(_begin(prepare(settings, owner, None, scheduler, image=image)), hooks)
    if differs := differences(record, made.settings):
        warnings.warn(f"{path} may come out otherwise: {'; '.join(differs)}", stacklevel=2)
    index = record["index"]
    return Result([made.images[index]], made.latents[index : index + 1], made.seeds, record, first=index)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two records of runs, but for what is the run's own to choose."""
    pairs = [(key, old.get(key), new.get(key)) for key in ("model_hash", "image", "device", "dtype", "scheduler")]
    libraries = {**old["versions"], **new["versions"]}
    pairs += [(name, old["versions"].get(name), new["versions"].get(name)) for name in libraries]
    return [f"{name} was {before} and is {now}" for name, before, now in pairs if before != now]


def _recorded(record: Mapping[str, Any]) -> tuple[Settings, Any]:
    """The settings and the scheduler that a record stands for."""
    settings = Settings(**{field.name: record[field.name] for field in fields(Settings)})
    return settings, schedulers.rebuilt(record["scheduler"])


def branch(
    record: Mapping[str, Any],
    history: History,
    *,
    model: Any,
    pixels: Tensor | None,
    changes: Mapping[str, Any],
    hooks: Iterable[Hook],
) -> Result:
    """A recorded run again from the end of its history, with some settings changed; what `Trace.branch` calls."""
    settings, scheduler = _recorded(record)
    settings = replace(settings, **changes)
    latents = history.latents[0] if record.get("latents") else None
    request = prepare(settings, model, None, scheduler, latents=latents, pixels=pixels, history=history)
    return run(_begin(request), hooks)


def prepare(
    settings: Settings,
    source: Any,
    generator: Generators,
    scheduler: Any,
    embeds: tuple[Tensor | None, Tensor | None] = (None, None),  # of the negative prompts and the prompts
    *,
    latents: Tensor | None = None,
    image: Any = None,
    pixels: Tensor | None = None,
    history: History | None = None,
) -> Run:
    """Check everything, fill in the model's defaults, draw what was left to chance."""
    model = load(source)
    if image is not None:
        if latents is not None:
            raise ValueError("both image and latents were given; a run starts from one of them")
        pixels = to_pixels(image, settings.height, settings.width)  # (N, 3, H, W)
        settings = replace(settings, height=pixels.shape[-2], width=pixels.shape[-1])
        if len(settings.prompts) == 1:
            settings = replace(settings, prompt=settings.prompts * len(pixels) if len(pixels) > 1 else settings.prompt)
        if len(pixels) not in (1, len(settings.prompts)):
            raise ValueError(
                f"{len(pixels)} pictures were given for {len(settings.prompts)} prompts; give one, or one each"
            )
    elif settings.strength is not None and pixels is None:
        raise ValueError("strength was given without image; it says how far to noise a picture")
    embeds = _check_embeds(model, settings, *embeds)
    height, width = settings.height or model.size[0], settings.width or model.size[1]
    steps = settings.num_inference_steps or model.num_inference_steps
    guidance_scale = model.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    settings = replace(settings, height=height, width=width, num_inference_steps=steps, guidance_scale=guidance_scale)
    generator, seeds = _generators(settings, generator)
    stepper = schedulers.fresh(scheduler, model.scheduler, generator)
    visits = schedulers.visits(
        stepper, steps, model.device, settings.strength, timesteps=settings.timesteps, sigmas=settings.sigmas
    )
    shape = model.latent_shape(settings.pictures, height, width)
    record = {
        **asdict(settings),
        **_told(embeds),
        "seed": seeds,
        "latents": latents is not None,
        "image": None if pixels is None else hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
        "start": schedulers.level(stepper, visits[0]) | {"steps": len(visits)},
        "scheduler": {"class": type(stepper).__name__, **schedulers.plain(stepper.config)},
        "edited_by": [],  # names of the hooks that replaced a value, as they do
        **surroundings(model),
    }
    return Run(
        model=model,
        settings=settings,
        guidance_scale=guidance_scale,
        shape=shape,
        generator=generator,
        latents=None if latents is None else _check_latents(latents, shape, model.dtype),
        pixels=pixels,
        negative_prompt_embeds=embeds[0],
        prompt_embeds=embeds[1],
        scheduler=stepper,
        visits=visits,
        record=record,
        history=history,
    )


def surroundings(model: Model) -> dict[str, Any]:
    """What a record says of the model and the machine: all that the bits depend on beside the settings."""
    return {
        "model": model.name,
        "model_hash": model.fingerprint(),
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {
            "sdkit": __version__,
            **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        },
    }


def _begin(request: Run) -> Generator[Event, None, Result]:
    latents, image = yield from signed(request, reverse(request))
    return Result(to_pil(image), latents, request.record["seed"], request.record)


class Origin(Protocol):
    """What a process is made from, as its events carry it: enough for a `Trace` to record them."""

    model: Model
    record: dict[str, Any]  # plain JSON values, with "edited_by"
    stepped: dict[int, Tensor]  # what was stepped along where an x0 was edited, by step


def signed(request: Origin, events: Generator[Event, None, T]) -> Generator[Event, None, T]:
    """The same events, each with the run that it comes from."""
    edited_by = request.record["edited_by"]
    event = None
    try:
        while True:
            try:
                following = next(events)
            except StopIteration as end:
                found: T = end.value
                return found
            finally:  # only now is it known who replaced the value before
                names: list[str] = [] if event is None else [edit.hook for edit in event.edits]
                edited_by.extend(name for name in dict.fromkeys(names) if name not in edited_by)
            event = following
            event.origin = request
            yield event
    finally:
        request.model.pipeline.maybe_free_model_hooks()  # where the pipeline offloads, its parts go back


def _generators(settings: Settings, generator: Generators) -> tuple[Generators, list[int] | None]:
    """The generators of a run and the seeds that they stand for, or those given and None."""
    if generator is None:
        seeds = settings.seeds_from(secrets.randbelow(2**32) if settings.seed is None else settings.seed)
        return [torch.Generator().manual_seed(seed) for seed in seeds], seeds
    if settings.seed is not None:
        raise ValueError("both seed and generator were given; give one of them")
    given = generator if isinstance(generator, list) else [generator]
    if not all(isinstance(one, torch.Generator) for one in given):
        raise TypeError(f"generator must be a torch.Generator or a list of them, but is {generator!r}")
    if isinstance(generator, list) and len(generator) != settings.pictures:
        raise ValueError(f"{len(generator)} generators were given for {settings.pictures} pictures; give one each")
    return generator, None


def _prompts(prompt: str | Sequence[str] | None, prompt_embeds: Tensor | None) -> str | Sequence[str]:
    """The prompt, or one empty one for each of the embeddings that stand in for it."""
    if prompt_embeds is None:
        if prompt is None:
            raise TypeError("neither prompt nor prompt_embeds was given; give one of them")
        return prompt
    if prompt is not None:
        raise ValueError("both prompt and prompt_embeds were given; give one of them")
    if not isinstance(prompt_embeds, Tensor) or prompt_embeds.ndim != 3 or not len(prompt_embeds):
        given = tuple(prompt_embeds.shape) if isinstance(prompt_embeds, Tensor) else type(prompt_embeds).__name__
        raise ValueError(f"prompt_embeds must be a tensor (P, L, D), but is {given}")
    return "" if len(prompt_embeds) == 1 else [""] * len(prompt_embeds)


def _check_embeds(
    model: Model, settings: Settings, negative: Tensor | None, positive: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Embeddings given for the negative prompts and the prompts, on the model's device and in its dtype."""
    if negative is not None and settings.negative_prompt is not None:
        raise ValueError("both negative_prompt and negative_prompt_embeds were given; give one of them")
    many, width = len(settings.prompts), model.text_width
    for name, embeds in (("negative_prompt_embeds", negative), ("prompt_embeds", positive)):
        if embeds is None:
            continue
        if not isinstance(embeds, Tensor) or embeds.ndim != 3 or len(embeds) != many or embeds.shape[2] != width:
            given = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
            raise ValueError(f"{name} must be a tensor (P, L, D) with P = {many} and D = {width}, but is {given}")
    if negative is not None and positive is not None and negative.shape != positive.shape:
        raise ValueError(
            f"prompt_embeds {tuple(positive.shape)} and negative_prompt_embeds {tuple(negative.shape)} differ "
            "in shape; make them equally long"
        )
    placed = [None if one is None else one.detach().to(model.device, model.dtype) for one in (negative, positive)]
    return placed[0], placed[1]


def _told(embeds: tuple[Tensor | None, Tensor | None]) -> dict[str, Any]:
    """What the record says of embeddings: that they stood in for words, and their shape."""
    told: dict[str, Any] = {}
    for name, one in zip(("negative_prompt", "prompt"), embeds, strict=True):
        if one is not None:
            told |= {name: None, f"{name}_embeds": list(one.shape)}
    return told


def _check_latents(latents: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents must be a tensor, but is a {type(latents).__name__}")
    if latents.shape != shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; expected {shape} for these prompts and this size")
    return latents.detach().to(dtype)
