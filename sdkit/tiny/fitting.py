"""One training loop for every part of the embedded model: averaged weights, a log, checkpoints, and a way back in."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one stage trains."""

    steps: int
    batch: int
    learning_rate: float
    ema: float = 0.998
    warmup: int = 200
    decay: float = 0.3  # share of the steps, at the end, over which the learning rate falls to nothing

    def rate(self, step: int) -> float:
        """Learning rate as a share of its peak: up, level, and down in a straight line."""
        left = (self.steps - step) / (self.decay * self.steps)
        return max(min((step + 1) / self.warmup, left, 1.0), 0.0)


def fit(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    recipe: Recipe,
    out: Path,
    accelerator: Accelerator,
    validate: Callable[[], dict[str, float]],
    every: int,
    rates: Mapping[str, float] | None = None,
) -> None:
    """Minimise `loss_of(step)` and leave the averaged weights in `model`.

    Batches are functions of the step number and torch is seeded with it, so that a run which was interrupted sees what
    it would have seen. Every so many steps it validates the averaged weights, adds a row to `out/name.csv` and writes
    `out/name.ckpt`, from which the next call goes on. `rates` scales the learning rate of some children of the model.
    """
    trained = list(model.parameters())
    groups = [
        {"params": list(child.parameters()), "peak": recipe.learning_rate * (rates or {}).get(part, 1.0)}
        for part, child in (model.named_children() if rates else [("", model)])
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    average = EMAModel(trained, decay=recipe.ema, use_ema_warmup=True, power=0.75, foreach=True)
    optimizer = accelerator.prepare(optimizer)
    checkpoint, log = out / f"{name}.ckpt", out / f"{name}.csv"
    first, running = 0, torch.zeros((), device=accelerator.device)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=accelerator.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        first, running = state["step"], state["loss"]
        accelerator.print(f"{name}: going on at step {first}")
    average.to(accelerator.device)
    began = time.perf_counter()
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * recipe.rate(step)
        torch.manual_seed(step)
        loss = loss_of(step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(trained)
        running = loss.detach() if step == 0 else 0.98 * running + 0.02 * loss.detach()  # without waiting for a GPU
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            average.store(trained)
            average.copy_to(trained)
            row = {"step": step + 1, "loss": running.item(), **validate()}
            average.restore(trained)
            _append(log, row)
            pace = (time.perf_counter() - began) / (step + 1 - first)
            figures = "  ".join(f"{key} {value:.4g}" for key, value in row.items())
            accelerator.print(
                f"{name}: {figures}  ({pace:.2f} s a step, {pace * (recipe.steps - step - 1) / 60:.0f} min left)",
                flush=True,
            )
            state = {
                "step": step + 1,
                "loss": running,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict(),
            }
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    average.copy_to(trained)


def _append(log: Path, row: dict[str, float]) -> None:
    fresh = not log.exists()
    with log.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if fresh:
            writer.writeheader()
        writer.writerow(row)
