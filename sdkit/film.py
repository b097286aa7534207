"""A run as a film: GIF, WebP or MP4 of any of its stages, with step and noise level written under each frame."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from sdkit.events import Stage
from sdkit.pictures import save_film
from sdkit.reading import by_step, check_picture, colours, guided, levels, standard
from sdkit.settings import film_path, pick
from sdkit.trace import Record, Trace

SHOWN = (Stage.LATENT, Stage.NOISE, Stage.GUIDED, Stage.DENOISED, Stage.IMAGE)
BAR = 40  # pixels of the caption
HOLD = 1.5  # seconds that the last frame stays


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

    Raises:
        ValueError: the format is unknown, or needs what is not installed; the trace lacks the stage; or there is
            no such picture.
        FileNotFoundError: the folder does not exist.
    """
    film_path(path)  # said before the frames are drawn
    return save_film(frames(trace, stage, picture=picture, side=side, dark=dark), path, fps, hold=HOLD)


def frames(
    trace: Trace, stage: Stage | str = Stage.DENOISED, *, picture: int = 0, side: int = 384, dark: bool = True
) -> list[Image.Image]:
    """The frames of `animate`: one for each step that was recorded, and the finished picture if there is one."""
    wanted = Stage(pick("stage to animate", str(stage), [one.value for one in SHOWN]))
    check_picture(trace, picture)
    found, known = by_step(trace, wanted), levels(trace)
    if not found:
        raise ValueError(f"the trace holds no step of stage {wanted.value!r}; record it, or animate another stage")
    drawn = [_pixels(trace, record, picture) for record in found.values()]
    end = [record.value[picture].float() / 2 + 0.5 for record in trace[Stage.IMAGE] if record.step is None]
    h, w = (end or drawn)[0].shape[-2:]
    scale = max(1, side // max(h, w))  # whole, so that every point of the picture becomes a square
    size = (h * scale, w * scale)
    made = []
    for index, (step, pixels) in enumerate(zip(found, drawn, strict=True)):
        level = known.get(step)
        told = f"t = {level.t}   noise {level.noise:.0%}" if level else ""
        made.append(_frame(pixels, size, f"step {step}", told, (index + 1) / len(found), dark))
    if end:
        made.append(_frame(end[0], size, "the picture", "", 1.0, dark))
    return made


def _pixels(trace: Trace, record: Record, picture: int) -> Tensor:
    """What a record shows of one picture, as colours (3, h, w) in [0, 1]."""
    if record.stage is Stage.IMAGE:
        return record.value[picture].float() / 2 + 0.5
    if record.stage is Stage.LATENT:
        value = standard(record, levels(trace), picture)
    else:
        conditional = len(record.value) // 2 if record.stage is Stage.NOISE and guided(trace) else 0
        value = record.value[conditional + picture].float()
    return colours(trace)(value[None])[0]


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
