"""Words in, or a picture and words, and pictures out: `text_to_image`, `image_to_image`, and `stages`, which is either
as a loop of your own."""

from __future__ import annotations

import inspect
import secrets
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar, Unpack

import torch
from PIL import Image
from torch import Tensor

from sdkit import __version__, schedulers
from sdkit.events import Event, Hook, checked, hooked, run
from sdkit.loading import load
from sdkit.model import Model
from sdkit.pictures import read_settings, save_png, to_mask, to_pil, to_pixels, to_rgb
from sdkit.process import Embeds, Generators, History, Pictures, Run, reverse
from sdkit.settings import Settings, Size, output_paths, pick

T = TypeVar("T")
STRENGTH = 0.8  # of image to image, where none is given
EMBEDS = tuple(field.name for field in fields(Embeds))
UNHELD = ("latents", *EMBEDS, "ip_adapter_image_embeds")  # tensors that a record tells of and does not hold
GIVEN = ("image", "mask_image", "control_image", "ip_adapter_image")  # pictures of which a record holds the hash


class Options(TypedDict, total=False):
    """What `text_to_image`, `image_to_image` and `stages` all take, under diffusers' names and with the defaults of
    `Settings`. `text_to_image` documents it."""

    model: Any
    negative_prompt: str | Sequence[str] | None
    height: int | None
    width: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_rescale: float
    eta: float
    num_images_per_prompt: int
    seed: int | Sequence[int] | None
    generator: Generators
    latents: Tensor | None
    scheduler: Any
    timesteps: Sequence[int] | None
    sigmas: Sequence[float] | None
    denoising_end: float | None
    clip_skip: int | None
    clip_skip_negative: bool
    long_prompt: str
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    prompt_2: str | Sequence[str] | None
    negative_prompt_2: str | Sequence[str] | None
    pooled_prompt_embeds: Tensor | None
    negative_pooled_prompt_embeds: Tensor | None
    original_size: Size | None
    crops_coords_top_left: Size
    target_size: Size | None
    negative_original_size: Size | None
    negative_crops_coords_top_left: Size | None
    negative_target_size: Size | None
    aesthetic_score: float
    negative_aesthetic_score: float
    ip_adapter_image: Any
    ip_adapter_image_embeds: list[Tensor] | None
    control_image: Any
    controlnet_conditioning_scale: float | Sequence[float]
    control_guidance_start: float | Sequence[float]
    control_guidance_end: float | Sequence[float]
    guess_mode: bool


def _spelled_out(function: Callable[..., T]) -> Callable[..., T]:
    """Give a function that takes `Options` a signature that lists them, for `help` and for completion."""
    signature = inspect.signature(function)
    kept = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    defaults = {field.name: field.default for field in fields(Settings)}
    taken = {parameter.name for parameter in kept}
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=kind)
        for name, kind in Options.__annotations__.items()
        if name not in taken
    ]
    function.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return function


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

    def _repr_html_(self) -> str:
        from sdkit.display import show_result  # a room above this one, asked for when somebody looks

        return show_result(self)


@_spelled_out
def text_to_image(
    prompt: str | Sequence[str] | None = None, *, hooks: Iterable[Hook] = (), **options: Unpack[Options]
) -> Result:
    """Generate pictures from words.

    Args:
        prompt: what to draw, or a list of such.
        hooks: called with every `Event`, in their order; assigning `event.value` edits the run.
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
        denoising_end: in (0, 1), the share of the noise schedule after which to stop; `result.latents` are then for a
            refiner, which goes on with `image_to_image(latents, ..., denoising_start=...)`.
        clip_skip: so many layers of the text encoder are left out at its end, for the negative prompt too.
        clip_skip_negative: False spares the negative prompt, as diffusers does.
        long_prompt: what to do with a prompt beyond the text encoder's window: "cut" it, as diffusers does, with a
            warning that names what is not heard, or "split" it at ends of words into as many windows as it takes.
        prompt_embeds: (P, L, D) text embeddings instead of `prompt`, from compel for instance.
        negative_prompt_embeds: the same instead of `negative_prompt`.
        prompt_2, negative_prompt_2: for SDXL's second text encoder; by default the same as for the first.
        pooled_prompt_embeds, negative_pooled_prompt_embeds: (P, D'), which SDXL needs beside embeddings of words.
        original_size, target_size, crops_coords_top_left and their negatives: (height, width) and (top, left) that SDXL
            is told (arXiv:2307.01952, section 2.2); by default the picture's size, and no crop.
        aesthetic_score, negative_aesthetic_score: what SDXL's refiner is told instead of the target size.
        ip_adapter_image: a picture to go by, or a list with one for each IP-Adapter that the pipeline carries.
        ip_adapter_image_embeds: the same as embeddings, as diffusers takes them.
        control_image: a picture for the ControlNet that the pipeline carries, or a list with one for each.
        controlnet_conditioning_scale: how strongly it steers, one for all or one each.
        control_guidance_start, control_guidance_end: in [0, 1], the shares of the steps between which it steers.
        guess_mode: whether the ControlNet steers the conditional half alone.

    Raises:
        ValueError, TypeError, FileNotFoundError: an argument is not what it should be; the message says which.
    """
    return run(_begin(_prepare(prompt, {**options}), hooks))


@_spelled_out
def image_to_image(
    image: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    strength: float = STRENGTH,
    mask_image: Any = None,
    denoising_start: float | None = None,
    hooks: Iterable[Hook] = (),
    **options: Unpack[Options],
) -> Result:
    """Generate variations of a picture: noise it part of the way, then denoise it under new words (SDEdit, Meng et al.
    2021, arXiv:2108.01073). With a mask, paint anew what is under it and keep the rest.

    Args:
        image: the picture, or a list of them: PIL, a path, an array (H, W, 3) of 0..255 or of [0, 1], or a tensor
            (3, H, W) of [0, 1]. With several pictures and one prompt, the prompt is for all; otherwise one each.
            A tensor (N, 4, h, w) is taken as latents.
        prompt: what to make of it.
        strength: in (0, 1], how far to noise it: the share of the steps that is run. 1 keeps next to nothing.
        mask_image: white where to paint anew, in any form that a picture comes in, and fitted to its size. A U-Net with
            9 channels sees mask and picture; for one with 4 the rest is put back after each step.
            As in diffusers, pictures that are inpainted together share the first one's draw of the latents.
        denoising_start: in (0, 1), the share of the noise schedule that `image`, then usually latents, has behind it:
            no noise is added, and `strength` is not heeded.
        height, width: to fit the picture to, multiples of 8; by default its own, cut down to a multiple of 8.

    The other arguments are those of `text_to_image`. The result's settings tell in "start" where the run began.

    Raises:
        ValueError, TypeError, FileNotFoundError: an argument is not what it should be; the message says which.
    """
    given = {**options, "strength": strength, "denoising_start": denoising_start}
    return run(_begin(_prepare(prompt, given, image=image, mask_image=mask_image), hooks))


@_spelled_out
def stages(
    prompt: str | Sequence[str] | None = None,
    *,
    image: Any = None,
    mask_image: Any = None,
    strength: float | None = None,
    denoising_start: float | None = None,
    hooks: Iterable[Hook] = (),
    **options: Unpack[Options],
) -> Generator[Event, None, Result]:
    """A run as a loop of your own: every `Event` in turn, and `break` when you have seen enough.

    Takes the arguments of `text_to_image`, or with `image` those of `image_to_image`; all are checked before the first
    event. Assigning `event.value` edits. Hooks see each event before the loop does; the stages inside the U-Net, which
    cannot be stopped at, are for them alone.
    What the generator returns in the end is the `Result`.

    Example:
        >>> for event in sdkit.stages("a red star", seed=7):
        ...     if event.stage is Stage.DENOISED and event.step == 12:
        ...         break
    """
    if strength is None and image is not None:
        strength = STRENGTH
    given = {**options, "strength": strength, "denoising_start": denoising_start}
    return _begin(_prepare(prompt, given, image=image, mask_image=mask_image), hooks)


def rerun(
    path: str | Path,
    *,
    image: Any = None,
    mask_image: Any = None,
    control_image: Any = None,
    ip_adapter_image: Any = None,
    model: Any = None,
    hooks: Iterable[Hook] = (),
) -> Result:
    """The picture of a PNG that sdkit saved, generated again: the same bytes where the surroundings are the same.

    Where they are not (another version, device, precision or other weights) a warning says what differs.

    Args:
        path: the PNG. Of several pictures that were made together, all are made again, and this one is returned.
        image, mask_image, control_image, ip_adapter_image: the pictures that it was made from, which a PNG does not
            carry.
        model: what `load` takes; by default the model that the settings name.

    Raises:
        ValueError: the PNG carries no settings, or its run started from something that settings cannot hold.
    """
    record, hooks = read_settings(path), list(hooks)
    if unheld := [name for name in UNHELD if record.get(name)] + ["a generator"] * (record["seed"] is None):
        raise ValueError(f"{path} was made from {unheld[0]}, which its settings do not hold; it cannot be rerun")
    given = dict(zip(GIVEN, (image, mask_image, control_image, ip_adapter_image), strict=True))
    for name, picture in given.items():
        if (record.get(name) is None) != (picture is None):
            wanted = f"give that picture as {name}" if picture is None else f"leave {name} out"
            raise ValueError(f"{path} was made {'without' if picture is not None else 'from'} {name}; {wanted}")
    if record.get("edited_by") and not hooks:
        names = ", ".join(record["edited_by"])
        warnings.warn(f"{path} was edited by hooks, which settings do not hold: {names}; give them again", stacklevel=2)
    owner = load(record["model"] if model is None else model)
    settings, scheduler = _recorded(record)
    made = run(_begin(prepare(settings, owner, scheduler, pictures=pictures_for(owner, settings, **given)), hooks))
    if differs := differences(record, made.settings):
        warnings.warn(f"{path} may come out otherwise: {'; '.join(differs)}", stacklevel=2)
    index = record["index"]
    return Result([made.images[index]], made.latents[index : index + 1], made.seeds, record, first=index)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two records of runs, but for what is the run's own to choose."""
    names = ("model_hash", *GIVEN, "device", "dtype", "scheduler")
    pairs = [(key, old.get(key), new.get(key)) for key in names]
    libraries = {**old["versions"], **new["versions"]}
    pairs += [(name, old["versions"].get(name), new["versions"].get(name)) for name in libraries]
    return [f"{name} was {before} and is {now}" for name, before, now in pairs if before != now]


def _recorded(record: Mapping[str, Any]) -> tuple[Settings, Any]:
    """The settings and the scheduler that a record stands for; one of an older sdkit may lack newer settings."""
    settings = Settings(**{field.name: record[field.name] for field in fields(Settings) if field.name in record})
    return settings, schedulers.rebuilt(record["scheduler"])


def branch(
    record: Mapping[str, Any],
    history: History,
    *,
    model: Any,
    pictures: Pictures,
    changes: Mapping[str, Any],
    hooks: Iterable[Hook],
) -> Result:
    """A recorded run again from the end of its history, with some settings changed; what `Trace.branch` calls."""
    settings, scheduler = _recorded(record)
    settings = replace(settings, **changes)
    latents = history.latents[0] if record.get("latents") else None
    request = prepare(settings, load(model), scheduler, latents=latents, pictures=pictures, history=history)
    return run(_begin(request, hooks))


# ---------------------------------------------------------------------------------------------------------------------
# What a run is made from


def _prepare(prompt: Any, options: dict[str, Any], *, image: Any = None, mask_image: Any = None) -> Run:
    """The run that the arguments of the public functions ask for."""
    known = [field.name for field in fields(Settings)]
    asked = {name: options.pop(name) for name in known if name in options}
    for name in options:
        pick("argument", name, [*Options.__annotations__, "prompt", "hooks"])
    model = load(options.get("model"))
    embeds = {name: options.get(name) for name in EMBEDS}
    settings = Settings(_prompts(prompt, embeds), **asked)
    looks = ("control_image", "ip_adapter_image", "ip_adapter_image_embeds")
    pictures = pictures_for(
        model, settings, image=image, mask_image=mask_image, **{name: options.get(name) for name in looks}
    )
    return prepare(
        settings,
        model,
        options.get("scheduler"),
        generator=options.get("generator"),
        embeds=embeds,
        latents=options.get("latents"),
        pictures=pictures,
    )


def prepare(
    settings: Settings,
    model: Model,
    scheduler: Any,
    *,
    generator: Generators = None,
    embeds: Mapping[str, Tensor | None] | None = None,
    latents: Tensor | None = None,
    pictures: Pictures | None = None,
    history: History | None = None,
) -> Run:
    """Check everything, fill in the model's defaults, draw what was left to chance."""
    pictures = pictures or Pictures()
    settings = _fitted(settings, model, pictures, latents)
    heard = _check_embeds(model, settings, embeds or {})
    steps, guidance_scale = settings.num_inference_steps, settings.guidance_scale
    assert steps is not None and guidance_scale is not None  # noqa: PT018 - filled in by `_fitted`
    generator, seeds = _generators(settings, generator)
    stepper = schedulers.fresh(scheduler, model.scheduler, generator)
    visits = schedulers.visits(
        stepper,
        steps,
        model.device,
        settings.strength,
        timesteps=settings.timesteps,
        sigmas=settings.sigmas,
        denoising_start=settings.denoising_start,
        denoising_end=settings.denoising_end,
        distilled=model.takes_guidance,
    )
    assert settings.height is not None and settings.width is not None  # noqa: PT018 - filled in too
    shape = model.latent_shape(settings.pictures, settings.height, settings.width)
    record = {
        **asdict(settings),
        **_told(heard),
        **pictures.hashes(),
        "seed": seeds,
        "latents": latents is not None,
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
        pictures=pictures,
        embeds=heard,
        scheduler=stepper,
        visits=visits,
        record=record,
        history=history,
    )


def _fitted(settings: Settings, model: Model, pictures: Pictures, latents: Tensor | None) -> Settings:
    """The settings with the size of the pictures, a prompt for each of them, and the model's own defaults."""
    pixels, height, width = pictures.pixels, settings.height, settings.width
    if pixels is not None:
        if latents is not None:
            raise ValueError("both image and latents were given; a run starts from one of them")
        scale = 1 if pixels.shape[1] == 3 else model.pipeline.vae_scale_factor
        height, width = pixels.shape[-2] * scale, pixels.shape[-1] * scale
        if len(settings.prompts) == 1 and len(pixels) > 1:
            settings = replace(settings, prompt=settings.prompts * len(pixels))
        if len(pixels) not in (1, len(settings.prompts)):
            raise ValueError(
                f"{len(pixels)} pictures were given for {len(settings.prompts)} prompts; give one, or one each"
            )
    elif settings.strength is not None or settings.denoising_start is not None:
        name = "strength" if settings.strength is not None else "denoising_start"
        raise ValueError(f"{name} was given without image; it says how far a picture is noised")
    elif pictures.control:
        height, width = height or pictures.control[0].shape[-2], width or pictures.control[0].shape[-1]
    if model.paints and pictures.mask is None:
        raise ValueError(
            f"{model.name} paints into pictures: its U-Net sees a mask; give image_to_image a picture and mask_image"
        )
    return replace(
        settings,
        height=height or model.size[0],
        width=width or model.size[1],
        num_inference_steps=settings.num_inference_steps or model.num_inference_steps,
        guidance_scale=model.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
    )


def pictures_for(
    model: Model,
    settings: Settings,
    *,
    image: Any = None,
    mask_image: Any = None,
    control_image: Any = None,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: list[Tensor] | None = None,
) -> Pictures:
    """All pictures that a run is given, in the form in which it works with them."""
    size: tuple[Any, Any] = (settings.height, settings.width)
    pixels = mask = None
    if image is not None:
        pixels = to_pixels(image, *size, latent_channels=model.vae.config.latent_channels)
        scale = 1 if pixels.shape[1] == 3 else model.pipeline.vae_scale_factor
        size = pixels.shape[-2] * scale, pixels.shape[-1] * scale
    if mask_image is not None:
        if pixels is None:
            raise ValueError("mask_image was given without image; it says where to paint a picture anew")
        mask = to_mask(mask_image, *size)
        if len(mask) not in (1, len(pixels)):
            raise ValueError(f"{len(mask)} masks were given for {len(pixels)} pictures; give one, or one each")
    return Pictures(
        pixels,
        mask,
        _control_pictures(model, control_image, size),
        _ip_adapter_pictures(model, ip_adapter_image, ip_adapter_image_embeds),
        ip_adapter_image_embeds,
    )


def _control_pictures(model: Model, image: Any, size: tuple[int | None, int | None]) -> list[Tensor]:
    """For each ControlNet its pictures, (M, 3, H, W) in [0, 1]."""
    nets = len(model.controlnets)
    if image is None:
        if nets:
            raise ValueError(f"{model.name} carries a ControlNet; give the picture that it goes by as control_image")
        return []
    if not nets:
        raise ValueError(f"control_image was given, but {model.name} carries no ControlNet; load a pipeline with one")
    each = [image] if nets == 1 else image
    if not isinstance(each, list | tuple) or len(each) != nets:
        raise ValueError(f"control_image must be a list of {nets}, one for each ControlNet")
    return [to_pixels(one, *size, signed=False) for one in each]


def _ip_adapter_pictures(model: Model, image: Any, embeds: list[Tensor] | None) -> Any:
    """The pictures for the IP-Adapters as diffusers takes them: PIL, or tensors as they came."""
    takes = model.unet.config.encoder_hid_dim_type == "ip_image_proj"
    if image is not None and embeds is not None:
        raise ValueError("both ip_adapter_image and ip_adapter_image_embeds were given; give one of them")
    if takes and image is None and embeds is None:
        raise ValueError(f"{model.name} carries an IP-Adapter; give the picture that it goes by as ip_adapter_image")
    if not takes and (image is not None or embeds is not None):
        raise ValueError(
            f"ip_adapter_image was given, but {model.name} carries no IP-Adapter; load one with "
            "pipeline.load_ip_adapter(...)"
        )

    def rgb(one: Any) -> Any:
        if isinstance(one, list | tuple):
            return [rgb(part) for part in one]
        return one if one is None or isinstance(one, Tensor) else to_rgb(one)

    return rgb(image)


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


# ---------------------------------------------------------------------------------------------------------------------
# Running it


def _begin(request: Run, hooks: Iterable[Hook]) -> Generator[Event, None, Result]:
    """The run, not yet begun, each event of which every hook sees first."""
    request.hooks = checked(hooks)
    return hooked(_result(request), request.hooks)


def _result(request: Run) -> Generator[Event, None, Result]:
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
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if told := _out_of_memory(error):
                    raise type(error)(told) from error
                raise
            finally:  # only now is it known who replaced the value before
                names: list[str] = [] if event is None else [edit.hook for edit in event.edits]
                edited_by.extend(name for name in dict.fromkeys(names) if name not in edited_by)
            event = following
            event.origin = request
            yield event
    finally:
        request.model.pipeline.maybe_free_model_hooks()  # where the pipeline offloads, its parts go back


def _out_of_memory(error: RuntimeError) -> str | None:
    """A sentence with what to try, if that is what the error is: of a GPU a class of its own, of a CPU a message."""
    said = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in said and "enough memory" not in said:
        return None
    return (
        "out of memory; try a smaller height and width, fewer pictures at once, dtype='float16' on a GPU, or before "
        "sdkit.load(pipeline): pipeline.enable_model_cpu_offload(), pipeline.vae.enable_tiling() or "
        f"pipeline.enable_attention_slicing() ({said.splitlines()[0]})"
    )


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


def _prompts(prompt: str | Sequence[str] | None, embeds: Mapping[str, Tensor | None]) -> str | Sequence[str]:
    """The prompt, or one empty one for each of the embeddings that stand in for it."""
    given = embeds["prompt_embeds"]
    if given is None:
        if prompt is None:
            raise TypeError("neither prompt nor prompt_embeds was given; give one of them")
        return prompt
    if prompt is not None:
        raise ValueError("both prompt and prompt_embeds were given; give one of them")
    if not isinstance(given, Tensor) or given.ndim != 3 or not len(given):
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"prompt_embeds must be a tensor (P, L, D), but is {shape}")
    return "" if len(given) == 1 else [""] * len(given)


def _check_embeds(model: Model, settings: Settings, given: Mapping[str, Tensor | None]) -> Embeds:
    """Embeddings given for the negative prompts and the prompts, on the model's device and in its dtype."""
    there: dict[str, Tensor] = {name: embeds for name, embeds in given.items() if embeds is not None}
    if "negative_prompt_embeds" in there and settings.negative_prompt is not None:
        raise ValueError("both negative_prompt and negative_prompt_embeds were given; give one of them")
    many = len(settings.prompts)
    for name, embeds in there.items():
        pooled = "pooled" in name
        letters, width = ("(P, D')", model.pooled_width) if pooled else ("(P, L, D)", model.text_width)
        if pooled and not model.is_xl:
            raise ValueError(f"{name} was given, but {model.name} takes no pooled embeddings; leave it out")
        if (
            not isinstance(embeds, Tensor)
            or embeds.ndim != 3 - pooled
            or len(embeds) != many
            or embeds.shape[-1] != width
        ):
            shape = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
            raise ValueError(
                f"{name} must be a tensor {letters} with P = {many} and {letters[-2:-1].strip() or 'D'} = {width}, "
                f"but is {shape}"
            )
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        pooled_name = name.replace("prompt", "pooled_prompt")
        if model.is_xl and (name in there) != (pooled_name in there):
            raise ValueError(f"{model.name} takes {name} and {pooled_name} together; give both")
    shapes = {tuple(there[name].shape) for name in ("prompt_embeds", "negative_prompt_embeds") if name in there}
    if len(shapes) > 1:
        raise ValueError(
            f"prompt_embeds {tuple(there['prompt_embeds'].shape)} and negative_prompt_embeds "
            f"{tuple(there['negative_prompt_embeds'].shape)} differ in shape; make them equally long"
        )
    return Embeds(**{name: embeds.detach().to(model.device, model.dtype) for name, embeds in there.items()})


def _told(embeds: Embeds) -> dict[str, Any]:
    """What the record says of embeddings: that they stood in for words, and their shape."""
    told: dict[str, Any] = {}
    for name in EMBEDS:
        one = getattr(embeds, name)
        if one is not None:
            told[name] = list(one.shape)
            if "pooled" not in name:
                told[name.removesuffix("_embeds")] = None
    return told


def _check_latents(latents: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents must be a tensor, but is a {type(latents).__name__}")
    if latents.shape != shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; expected {shape} for these prompts and this size")
    return latents.detach().to(dtype)
