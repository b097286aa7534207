"""What a run is asked for, checked before anything heavy is imported: the command line and the functions share it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

STRENGTH = 0.8  # of image to image, where none is given
LONG_PROMPTS = ("cut", "split")
DTYPES = ("float32", "float16", "bfloat16")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
SEED_LIMIT = 2**63  # seeds are signed 64-bit and not negative
Size = Sequence[int]  # of two numbers: height and width, or top and left
_SIZES = (
    "original_size",
    "crops_coords_top_left",
    "target_size",
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
)


@dataclass(frozen=True)
class Settings:
    """The arguments of a run under diffusers' names. None means: as the model has it (or, for seeds, drawn by lot)."""

    prompt: str | Sequence[str]
    negative_prompt: str | Sequence[str] | None = None
    height: int | None = None  # pixels
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    eta: float = 0.0
    num_images_per_prompt: int = 1
    strength: float | None = None  # of image to image; None without a picture to start from
    seed: int | Sequence[int] | None = None
    timesteps: Sequence[int] | None = None  # falling, instead of those that the scheduler would choose
    sigmas: Sequence[float] | None = None
    clip_skip: int | None = None  # layers of the text encoder left out at its end
    clip_skip_negative: bool = True  # of the negative prompt too; diffusers does not
    long_prompt: str = "cut"
    denoising_start: float | None = None  # share of the noise schedule that another run has behind it (SDXL refiner)
    denoising_end: float | None = None  # share of it after which this run stops
    prompt_2: str | Sequence[str] | None = None  # for the second text encoder of SDXL, like all of the following
    negative_prompt_2: str | Sequence[str] | None = None
    original_size: Size | None = None  # (height, width)
    crops_coords_top_left: Size = (0, 0)
    target_size: Size | None = None
    negative_original_size: Size | None = None
    negative_crops_coords_top_left: Size | None = None
    negative_target_size: Size | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    controlnet_conditioning_scale: float | Sequence[float] = 1.0  # one for all ControlNets, or one each
    control_guidance_start: float | Sequence[float] = 0.0  # shares of the steps
    control_guidance_end: float | Sequence[float] = 1.0
    guess_mode: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):  # numbers of numpy and torch become Python's, which the record can hold
            object.__setattr__(self, field.name, _python(getattr(self, field.name)))
        _texts("prompt", self.prompt)
        for name in ("negative_prompt", "prompt_2", "negative_prompt_2"):
            self._check_beside(name)
        for side in ("height", "width"):
            value = getattr(self, side)
            if value is not None and _whole(side, value, at_least=8) % 8:
                raise ValueError(f"{side} {value} is not a multiple of 8; try {max(8, round(value / 8) * 8)}")
        if self.num_inference_steps is not None:
            _whole("num_inference_steps", self.num_inference_steps, at_least=1)
        if self.guidance_scale is not None:
            _number("guidance_scale", self.guidance_scale, 0, math.inf)
        _number("guidance_rescale", self.guidance_rescale, 0, 1)
        _number("eta", self.eta, 0, 1)
        if self.strength is not None:
            _number("strength", self.strength, 0, 1)
            if self.num_inference_steps is not None and int(self.num_inference_steps * self.strength) < 1:
                enough = math.ceil(1000 / self.num_inference_steps) / 1000
                raise ValueError(
                    f"strength {self.strength:g} of {self.num_inference_steps} steps leaves no step to run; "
                    f"it takes at least {enough:g}"
                )
        self._check_schedule()
        self._check_part()
        self._check_micro()
        self._check_control()
        if self.clip_skip is not None:
            _whole("clip_skip", self.clip_skip, at_least=0)
        for name in ("clip_skip_negative", "guess_mode"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, but is {getattr(self, name)!r}")
        pick("long_prompt", self.long_prompt, LONG_PROMPTS)
        _whole("num_images_per_prompt", self.num_images_per_prompt, at_least=1)
        if self.seed is not None:
            self._check_seed()

    def _check_beside(self, name: str) -> None:
        """Texts that stand beside the prompts: one for all, or one each."""
        texts = getattr(self, name)
        if texts is None:
            return
        _texts(name, texts)
        if not isinstance(texts, str) and len(texts) != len(self.prompts):
            raise ValueError(
                f"{len(texts)} {name.replace('_', ' ')}s were given for {len(self.prompts)} prompts; "
                "give one for all, or one each"
            )

    def _check_part(self) -> None:
        for name in ("denoising_start", "denoising_end"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), 0, 1)
                if getattr(self, name) in (0, 1):
                    raise ValueError(f"{name} must lie between 0 and 1; leave it out for the whole of the schedule")
        if None not in (self.denoising_start, self.denoising_end) and self.denoising_start >= self.denoising_end:  # type: ignore[operator]
            raise ValueError(
                f"denoising_start {self.denoising_start} must lie below denoising_end {self.denoising_end}"
            )

    def _check_micro(self) -> None:
        for name in _SIZES:
            size = getattr(self, name)
            if size is None:
                continue
            if isinstance(size, str) or not isinstance(size, Sequence) or len(size) != 2:
                raise TypeError(f"{name} must be two whole numbers, but is {size!r}")
            for value in size:
                _whole(name, value, at_least=0)
        for name in ("aesthetic_score", "negative_aesthetic_score"):
            _number(name, getattr(self, name), 0, math.inf)

    def _check_control(self) -> None:
        for name, high in (
            ("controlnet_conditioning_scale", math.inf),
            ("control_guidance_start", 1),
            ("control_guidance_end", 1),
        ):
            values = getattr(self, name)
            for value in values if isinstance(values, Sequence) and not isinstance(values, str) else [values]:
                _number(name, value, 0, high)

    def _check_schedule(self) -> None:
        if self.timesteps is not None and self.sigmas is not None:
            raise ValueError("both timesteps and sigmas were given; give one of them")
        for name, values, steps in (("timesteps", self.timesteps, 0), ("sigmas", self.sigmas, -1)):
            if values is None:
                continue
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise TypeError(f"{name} must be a list of falling numbers, but is {values!r}")
            for value in values:
                _whole(name, value, at_least=0) if name == "timesteps" else _number(name, value, 0, math.inf)
            steps += len(values)
            if steps < 1 or any(after >= before for before, after in pairwise(values)):
                least = "one" if name == "timesteps" else "two, the last of them 0 for a clean picture"
                raise ValueError(f"{name} must fall from noise to picture, at least {least}, but are {list(values)}")
            if self.num_inference_steps not in (None, steps):
                raise ValueError(
                    f"num_inference_steps {self.num_inference_steps} was given with {name} for {steps} steps"
                )
            object.__setattr__(self, "num_inference_steps", steps)

    def _check_seed(self) -> None:
        for seed in list(self.seed) if isinstance(self.seed, Sequence) else [self.seed]:
            if _whole("seed", seed, at_least=0) >= SEED_LIMIT:
                raise ValueError(f"seed {seed} is too large; seeds go from 0 to 2**63 - 1")

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
        return self.prompts if not self.prompt_2 else self._each(self.prompt_2)

    @property
    def second_negative_prompts(self) -> list[str]:
        return self.negative_prompts if not self.negative_prompt_2 else self._each(self.negative_prompt_2)

    def _each(self, texts: str | Sequence[str] | None) -> list[str]:
        return [texts or ""] * len(self.prompts) if texts is None or isinstance(texts, str) else list(texts)

    @property
    def pictures(self) -> int:
        return len(self.prompts) * self.num_images_per_prompt

    def seeds_from(self, seed: int | Sequence[int]) -> list[int]:
        """One seed for each picture: 7 for three pictures means 7, 8, 9."""
        if isinstance(seed, int):
            return [(seed + i) % SEED_LIMIT for i in range(self.pictures)]
        if len(seed) != self.pictures:
            raise ValueError(
                f"{len(seed)} seeds were given for {self.pictures} pictures; "
                "give one each, or a single one that the pictures count up from"
            )
        return list(seed)


def pick(what: str, name: str, among: Collection[str]) -> str:
    """`name` if it is among the known ones.

    Raises:
        ValueError: it is not; the message has the nearest one, or all.
    """
    if name in among:
        return name
    near = difflib.get_close_matches(name, among, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(among)}"
    raise ValueError(f"unknown {what} {name!r}; {hint}")


def output_paths(path: str | Path, pictures: int) -> list[Path]:
    """Where so many pictures go: star.png for one, star-1.png, star-2.png, ... for several.

    Raises:
        ValueError: the file name does not end in .png, the format that carries settings.
        FileNotFoundError: its folder does not exist.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; give the name of a PNG in it")
    if path.suffix.lower() != ".png":
        raise ValueError(f"pictures are saved as PNG with their settings inside, so {str(path)!r} must end in .png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} does not exist; make it first")
    if pictures == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{i + 1}") for i in range(pictures)]


def film_path(path: str | Path) -> Path:
    """Where a film is to be written.

    Raises:
        ValueError: the file name ends in none of .gif, .webp and .mp4, or what writes MP4 is not installed.
        FileNotFoundError: its folder does not exist.
    """
    place = _place(path, (".gif", ".webp", ".mp4"), "a film is saved as GIF, WebP or MP4")
    if place.suffix.lower() == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ValueError('MP4 needs imageio-ffmpeg, which is not installed: pip install "sdkit-stages[plots]"')
    return place


def report_path(path: str | Path) -> Path:
    """Where a report is to be written.

    Raises:
        ValueError: the file name does not end in .html.
        FileNotFoundError: its folder does not exist.
    """
    return _place(path, (".html", ".htm"), "a report is a page")


def _place(path: str | Path, endings: tuple[str, ...], what: str) -> Path:
    place = Path(path).expanduser()
    if place.suffix.lower() not in endings:
        raise ValueError(f"{what}, so {str(path)!r} must end in {' or '.join(endings)}")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(place.parent)!r} does not exist; make it first")
    return place


def check_source(model: str | Path, *, allow_pickle: bool = False) -> Path | None:
    """The file or the folder that a model's name stands for, or None for an id on the hub.

    Raises:
        FileNotFoundError: it is neither a file, nor a folder in diffusers' layout, nor an id.
        ValueError: it is a pickle, or a file of another kind.
    """
    place = Path(model).expanduser()
    if place.is_file():
        if place.suffix in PICKLES and not allow_pickle:
            raise ValueError(
                f"{str(model)!r} is a pickle, which may run code when it is read; fetch its .safetensors, or call "
                "sdkit.load(..., allow_pickle=True) if you trust it"
            )
        if place.suffix not in (".safetensors", *PICKLES):
            raise ValueError(f"{str(model)!r} is a file of an unknown kind; expected .safetensors, or a folder")
        return place
    if place.is_dir():
        if not (place / "model_index.json").is_file():
            raise FileNotFoundError(f"the folder {str(model)!r} has no model_index.json; expected diffusers' layout")
        return place
    if place.suffix in (".safetensors", *PICKLES) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(model)):
        raise FileNotFoundError(
            f"there is no file or folder {str(model)!r}, nor is that an id of the form owner/name on the hub"
        )
    return None


def _python(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_python(one) for one in value] if isinstance(value, list | tuple) else value


def _texts(name: str, value: object) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{name} must be a string or a list of strings, but is {value!r}")
    if not value:
        raise ValueError(f"{name} is an empty list; give at least one string")


def _whole(name: str, value: object, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, but is {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, but is {value}")
    return value


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, but is {value!r}")
    if not low <= value <= high or math.isinf(value):
        room = f"a number from {low:g} up" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be {room}, but is {value:g}")


def size_in_bytes(size: str | int, name: str = "budget") -> int:
    """A size such as "512MB" as a number of bytes, which may also be given as such.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]B)", size) if isinstance(size, str) else None
    if found is None:
        raise ValueError(f'{name} must be a size such as "512MB" or a number of bytes, but is {size!r}')
    return int(float(found[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[found[2]])
