"""Figures of a `Trace`: what happened in a run, to look at, to print, to project. None needs a model.

Every function gives a matplotlib Figure of its own, which a notebook shows and `figure.savefig("x.png")` writes; `dark`
is for dark pages. Latents are drawn in the colours that fit the run's own picture best, by least squares.
"""

from sdkit.show.figures.latents import channels, guidance, histograms
from sdkit.show.figures.run import compare, film_strip, journey, noise_schedule, trajectory
from sdkit.show.figures.words import word_maps, words_over_time

__all__ = [
    "channels",
    "compare",
    "film_strip",
    "guidance",
    "histograms",
    "journey",
    "noise_schedule",
    "trajectory",
    "word_maps",
    "words_over_time",
]


def __dir__() -> list[str]:
    return __all__
