"""One look into what the autoencoder and the forward process make of a picture: a page, and the numbers to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from sdkit.latents.autoencoder import RoundTrip, round_trip
from sdkit.latents.previews import latent_to_rgb
from sdkit.latents.statistics import Description, describe
from sdkit.model.loading import load
from sdkit.pictures import contact_sheet
from sdkit.tasks.diffuse import diffuse


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen."""

    page: Image.Image  # the picture, what came back, the difference, a preview; then every noise level
    trip: RoundTrip
    description: Description
    levels: list[dict[str, Any]]  # t, alpha, sigma and snr of each noise level
    preview_r2: float

    @property
    def numbers(self) -> dict[str, Any]:
        """All of it but the page, as plain JSON values."""
        return {
            "psnr": self.trip.psnr[0],
            "ssim": self.trip.ssim[0],
            "pixel_values": self.trip.pixel_values,
            "latent_values": self.trip.latent_values,
            "pixel_bytes": self.trip.pixel_values,
            "latent_bytes": self.trip.latent_bytes,
            "channels": [vars(channel) for channel in self.description.channels],
            "levels": self.levels,
            "preview_r2": self.preview_r2,
        }


def look_into(picture: Any, *, timesteps: int = 8, seed: int = 0, tiled: bool = False, model: Any = None) -> Look:
    """Encode a picture and decode it, describe its latents, and noise it step by step, on latents and on pixels."""
    model = load(model)
    trip = round_trip(picture, model=model, tiled=tiled)
    original, rgb, description = trip.originals[0], latent_to_rgb(model), describe(trip.latents)
    ways = [diffuse(original, timesteps, space=space, seed=seed, model=model) for space in ("latent", "pixel")]
    levels = ways[0].settings["levels"]
    columns = max(4, len(levels))
    preview = rgb(trip.latents, scale=1)[0].resize(original.size, Image.Resampling.BICUBIC)
    blank = Image.new("RGB", original.size, "white")
    rows = [[original, trip.images[0], trip.differences[0], preview], *(way.images for way in ways)]
    page = contact_sheet([one for row in rows for one in [*row, *[blank] * (columns - len(row))]], columns)
    return Look(page, trip, description, levels, rgb.r2)
