"""Seeds: which numbers are ones, and how one seed counts for several pictures."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from sdkit.inputs.checks import whole

SEED_LIMIT = 2**63  # seeds are signed 64-bit and not negative


def check_seed(seed: int | Sequence[int]) -> None:
    """One seed, or a list of seeds."""
    for one in list(seed) if isinstance(seed, Sequence) else [seed]:
        if whole("seed", one, at_least=0) >= SEED_LIMIT:
            raise ValueError(f"seed {one} is too large; seeds go from 0 to 2**63 - 1")


def seed_each(seed: int | Sequence[int] | None, pictures: int) -> list[int]:
    """One seed for each picture: 7 for three pictures means 7, 8, 9; a list gives each its own; None draws by lot."""
    if seed is None:
        seed = secrets.randbelow(2**32)
    check_seed(seed)
    if isinstance(seed, int):
        return [(seed + i) % SEED_LIMIT for i in range(pictures)]
    if len(seed) != pictures:
        raise ValueError(
            f"{len(seed)} seeds were given for {pictures} pictures; "
            "give one each, or a single one that the pictures count up from"
        )
    return list(seed)
