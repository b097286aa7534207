"""What attacks share: how many cases there are, values that nobody expects, and an interruption at any line."""

import copy
import dis
import gc
import linecache
import os
import signal
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sdkit

CASES = int(os.environ.get("SDKIT_ATTACK", "10000"))  # of all fuzzers together, in their long form
ROOT = f"{Path(sdkit.__file__).parent}{os.sep}"
HUGE = [10**9, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**300, 10**400]
TEXTS = ["", "0", "-1", "<script>alert(1)</script>", "évil\x1b[2J", "\x00", "\u202e", "\ud800", "a\nb", "__class__"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**9)
    | st.floats()
    | st.sampled_from(HUGE)
    | st.sampled_from(TEXTS)
    | st.just([[[[[[[[[]]]]]]]]]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "class", "t", "0"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def forms(short, share):
    """Two forms of a fuzzer: some cases for `make test`, and for `make test-slow` its share of all `CASES`."""
    long = pytest.param(max(1, round(CASES * share)), marks=pytest.mark.slow, id="long")
    return pytest.mark.parametrize("cases", [pytest.param(short, id="short"), long])


def attack(cases, one):
    """Try so many cases: each is a call with what draws values."""
    settings(max_examples=cases, suppress_health_check=list(HealthCheck))(given(data=st.data())(one))()


def places(value, path=()):
    """The ways to everything within a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def changed(value, path, other):
    """A copy with another value, or none, at a place."""
    if not path:
        return other
    new = copy.deepcopy(value)
    at = new
    for key in path[:-1]:
        at = at[key]
    if other == "nothing":
        del at[path[-1]]
    else:
        at[path[-1]] = other
    return new


def damaged_bytes(data, whole):
    """Bytes that are cut short, or have others in place of some, or between them."""
    kind, at = data.draw(st.sampled_from(["cut", "other", "more"])), data.draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        return whole[:at]
    return whole[:at] + data.draw(st.binary(min_size=1, max_size=8)) + whole[at + (kind == "other") :]


class Lines:
    """Every line of sdkit that runs within this scope, in this thread; at the n-th of them, counted from 0, something
    is done, such as to raise. The garbage collector waits: what it ends is of other runs, and keeps interrupts to
    itself."""

    def __init__(self, at=None, do=None):
        self.at, self.do, self.passed = at, do, []

    def __enter__(self):
        self.before, self.collects = sys.gettrace(), gc.isenabled()
        gc.disable()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)
        if self.collects:
            gc.enable()

    def _called(self, frame, _what, _argument):
        return self._line if frame.f_code.co_filename.startswith(ROOT) else None

    def _line(self, frame, what, _argument):
        if what == "line" and not _leaves_with(frame.f_code, frame.f_lasti, frame.f_lineno):
            self.passed.append((frame.f_code.co_filename.removeprefix(ROOT), frame.f_lineno))
            if len(self.passed) - 1 == self.at:
                sys.settrace(self.before)
                self.do()
        return self._line


@cache
def _leaves_with(code, at, line):
    """Whether a line begins, at this instruction, as the head of a `with` that ends: Python looks for no signal between
    its body and the call of an `__exit__` in C, such as a lock's, so no Ctrl-C strikes there; only a trace function
    could."""
    ends = dis.opname[code.co_code[at]] in ("LOAD_CONST", "SWAP")
    return ends and linecache.getline(code.co_filename, line).strip().startswith("with ")


def spread(passed, most):
    """Moments at which to strike, so that every line has its turn before one has a second; one of each at random."""
    moments, chance = defaultdict(list), Random(0)
    for moment, line in enumerate(passed):
        moments[line].append(moment)
    for turns in moments.values():
        chance.shuffle(turns)
    lines, chosen = list(moments.values()), []
    chance.shuffle(lines)
    while lines and len(chosen) < most:
        chosen += [turns.pop() for turns in lines]
        lines = [turns for turns in lines if turns]
    return chosen[:most]


def interrupt():
    raise KeyboardInterrupt


def end():
    """As `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def source(line):
    """A line of `Lines` as it stands in its file."""
    return linecache.getline(ROOT + line[0], line[1]).strip()
