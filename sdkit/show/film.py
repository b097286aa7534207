"""A run as a film: GIF, WebP or MP4 of any of its stages, with step and noise level written under each frame."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from sdkit.events import Stage
from sdkit.files import whole_file
from sdkit.inputs.checks import pick, typed
from sdkit.inputs.paths import FPS, film_path
from sdkit.measure import ColourMap
from sdkit.show.view import by_step, check_picture, colours, guided, noise_share, standard
from sdkit.trace.record import Record
from sdkit.trace.trace import Trace

SHOWN = (Stage.LATENT, Stage.NOISE, Stage.GUIDED, Stage.DENOISED, Stage.IMAGE)
BAR = 40  # pixels of the caption
HOLD = 1.5  # seconds that the last frame stays
GIF_FPS = 50  # faster ones are shown at 10 by browsers


@typed(fps=FPS, side=(1, 8192))
def animate(
    trace: Trace,
    path: str | Path,
    stage: Stage | str = Stage.DENOISED,
    *,
    picture: int = 0,
    fps: float = 8,
    side: int = 384,
    dark: bool = True,
) -> Path:
    """Write a film of a run.

    Args:
        path: its ending says the format: .gif, .webp (exact, and smaller) or .mp4 (needs the extra "plots").
        stage: latent, noise (with guidance: under the words), guided, denoised or image.
        picture: which of those that were made at once.
        fps: frames a second; the last stays a while longer.
        side: pixels of the longer side of the picture, without the caption; the finished picture may be larger.

    Returns:
        The path, once the film is written.

    Raises:
        ValueError: the format is unknown, or needs what is not installed; the trace lacks the stage; or there is
            no such picture.
        FileNotFoundError: the folder does not exist.

    Example:
        >>> sdkit.animate(trace, "star.gif")
    """
    film_path(path)  # said before the frames are drawn
    return save_film(frames(trace, stage, picture=picture, side=side, dark=dark), path, fps, hold=HOLD)


@typed(side=(1, 8192))
def frames(
    trace: Trace, stage: Stage | str = Stage.DENOISED, *, picture: int = 0, side: int = 384, dark: bool = True
) -> list[Image.Image]:
    """The frames of `animate`: one for each step that was recorded, and the finished picture if there is one."""
    wanted = Stage(pick("stage to animate", str(stage), [one.value for one in SHOWN]))
    check_picture(trace, picture)
    records = by_step(trace, wanted)
    if not records:
        raise ValueError(f"the trace holds no step of stage {wanted.value!r}; record it, or animate another stage")
    paint = None if wanted is Stage.IMAGE else colours(trace)
    drawn = [_pixels(trace, record, picture, paint) for record in records.values()]
    end = [record.value[picture].float() / 2 + 0.5 for record in trace[Stage.IMAGE] if record.step is None]
    h, w = (end or drawn)[0].shape[-2:]
    scale = max(1, side // max(h, w))  # whole, so that every point of the picture becomes a square
    size = (h * scale, w * scale)
    film = []
    for index, (step, pixels) in enumerate(zip(records, drawn, strict=True)):
        level = f"t = {trace.levels[step].t}   {noise_share(trace, step)}" if step in trace.levels else ""
        film.append(_frame(pixels, size, f"step {step}", level, (index + 1) / len(records), dark))
    if end:
        film.append(_frame(end[0], size, "the picture", "", 1.0, dark))
    return film


def _pixels(trace: Trace, record: Record, picture: int, paint: ColourMap | None) -> Tensor:
    """What a record shows of one picture, as colours (3, h, w) in [0, 1]."""
    if paint is None:
        return record.value[picture].float() / 2 + 0.5
    if record.stage is Stage.LATENT:
        value = standard(trace, record, picture)
    else:
        conditional = len(record.value) // 2 if record.stage is Stage.NOISE and guided(trace) else 0
        value = record.value[conditional + picture].float()
    return paint(value[None])[0]


def _frame(pixels: Tensor, size: tuple[int, int], left: str, right: str, done: float, dark: bool) -> Image.Image:
    paper, ink, quiet, accent = (
        ("#16130f", "#efeae0", "#a89f91", "#f2925f") if dark else ("#faf8f4", "#1c1a17", "#665f55", "#a8401a")
    )
    h, w = size
    field = interpolate(pixels[None].clamp(0, 1), size=size, mode="nearest-exact")[0]
    whole = (field * 255).round().to(torch.uint8).movedim(0, -1).cpu().contiguous().numpy()
    frame = Image.new("RGB", (w + w % 2, h + BAR + h % 2), paper)  # even, as video wants it
    frame.paste(Image.fromarray(whole), (0, 0))
    pen, font = ImageDraw.Draw(frame), ImageFont.load_default(17 if w > 220 else 12)
    pen.rectangle((0, h, round(w * done) - 1, h + 3), fill=accent)
    pen.text((10, h + BAR / 2 + 3), left, fill=ink, font=font, anchor="lm")
    pen.text((w - 10, h + BAR / 2 + 3), right, fill=quiet, font=font, anchor="rm")
    return frame


@typed(fps=FPS, hold=(0, 60))
def save_film(
    frames: Sequence[Image.Image], path: str | Path, fps: float, *, hold: float = 0.0, hold_first: float = 0.0
) -> Path:
    """Write pictures of one size as a film, by the file's ending: .gif or .webp, which repeat, or .mp4 (extra "plots").

    Args:
        fps: frames a second, of a GIF at most 50.
        hold, hold_first: seconds that the last frame and the first stay; by default as long as the others.
    """
    path = film_path(path)
    if path.suffix.lower() == ".gif" and fps > GIF_FPS:
        raise ValueError(f"a GIF shows at most {GIF_FPS} frames a second, but fps is {fps:g}; write .webp or .mp4")
    with whole_file(path) as part:
        _write_film(frames, part, fps, hold, hold_first)
    return path


def _write_film(frames: Sequence[Image.Image], path: Path, fps: float, hold: float, hold_first: float) -> None:
    kind = path.suffix.lower()
    if kind == ".mp4":
        more_of_first, more_of_last = ([frames[end]] * round(fps * time) for end, time in ((0, hold_first), (-1, hold)))
        _write_mp4([*more_of_first, *frames, *more_of_last], path, fps)
        return
    if kind == ".gif":  # 256 colours for each frame, the rare ones of small letters among them
        most = Image.Quantize.MAXCOVERAGE
        frames = [frame.quantize(256, method=most, dither=Image.Dither.NONE) for frame in frames]
    tick = 10 if kind == ".gif" else 1  # milliseconds: a GIF counts hundredths of a second
    ends = [tick * round(1000 * index / fps / tick) for index in range(len(frames) + 1)]
    times = [after - before for before, after in pairwise(ends)]
    times[0] = round(1000 * hold_first) or times[0]
    times[-1] = round(1000 * hold) or times[-1]
    more: dict[str, Any] = {"lossless": True} if kind == ".webp" else {"optimize": False}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, **more)


def _write_mp4(frames: Sequence[Image.Image], path: Path, fps: float) -> None:
    from imageio_ffmpeg import count_frames_and_secs, write_frames  # type: ignore[import-untyped]  # only who films needs it

    width, height = frames[0].size
    even = width + width % 2, height + height % 2  # as video wants it
    film = write_frames(str(path), even, fps=fps, macro_block_size=2, quality=8)
    film.send(None)  # so that it starts
    try:
        for frame in frames:
            film.send(ImageOps.pad(frame, even).tobytes() if even != frame.size else frame.tobytes())
    finally:
        film.close()
    try:
        written = count_frames_and_secs(str(path))[0]
    except RuntimeError:  # it cannot even be opened
        written = 0
    if written != len(frames):  # of which ffmpeg says nothing
        raise OSError("the film came out incomplete, perhaps because the disk is full")
