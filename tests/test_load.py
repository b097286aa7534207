"""A thousand runs of every kind in two threads: each gives what it gave the first time, and nothing piles up."""

import hashlib
import os
import threading
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import random_pipeline
from test_interrupts import left, state

import sdkit
from sdkit import Stage, Trace

RUNS, SETTLED = 1000, 200  # all of them, and those after which memory is compared
GROWTH = 40e6  # bytes that memory may grow by while 800 runs come and go
PAGE = os.sysconf("SC_PAGE_SIZE")


@sdkit.on(Stage.DENOISED)
def darken(event):
    event.value = event.value * 0.9


@sdkit.on("block")
def fade(event):
    event.value = event.value * 0.99


@sdkit.on(Stage.GUIDED)
def fail(event):
    raise KeyError("a fault of a hook")


@sdkit.on(Stage.NOISE)
def spoil(event):
    event.value = event.value * float("nan")


class Kinds:
    """Runs by name, of a model and a seed: each gives tensors that stand for all that it made."""

    def __init__(self, model, folder):
        self.model, self.folder = model, folder
        self.picture = torch.linspace(0, 1, 3 * 64 * 64).reshape(3, 64, 64)

    def _draw(self, seed, prompt="a red star", **options):
        options = {"num_inference_steps": 1 + seed % 2, "guidance_scale": 1.0, **options}
        return sdkit.text_to_image(prompt, model=self.model, seed=seed, **options).latents

    def plain(self, seed):
        return self._draw(seed)

    def guided(self, seed):
        return self._draw(seed, guidance_scale=5.0, negative_prompt="blue")

    def edited(self, seed):
        return self._draw(seed, hooks=[darken, fade, sdkit.hooks.reweight("star", 2.0)])

    def failing(self, seed):
        with pytest.raises(KeyError, match="a fault of a hook"):
            self._draw(seed, hooks=[fade, fail])

    def spoilt(self, seed):
        with pytest.raises(ValueError, match="first value that holds NaN or infinity; it was edited by 'spoil'"):
            self._draw(seed, hooks=[spoil])

    def mapped(self, seed):
        maps = sdkit.AttentionMaps()
        latents = self._draw(seed, hooks=[maps])
        return torch.cat([latents.flatten(), maps.heat("star").flatten()])

    def stopped(self, seed):
        return self._draw(seed, num_inference_steps=2, hooks=[sdkit.hooks.stop_after(0)])

    def from_a_picture(self, seed):
        return sdkit.image_to_image(
            self.picture, "a cat", model=self.model, seed=seed, strength=1.0, num_inference_steps=1
        ).latents

    def painted(self, seed):
        return sdkit.image_to_image(
            self.picture,
            "a cat",
            model=self.model,
            seed=seed,
            strength=1.0,
            num_inference_steps=2,
            mask_image=torch.eye(64),
        ).latents

    def left_by_its_loop(self, seed):
        for event in sdkit.stages("a star", model=self.model, seed=seed, num_inference_steps=2, hooks=[fade]):
            if event.stage is Stage.GUIDED:
                return event.value
        raise AssertionError("the loop saw no guidance")

    def saved(self, seed):
        trace, place = Trace(), Path(self.folder, f"{threading.get_ident()}.safetensors")
        latents = self._draw(seed, hooks=[trace])
        opened = Trace.load(trace.save(place))
        assert torch.equal(opened.latents, latents)
        return opened.latents

    def branched(self, seed):
        trace = Trace()
        self._draw(seed, num_inference_steps=2, hooks=[trace])
        return trace.branch(1, prompt="a blue cat", model=self.model).latents


def memory():
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory a process has")
def test_a_thousand_mixed_runs_in_two_threads_give_what_they_gave_first_and_leave_nothing(tmp_path):
    pipeline = random_pipeline(tmp_path / "tokenizer")
    kinds = Kinds(pipeline, tmp_path)
    names = [name for name in vars(Kinds) if not name.startswith("_")]
    chance = Random(0)
    runs = [(chance.choice(names), chance.randrange(4)) for _ in range(RUNS)]
    first, done, faults, seen = {}, Counter(), [], {}
    lock, queue = threading.Lock(), iter(enumerate(runs))

    def work():
        while not faults:
            with lock:
                number, (name, seed) = next(queue, (None, (None, None)))
                if number in (SETTLED, RUNS - 1):
                    seen[number] = memory(), open_files()
            if number is None:
                return
            try:
                value = getattr(kinds, name)(seed)
                print_of = None if value is None else hashlib.sha256(value.numpy().tobytes()).hexdigest()
                with lock:
                    done[name] += 1
                    assert first.setdefault((name, seed), print_of) == print_of, f"{name} of seed {seed} has changed"
            except BaseException as error:
                faults.append(error)

    kinds.plain(0)  # what libraries make on first use
    before = state(pipeline)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    assert sum(done.values()) == RUNS
    assert set(done) == set(names)
    assert left(before, pipeline) == []
    (size, files), (size_after, files_after) = seen[SETTLED], seen[RUNS - 1]
    assert files_after <= files + 2  # what the other thread has open
    assert size_after - size < GROWTH, f"{(size_after - size) / 1e6:.0f} MB more"
