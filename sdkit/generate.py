"""Words in, or a picture and words, and pictures out: `text_to_image`, `image_to_image`, and `stages`, which is either
as a loop of your own."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

from PIL import Image
from torch import Tensor

from sdkit import schedulers
from sdkit.events import Event, Hook, checked, hooked, run
from sdkit.loading import load
from sdkit.pictures import read_settings, save_png, to_pil
from sdkit.preparation import EMBEDS, pictures_for, prepare, prompts_for
from sdkit.process import reverse
from sdkit.runs import Generators, History, Pictures, Run, signed
from sdkit.settings import STRENGTH, Settings, Size, output_paths

T = TypeVar("T")
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
    only = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(name, only, default=defaults.get(name), annotation=kind.__forward_arg__)
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

    def __repr__(self) -> str:
        many, (width, height) = len(self.images), self.image.size
        told = f"{many} picture{'s' * (many > 1)} of {width}x{height}"
        return f"<Result of {self.settings['prompt']!r}, seed {self.seeds}: {told}>"

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
        strength: in (0, 1], 0.8 by default, how far to noise it: the share of the steps that is run. 1 keeps next to
            nothing.
        mask_image: white where to paint anew, in any form that a picture comes in, and fitted to its size. A U-Net with
            9 channels sees mask and picture; for one with 4 the rest is put back after each step, and seams are fewest
            under a prompt for the whole picture, at a strength just below 1.
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
    asked = {field.name: options.pop(field.name) for field in fields(Settings) if field.name in options}
    for name in options.keys() - Options.__annotations__.keys():
        near = difflib.get_close_matches(name, [*Options.__annotations__, "prompt", "hooks"], 1)
        hint = f"did you mean {near[0]!r}?" if near else "help(sdkit.text_to_image) lists what there is"
        if name in ("image", "mask_image"):
            hint = "sdkit.image_to_image takes it"
        raise TypeError(f"there is no argument {name!r} here; {hint}")
    model = load(options.get("model"))
    embeds = {name: options.get(name) for name in EMBEDS}
    settings = Settings(prompts_for(prompt, embeds), **asked)
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


# ---------------------------------------------------------------------------------------------------------------------
# Running it


def _begin(request: Run, hooks: Iterable[Hook]) -> Generator[Event, None, Result]:
    """The run, not yet begun, each event of which every hook sees first."""
    request.hooks = checked(hooks)
    return hooked(_result(request), request.hooks)


def _result(request: Run) -> Generator[Event, None, Result]:
    latents, image = yield from signed(request, reverse(request))
    return Result(to_pil(image), latents, request.record["seed"], request.record)
