"""What a U-Net goes by beside x and t."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Control:
    """Pictures that steer the U-Net through a ControlNet (Zhang et al. 2023, arXiv:2302.05543)."""

    pictures: list[Tensor]  # for each ControlNet (2B, 3, H, W) in [0, 1]; B rows without guidance and in guess mode
    scale: list[float]  # of each ControlNet's residuals
    start: list[float]  # shares of the steps between which it steers
    end: list[float]
    guess_mode: bool  # the conditional half alone is steered

    def scales(self, step: int, steps: int) -> list[float]:
        """What each ControlNet's residuals are multiplied by in one of the steps; 0 outside its interval."""
        nets = zip(self.scale, self.start, self.end, strict=True)
        return [scale * (step / steps >= start and (step + 1) / steps <= end) for scale, start, end in nets]


@dataclass(frozen=True, eq=False)
class Condition:
    """What the U-Net takes beside x and t. With guidance the rows of the unconditional half come first."""

    TENSORS: ClassVar = ("text", "pooled", "time_ids", "guidance", "painted")
    text: Tensor  # (2B, L, D)
    pooled: Tensor | None = None  # (2B, P) of SDXL
    time_ids: Tensor | None = None  # (2B, 6) of SDXL: sizes and crop; (2B, 5) of its refiner: size, crop and score
    image_embeds: list[Tensor] | None = None  # of each IP-Adapter (2B, N, T, D)
    guidance: Tensor | None = None  # (B, E) guidance scale, where the U-Net was distilled to take it as an input
    painted: Tensor | None = None  # (2B, 5, h, w) mask and masked latents, for a U-Net with 9 channels
    control: Control | None = None
    attention: dict[str, Any] | None = None  # diffusers' cross_attention_kwargs

    @property
    def added(self) -> dict[str, Any] | None:
        """What diffusers calls `added_cond_kwargs`."""
        values = {"text_embeds": self.pooled, "time_ids": self.time_ids, "image_embeds": self.image_embeds}
        return {name: value for name, value in values.items() if value is not None} or None

    def hearing(self, text: Tensor, pictures: int) -> Condition:
        """The same with other text embeddings (R, L, D), R a multiple of the pictures B: what else there is of each
        row stays. Fewer rows are the last ones, and each B rows beyond go by what the last B go by."""
        had = len(self.text)
        last = list(range(had - pictures, had))
        more = (len(text) - had) // pictures
        rows = [*range(had), *last * more] if more >= 0 else last * (len(text) // pictures)

        def of(value: Tensor) -> Tensor:
            """A value may lack the first rows, as the pictures of a ControlNet do in guess mode."""
            return value if more == 0 else value[[row - had + len(value) for row in rows if row >= had - len(value)]]

        whole: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else of(value) for name in self.TENSORS
        }
        embeds = self.image_embeds and [of(one) for one in self.image_embeds]
        control = self.control and replace(self.control, pictures=[of(one) for one in self.control.pictures])
        return replace(self, **whole | {"text": text}, image_embeds=embeds, control=control)
