"""Latents in numbers: each channel against the normal distribution that the U-Net starts from, how the channels hang
together, and which spatial frequencies are settled at which step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdkit.door import Shown
from sdkit.events import Stage
from sdkit.latents.autoencoder import Latents
from sdkit.trace.trace import Trace

BINS, REACH = 64, 4.0  # of histograms, which go from -REACH to REACH; what lies beyond counts in the outermost bins


@dataclass(frozen=True)
class Channel:
    """One latent channel over all pictures and places."""

    mean: float
    std: float
    min: float
    max: float
    kl: float  # nats from N(mean, std^2) to N(0, 1): 0 where mean and spread are standard
    wasserstein: float  # mean distance that its values would have to move to be N(0, 1), which sees the shape as well


@dataclass(frozen=True, eq=False)
class Spectra:
    """Spatial frequencies over the steps of a trace, in rings: ring k holds what has about k waves a picture."""

    stage: Stage  # DENOISED where the trace has it, else LATENT
    steps: list[int]
    waves: list[int]  # 0 (the mean) to half of the shorter side; the last ring holds the corners beyond, too
    power: (
        Tensor  # (S, K) mean square of a Fourier coefficient, which is 1 at every frequency for noise of unit variance
    )
    agreement: Tensor  # (S, K) correlation of the ring with that of the clean latents, -1 to 1
    settled: list[int | None]  # for each ring the step from which on it agrees by at least 0.9; on the way to noise the
    # step from which on it no longer does; None if that never comes

    def __repr__(self) -> str:
        return f"<Spectra of {self.stage.value}: {len(self.steps)} steps, settled at {self.settled}>"


@dataclass(frozen=True, eq=False)
class Description(Shown):
    """Latents in numbers, from `describe`. Printed, it is a table."""

    channels: list[Channel]
    histogram: Tensor  # (C, 64) share of each channel's values in each bin
    edges: Tensor  # (65,) of the bins, from -4 to 4; values beyond count in the outermost ones
    correlation: Tensor  # (C, C) of the channels
    explained: Tensor  # (C,) share of the variance along each principal axis of the channels, falling
    spectra: Spectra | None  # of a trace

    def __repr__(self) -> str:
        means, stds = (
            "[" + ", ".join(f"{getattr(c, name):.2f}" for c in self.channels) + "]" for name in ("mean", "std")
        )
        return f"<Description of {len(self.channels)} channels: mean {means}, std {stds}>"

    def __str__(self) -> str:
        lines = [f"{'channel':>7} {'mean':>8} {'std':>8} {'min':>8} {'max':>8} {'KL':>8} {'W1':>8}  correlation"]
        for i, c in enumerate(self.channels):
            row = " ".join(f"{r:5.2f}" for r in self.correlation[i].tolist())
            values = (c.mean, c.std, c.min, c.max, c.kl, c.wasserstein)
            lines.append(f"{i:7} {' '.join(f'{value:8.3f}' for value in values)}  {row}")
        shares = ", ".join(f"{share:.1%}" for share in self.explained.tolist())
        lines.append(f"variance along the principal axes of the channels: {shares}")
        if self.spectra is not None:
            settled = ", ".join(
                f"{k}: {'never' if at is None else at}"
                for k, at in zip(self.spectra.waves, self.spectra.settled, strict=True)
            )
            lines.append(f"waves a picture, and the step at which they are settled: {settled}")
        return "\n".join(lines)


def describe(latents: Latents | Tensor | Trace) -> Description:
    """Describe latents: per channel statistics against N(0, 1), correlation, and of a trace the spectra over its steps.

    Args:
        latents: what `encode` returned, a tensor (B, C, h, w), or a trace, whose last latents are taken.

    Returns:
        Statistics of the C channels, alone and together, and of a trace the spectra. Printed, it is a table.

    Example:
        >>> print(sdkit.describe(sdkit.encode(picture)))
    """
    trace = latents if isinstance(latents, Trace) else None
    z = trace.latents if trace is not None else latents.tensor if isinstance(latents, Latents) else latents
    if not isinstance(z, Tensor) or z.ndim != 4:
        kind = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"latents must be Latents, a tensor (B, C, h, w) or a Trace, but are {kind}")
    if not z.numel() or not z.is_floating_point() or not bool(z.isfinite().all()):
        raise ValueError(f"latents must be finite floats, without NaN, but are {z.dtype} {tuple(z.shape)}")
    values = z.detach().cpu().double().transpose(0, 1).flatten(1)  # (C, B * h * w)
    edges = torch.linspace(-REACH, REACH, BINS + 1, dtype=torch.float64)
    held = values.clamp(-REACH, REACH)
    counts = torch.stack([torch.histogram(row, edges).hist for row in held])
    variances = torch.linalg.eigvalsh(torch.cov(values).reshape(len(values), -1)).flip(0).clamp(min=0)
    return Description(
        channels=[_channel(row) for row in values],
        histogram=counts / values.shape[1],
        edges=edges,
        correlation=torch.corrcoef(values).reshape(len(values), -1),
        explained=variances / variances.sum(),
        spectra=None if trace is None else _spectra(trace),
    )


def _channel(values: Tensor) -> Channel:
    mean, variance = values.mean().item(), values.var(correction=0).item()
    middles = (torch.arange(len(values), dtype=values.dtype) + 0.5) / len(values)
    normal = torch.special.ndtri(middles)  # the values that N(0, 1) would have, in order
    return Channel(
        mean=mean,
        std=variance**0.5,
        min=values.min().item(),
        max=values.max().item(),
        kl=(mean**2 + variance - 1 - math.log(variance)) / 2 if variance else math.inf,
        wasserstein=(values.sort().values - normal).abs().mean().item(),
    )


def rings(h: int, w: int) -> Tensor:
    """(h, w) the ring of each coefficient of a 2-D Fourier transform: waves along the shorter side, rounded."""
    short = min(h, w)
    waves = (torch.fft.fftfreq(h)[:, None] ** 2 + torch.fft.fftfreq(w)[None] ** 2).sqrt() * short
    ring: Tensor = waves.round().long().clamp(max=short // 2)
    return ring


def _spectra(trace: Trace) -> Spectra | None:
    """Rings of every step, each compared with that of the clean end of the trace."""
    stage = Stage.DENOISED if trace[Stage.DENOISED] and not trace.settings.get("process") else Stage.LATENT
    shown = [record for record in trace[stage] if record.step is not None]
    if not shown or len({record.value.shape for record in shown}) > 1:
        return None
    to_noise = trace.settings.get("process") is not None
    ring = rings(*shown[0].value.shape[-2:])
    clean = _fourier(shown[0].value if to_noise else trace.latents)
    waves = [_fourier(record.value) for record in shown]
    power = torch.stack([_over(ring, one.abs().square()) for one in waves]) / _over(ring, torch.ones_like(clean.real))
    shared = torch.stack([_over(ring, (one * clean.conj()).real) for one in waves])
    lengths = torch.stack([_over(ring, one.abs().square()) for one in waves]) * _over(ring, clean.abs().square())
    agreement = shared / lengths.sqrt().clamp(min=1e-12)
    there = agreement < 0.9 if to_noise else agreement >= 0.9
    steps = [record.step for record in shown if record.step is not None]
    return Spectra(stage, steps, list(range(int(ring.max()) + 1)), power, agreement, _since(there, steps))


def _fourier(z: Tensor) -> Tensor:
    waves: Tensor = torch.fft.fft2(z.double(), norm="ortho")  # (B, C, h, w)
    return waves


def _over(ring: Tensor, values: Tensor) -> Tensor:
    """Sums (K,) of values (B, C, h, w) over each ring."""
    flat = values.sum((0, 1)).flatten()
    return torch.zeros(int(ring.max()) + 1, dtype=flat.dtype).index_add_(0, ring.flatten(), flat)


def _since(there: Tensor, steps: list[int]) -> list[int | None]:
    """For each column the step from which on it holds to the end."""
    holds = there.flip(0).cumprod(0).flip(0).bool()  # (S, K)
    return [steps[int(column.int().argmax())] if column.any() else None for column in holds.T]
