"""Where the time and the memory of a run go, stage by stage, on the machine at hand: the run's own events tell it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, fields
from typing import Any

import torch

from sdkit.door import Shown, ask
from sdkit.events import Stage
from sdkit.inputs.signatures import Stages, takes
from sdkit.process.result import Result
from sdkit.tasks.generate import stages

MADE_BY = {  # what a run does before it shows a stage
    Stage.TOKENS: "arguments checked, prompts cut into tokens",
    Stage.TEXT: "text encoder",
    Stage.PIXELS: "picture read",
    Stage.POSTERIOR: "encoder",
    Stage.LATENT: "scheduler's step, or start noise",
    Stage.CONTEXT: "what the step goes by, put together",
    Stage.NOISE: "U-Net",
    Stage.GUIDED: "guidance",
    Stage.DENOISED: "x0 worked out",
    Stage.IMAGE: "decoder",
}


@dataclass(frozen=True)
class Spent:
    """What it took to come from the stage before to this one, over the whole run."""

    stage: str  # "end" for what comes after the picture
    times: int  # how often it was shown
    seconds: float  # all times together
    median: float  # seconds of one
    memory: int  # bytes by which the peak rose meanwhile: of the process on a CPU, of torch on a GPU


@dataclass(frozen=True)
class Profile(Shown):
    """Where the time and the memory of a run went, from `profile`. Printed, it is a table."""

    model: str
    device: str
    spent: list[Spent]  # by stage, in the order in which the run met them
    peak: int  # bytes, the most there were: of the process on a CPU, of torch on a GPU
    result: Result  # of the run

    @property
    def seconds(self) -> float:
        """Time of the whole run."""
        return sum(one.seconds for one in self.spent)

    def figure(self, *, dark: bool = False) -> Any:
        """The table as a figure of matplotlib, for which the extra "plots" is needed.

        Returns:
            Bars of the seconds of each stage, and of the memory by which the peak rose in it.

        Example:
            >>> sdkit.profile("a red star", seed=7).figure().savefig("profile.png")
        """
        return ask("draw_profile", self, dark=dark)

    def __repr__(self) -> str:
        return f"<Profile of a run of {self.model} on {self.device}: {self.seconds:.2f} s, {self.peak / 1e6:.0f} MB>"

    def __str__(self) -> str:
        lines = [
            f"{self.model} on {self.device}: {self.seconds:.3f} s, at most {self.peak / 1e6:.0f} MB",
            f"{'until':10} {'times':>5} {'seconds':>9} {'share':>6} {'ms each':>9} {'MB more':>8}  by",
        ]
        for one in self.spent:
            made_by = "picture finished" if one.stage == "end" else MADE_BY.get(Stage(one.stage), "")
            lines.append(
                f"{one.stage:10} {one.times:5} {one.seconds:9.4f} {one.seconds / self.seconds:6.1%} "
                f"{one.median * 1e3:9.3f} {one.memory / 1e6:8.1f}  {made_by}"
            )
        return "\n".join(lines)


@takes(Stages)
def profile(request: Stages) -> Profile:
    """Make a picture and measure what each stage takes: the time, and how far memory rises.

    A stage's time is that from the stage before, with what hooks do in it. The first run after loading warms up, so a
    second one tells more of time, and the first of memory, which stays with the process. On a GPU, each stage is waited
    for, so that its time is its own: the run as a whole takes a little longer than without.

    Args: as in the table.

    Returns:
        Time and memory by stage, and the pictures. Printed, it is a table; `figure` draws it.

    Raises:
        ValueError, TypeError, FileNotFoundError: an argument is not what it should be; the message says which.

    Example:
        >>> [one.stage for one in sdkit.profile("a red star", seed=7).spent][:3]
        ['tokens', 'text', 'latent']
    """
    clock = _Clock()
    events = stages(**{one.name: getattr(request, one.name) for one in fields(request)})
    try:
        while True:
            event = next(events)
            if clock.device is None:
                clock.device = event.run.model.device
            clock.note(event.stage)
            model = event.run.model.name
    except StopIteration as end:
        clock.note("end")
        result: Result = end.value
    spent = [
        Spent(stage, len(seconds), sum(seconds), statistics.median(seconds), clock.rises[stage])
        for stage, seconds in clock.seconds.items()
    ]
    assert clock.device is not None  # every run shows something
    return Profile(model, clock.device.type, spent, clock.peak, result)


class _Clock:
    """The time and the rise of the peak of memory since the last note, added up by stage."""

    def __init__(self) -> None:
        self.device: torch.device | None = None
        self.seconds: dict[str, list[float]] = {}
        self.rises: dict[str, int] = {}
        self.peak, self.last = _peak(None), time.perf_counter()

    def note(self, stage: str) -> None:
        if self.device is not None and self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()
        now, peak = time.perf_counter(), _peak(self.device)
        self.seconds.setdefault(str(stage), []).append(now - self.last)
        self.rises[str(stage)] = self.rises.get(str(stage), 0) + max(0, peak - self.peak)
        self.peak, self.last = peak, time.perf_counter()


def _peak(device: torch.device | None) -> int:
    """The most bytes that there have been."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import sys

    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
