"""The one table of a run's arguments, under diffusers' names: what each means, what it is by default, and what is
checked. Signatures, documentation and the command line are made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TypeVar

from sdkit.inputs import checks
from sdkit.inputs.seeds import check_seed

T = TypeVar("T")
Size = Sequence[int]  # of two numbers: height and width, or top and left
STRENGTH = 0.8  # of image to image, where none is given
LONG_PROMPTS = ("cut", "split")
DTYPES = ("float32", "float16", "bfloat16")
ENGINES = ("torch", "openvino", "compile")  # that compute the U-Net, and some the decoder
GIVEN = ("image", "mask_image", "control_image", "ip_adapter_image")  # pictures, of which a record holds the hash


def argument(default: T, meaning: str, letter: str = "") -> T:
    """A field of the table: its default, what it means, and the letter or word that stands for its value in the help
    of the command line."""
    return field(default=default, metadata={"meaning": meaning, "letter": letter})


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What every way of making pictures takes, as plain JSON values. None means: as the model has it."""

    negative_prompt: str | Sequence[str] | None = argument(
        None, "what to steer away from, one for all prompts or one each; used only with guidance", "TEXT"
    )
    height: int | None = argument(
        None,
        "of the pictures in pixels, a multiple of 8; by default what the model was trained on, or the size of "
        "the picture to start from, cut down to a multiple of 8",
        "PIXELS",
    )
    width: int | None = argument(None, "the same across", "PIXELS")
    num_inference_steps: int | None = argument(
        None, "denoising steps; by default the model's own, 50 for Stable Diffusion and 20 for the embedded model", "N"
    )
    guidance_scale: float | None = argument(
        None,
        "g in uncond + g * (cond - uncond), how strictly to follow the words; off at 1 and below; by default the "
        "model's own",
        "G",
    )
    guidance_rescale: float = argument(0.0, "in [0, 1], against overexposure (arXiv:2305.08891)", "R")
    eta: float = argument(
        0.0, "in [0, 1], the noise that DDIM adds in each step (arXiv:2010.02502); of the others only TCD uses it", "E"
    )
    num_images_per_prompt: int = argument(1, "pictures of each prompt, which come one after another", "N")
    seed: int | Sequence[int] | None = argument(
        None,
        "stands for one CPU generator a picture, so that each starts from the noise that it would have had alone: "
        "7 for three pictures means 7, 8, 9; a list gives each its own; without one it is drawn by lot",
        "N",
    )
    timesteps: Sequence[int] | None = argument(
        None, "the training timesteps to visit, falling, instead of num_inference_steps", "T"
    )
    sigmas: Sequence[float] | None = argument(
        None, "the noise levels to visit, falling and ending at 0, instead of num_inference_steps; for euler", "S"
    )
    denoising_end: float | None = argument(
        None,
        "in (0, 1), the share of the noise schedule after which to stop; the latents are then for a refiner, "
        "which goes on from them with denoising_start",
        "S",
    )
    original_inference_steps: int | None = argument(
        None, "how many steps of its teacher a latent consistency model picks its few from; by default 50", "N"
    )
    clip_skip: int | None = argument(
        None, "so many layers of the text encoder are left out at its end, for the negative prompt too", "N"
    )
    clip_skip_negative: bool = argument(True, "False leaves the negative prompt as it is, as diffusers does")
    long_prompt: str = argument(
        "cut",
        'what to do with a prompt beyond the text encoder\'s window: "cut" it, as diffusers does, with a warning '
        'that names what is left out, or "split" it at ends of words into as many windows as it takes',
        "HOW",
    )
    prompt_2: str | Sequence[str] | None = argument(
        None, "for SDXL's second text encoder; by default the prompt", "TEXT"
    )
    negative_prompt_2: str | Sequence[str] | None = argument(None, "the same for the negative prompt", "TEXT")
    original_size: Size | None = argument(
        None,
        "(height, width) that SDXL takes the picture once to have had (arXiv:2307.01952, section 2.2); by default "
        "its own",
    )
    crops_coords_top_left: Size = argument((0, 0), "(top, left) where SDXL takes it to have been cropped")
    target_size: Size | None = argument(None, "(height, width) that SDXL takes it to have; by default its own")
    negative_original_size: Size | None = argument(None, "original_size to steer away from")
    negative_crops_coords_top_left: Size | None = argument(None, "crops_coords_top_left to steer away from")
    negative_target_size: Size | None = argument(None, "target_size to steer away from")
    aesthetic_score: float = argument(6.0, "which SDXL's refiner takes instead of the target size", "A")
    negative_aesthetic_score: float = argument(2.5, "the same to steer away from", "A")
    controlnet_conditioning_scale: float | Sequence[float] = argument(
        1.0, "how strongly the ControlNet steers, one for all or one each", "S"
    )
    control_guidance_start: float | Sequence[float] = argument(
        0.0, "in [0, 1], the share of the steps before which it does not steer", "S"
    )
    control_guidance_end: float | Sequence[float] = argument(
        1.0, "in [0, 1], the share of the steps after which it does not steer", "S"
    )
    guess_mode: bool = argument(False, "whether the ControlNet steers the conditional half alone")


@dataclass(frozen=True, kw_only=True)
class FromPicture:
    """What a run that starts from a picture takes beside."""

    strength: float | None = argument(
        None,
        f"in (0, 1], {STRENGTH} by default, how far to noise the picture: the share of the steps that is run. 1 "
        "keeps next to nothing",
        "S",
    )
    denoising_start: float | None = argument(
        None,
        "in (0, 1), the share of the noise schedule that the picture, then usually latents, has behind it: no "
        "noise is added, and strength is not used",
        "S",
    )
    padding_mask_crop: int | None = argument(
        None,
        "with a mask, paint only the part of the picture around what it marks, with so many pixels beside it, enlarged "
        "to height and width, and lay it back into the whole",
        "PIXELS",
    )


@dataclass(frozen=True)
class Settings(Arguments, FromPicture):
    """The arguments of a run as plain values, checked."""

    prompt: str | Sequence[str] = argument("", "what to draw; several prompts make several pictures", "TEXT")

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, checks.plain(getattr(self, one.name)))
        checks.texts("prompt", self.prompt)
        for name in ("negative_prompt", "prompt_2", "negative_prompt_2"):
            self._check_beside(name)
        for side in ("height", "width"):
            value = getattr(self, side)
            if value is not None and checks.whole(side, value, at_least=8) % 8:
                raise ValueError(f"{side} {value} is not a multiple of 8; try {max(8, round(value / 8) * 8)}")
        if self.num_inference_steps is not None:
            checks.whole("num_inference_steps", self.num_inference_steps, at_least=1)
        if self.guidance_scale is not None:
            checks.number("guidance_scale", self.guidance_scale, 0, math.inf)
        checks.number("guidance_rescale", self.guidance_rescale, 0, 1)
        checks.number("eta", self.eta, 0, 1)
        self._check_start()
        self._check_schedule()
        self._check_sizes()
        self._check_control()
        for name, least in (("clip_skip", 0), ("padding_mask_crop", 0), ("original_inference_steps", 1)):
            if getattr(self, name) is not None:
                checks.whole(name, getattr(self, name), at_least=least)
        for name in ("clip_skip_negative", "guess_mode"):
            checks.truth(name, getattr(self, name))
        checks.pick("long_prompt", self.long_prompt, LONG_PROMPTS)
        checks.whole("num_images_per_prompt", self.num_images_per_prompt, at_least=1)
        if self.seed is not None:
            check_seed(self.seed)

    def _check_beside(self, name: str) -> None:
        """Texts that stand beside the prompts: one for all, or one each."""
        texts = getattr(self, name)
        if texts is None:
            return
        checks.texts(name, texts)
        if not isinstance(texts, str) and len(texts) != len(self.prompts):
            raise ValueError(
                f"{len(texts)} {name.replace('_', ' ')}s were given for {len(self.prompts)} prompts; "
                "give one for all, or one each"
            )

    def _check_start(self) -> None:
        if self.strength is not None:
            checks.number("strength", self.strength, 0, 1)
        for name in ("denoising_start", "denoising_end"):
            if getattr(self, name) is not None:
                checks.number(name, getattr(self, name), 0, 1)
                if getattr(self, name) in (0, 1):
                    raise ValueError(f"{name} must lie between 0 and 1; leave it out for the whole of the schedule")
        start, end = self.denoising_start, self.denoising_end
        if start is not None and end is not None and start >= end:
            raise ValueError(f"denoising_start {start} must lie below denoising_end {end}")

    def _check_schedule(self) -> None:
        if self.timesteps is not None and self.sigmas is not None:
            raise ValueError("both timesteps and sigmas were given; give one of them")
        for name, values, steps in (("timesteps", self.timesteps, 0), ("sigmas", self.sigmas, -1)):
            if values is None:
                continue
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise TypeError(f"{name} must be a list of falling numbers, but is {values!r}")
            for value in values:
                if name == "timesteps":
                    checks.whole(name, value, at_least=0)
                else:
                    checks.number(name, value, 0, math.inf)
            steps += len(values)
            if steps < 1 or any(after >= before for before, after in pairwise(values)):
                least = "one" if name == "timesteps" else "two, the last of them 0 for a clean picture"
                raise ValueError(f"{name} must fall from noise to picture, at least {least}, but are {list(values)}")
            if self.num_inference_steps not in (None, steps):
                raise ValueError(
                    f"num_inference_steps {self.num_inference_steps} was given with {name} for {steps} steps"
                )
            object.__setattr__(self, "num_inference_steps", steps)

    def _check_sizes(self) -> None:
        for one in fields(self):
            size = getattr(self, one.name)
            if not str(one.type).startswith("Size") or size is None:
                continue
            if isinstance(size, str) or not isinstance(size, Sequence) or len(size) != 2:
                raise TypeError(f"{one.name} must be two whole numbers, but is {size!r}")
            for value in size:
                checks.whole(one.name, value, at_least=0)
        for name in ("aesthetic_score", "negative_aesthetic_score"):
            checks.number(name, getattr(self, name), 0, math.inf)

    def _check_control(self) -> None:
        for name, high in (
            ("controlnet_conditioning_scale", math.inf),
            ("control_guidance_start", 1),
            ("control_guidance_end", 1),
        ):
            values = getattr(self, name)
            for value in values if isinstance(values, Sequence) and not isinstance(values, str) else [values]:
                checks.number(name, value, 0, high)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def negative_prompts(self) -> list[str]:
        """One for each prompt; "" where none was given."""
        return self._each(self.negative_prompt)

    @property
    def second_prompts(self) -> list[str]:
        """What SDXL's second text encoder reads: the prompts, unless others were given for it."""
        return self._each(self.prompt_2) if self.prompt_2 else self.prompts

    @property
    def second_negative_prompts(self) -> list[str]:
        return self._each(self.negative_prompt_2) if self.negative_prompt_2 else self.negative_prompts

    def _each(self, texts: str | Sequence[str] | None) -> list[str]:
        return [texts or ""] * len(self.prompts) if texts is None or isinstance(texts, str) else list(texts)

    @property
    def pictures(self) -> int:
        return len(self.prompts) * self.num_images_per_prompt
