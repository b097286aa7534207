"""What a visitor may ask for and send at most."""

from __future__ import annotations

from typing import Any

STEPS = 100
LETTERS = 1000  # of a prompt
GUIDANCE = 30.0
FRAMES = 32  # of a film
UPLOAD = 12 * 2**20  # bytes of a file
PIXELS = 4096 * 4096
WAITING = 50  # requests, beside the one that the model is at
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # of uploads


def text(name: str, value: Any) -> str:
    """Some words.

    Raises:
        ValueError: they are none, or too many.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be words, but is {type(value).__name__}")
    if len(value) > LETTERS:
        raise ValueError(f"{name} has {len(value)} letters; {LETTERS} are the most here")
    return value


def at_most(name: str, value: Any, most: float) -> Any:
    """A number that is not beyond what this page allows; whether it is one at all is for the run to check."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value > most:
        raise ValueError(f"{name} may be at most {most:g} here, but is {value:g}")
    return value
