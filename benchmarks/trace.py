"""What recording costs, measured side by side in one run: `python benchmarks/trace.py`."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

import sdkit
from sdkit import Event, Stage, Trace
from sdkit.model.condition import Condition


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median_of(work, times: int = 9) -> float:
    return statistics.median(seconds(work) for _ in range(times))


def recording() -> float:
    """Time of a run that is recorded over one that is not, the median over pairs that take turns."""

    def run(*hooks):
        return seconds(lambda: sdkit.text_to_image("a red star", seed=7, hooks=hooks))

    run()
    pairs = [(run(), run(Trace())) for _ in range(15)]
    return statistics.median(recorded / plain for plain, recorded in pairs)


def as_of_stable_diffusion(steps: int = 50) -> Trace:
    """A trace as a run of Stable Diffusion 1.5 at 512x512 leaves it, with random values."""
    trace = Trace()
    trace.record(Event(Stage.TOKENS, torch.randint(0, 49408, (2, 77))))
    trace.record(Event(Stage.TEXT, torch.randn(2, 77, 768)))
    for step in range(steps):
        for stage, batch in ((Stage.LATENT, 1), (Stage.NOISE, 2), (Stage.GUIDED, 1), (Stage.DENOISED, 1)):
            trace.record(Event(stage, torch.randn(batch, 4, 64, 64), step, 999 - step * 20))
    trace.record(Event(Stage.LATENT, torch.randn(1, 4, 64, 64)))
    trace.record(Event(Stage.IMAGE, torch.randn(1, 3, 512, 512)))
    return trace


def main() -> None:
    model = sdkit.load()
    large = as_of_stable_diffusion()
    small = Trace()
    sdkit.text_to_image("a red star", seed=7, hooks=[small])
    condition = Condition(small[Stage.TEXT][0].value)
    step = median_of(lambda: model.predict(torch.zeros(1, 4, 16, 16), torch.tensor(500), condition))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        save = median_of(lambda: small.save(path))
        large.save(path)
        show = median_of(lambda: Trace.load(path).at(25)[Stage.DENOISED].value.sum())
        print(f"a recorded run over one that is not:         {recording():.3f}")
        print(f"50 steps of Stable Diffusion 1.5, one file:  {path.stat().st_size / 1e6:.1f} MB")
        print(f"saving over one U-Net step, embedded model:  {save / step:.2f}")
        print(f"opening that file and reading a step:        {show * 1000:.1f} ms")


if __name__ == "__main__":
    main()
