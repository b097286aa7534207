"""The garbage collector, paused."""

import gc
from contextlib import suppress

import pytest

from sdkit.collecting import paused


@pytest.fixture(autouse=True)
def collecting():
    """However it stood, the next test finds it so."""
    was = gc.isenabled()
    gc.enable()
    yield
    (gc.enable if was else gc.disable)()


def test_it_pauses_and_goes_on_also_after_an_error():
    found = []
    with suppress(ValueError), paused():
        found.append(gc.isenabled())
        raise ValueError("here")
    assert [*found, gc.isenabled()] == [False, True]


def test_who_has_switched_it_off_finds_it_off():
    gc.disable()
    with paused():
        pass
    assert not gc.isenabled()


def test_what_was_made_meanwhile_counts_as_old_and_is_collected_once_nothing_needs_it():
    with paused():
        circle = [[]]
        circle[0].append(circle)
    assert any(one is circle for one in gc.get_objects(generation=2))
    assert gc.get_freeze_count() == 0
    del circle
    assert gc.collect() > 0


def test_what_somebody_keeps_frozen_stays_so():
    gc.freeze()
    try:
        many = gc.get_freeze_count()
        with paused():
            pass
        assert gc.get_freeze_count() > 0.9 * many  # other threads let some of it go
    finally:
        gc.unfreeze()
