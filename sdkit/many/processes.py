"""The processes that `accelerate launch` has started, which share the jobs of one list; or this one alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")


class Processes:
    """This process among those that were started with it."""

    def __init__(self) -> None:
        self.many = int(os.environ.get("WORLD_SIZE", "1"))  # as torch's launcher has it, which accelerate uses
        self.index = int(os.environ.get("RANK", "0"))

    @cached_property
    def _state(self) -> Any:
        """Their connection, which also gives each its GPU; a process may have to wait long for the others."""
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
        if state.num_processes != self.many:
            raise ValueError(f"{self.many} processes were started, but accelerate has connected {state.num_processes}")
        return state

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes what there is once."""
        return self.index == 0

    def mine(self, every: Sequence[T]) -> list[T]:
        """The part of this process."""
        return list(every[self.index :: self.many])

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.many > 1:
            self._state.wait_for_everyone()

    def gathered(self, own: list[T]) -> list[T]:
        """The lists of all processes in one."""
        if self.many == 1:
            return own
        from accelerate.utils import gather_object

        self.wait()
        every: list[T] = gather_object(own)
        return every
