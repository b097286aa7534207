"""The garbage collector of Python, paused while what will stay is made: modules and weights."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Imports of torch and diffusers make half a million objects that stay, and the collector would go through them
    again and again in vain: a fifth of the time that they take. Afterwards they count as old, as they would have."""
    was, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    try:
        yield
    finally:
        if was and not frozen:  # otherwise somebody keeps what is frozen, and `unfreeze` would let it go
            gc.freeze()
            gc.unfreeze()
        if was:
            gc.enable()
