"""Inversions: what leads back to a given picture under guidance, to go from there under other words."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdkit.events import Hook, Stage, on
from sdkit.inputs.checks import typed
from sdkit.inputs.seeds import check_seed
from sdkit.trace.trace import Trace


@typed()
def edit_friendly(latents: Tensor, noises: list[Any], *, seed: int) -> Hook:
    """Edit-friendly DDPM inversion: the noise z of every step that leads to `latents` (C, h, w) or (B, C, h, w)
    (Huberman-Spiegelglas et al. 2023, arXiv:2304.06140). For schedulers of unit variance, such as ddim.

    A run with an empty list fills it, under the source's words; runs with the filled list go through the same noises,
    under the same words to the same picture, under others to one that keeps its structure.

    Example:
        >>> noises = []
        >>> through = sdkit.hooks.edit_friendly(sdkit.encode(picture).mean, noises, seed=7)
        >>> for prompt in ("a red star on a blue background", "a green star on a blue background"):
        ...     result = sdkit.text_to_image(prompt, seed=7, scheduler="ddim", hooks=[through])
    """
    check_seed(seed)

    @on(Stage.LATENT)
    def edit_friendly(event: Any) -> None:
        run, known = event.run, len(noises) == len(event.run.visits)
        alpha, sigma = (1.0, 0.0) if event.step is None else (event.alpha, event.sigma)
        at = len(run.visits) if event.step is None else event.step
        generator = run.keep(edit_friendly, lambda: torch.Generator().manual_seed(seed))
        drawn = torch.randn(event.value.shape, generator=generator)
        x = alpha * latents.to(event.value) + sigma * drawn.to(event.value)  # each level's noise for itself
        if at:
            before, x0 = run.levels[at - 1], run.seen[Stage.DENOISED]
            eps = (run.seen[Stage.LATENT] - before.alpha * x0) / before.sigma
            spread = sigma / before.sigma * max(1 - (before.alpha / alpha) ** 2, 0.0) ** 0.5
            mean = alpha * x0 + max(sigma**2 - spread**2, 0.0) ** 0.5 * eps
            if not known:
                noises.append(((x - mean) / spread if spread else x - mean).cpu())
            z = noises[at - 1].to(x)
            x = mean + (spread * z if spread else z)
        event.value = x

    return edit_friendly


@typed(steps=(1, math.inf))
def null_text(trace: Trace, steps: int = 10, rate: float = 0.05) -> Hook:
    """Null-text inversion: at each step the unconditional embeddings are moved until the guided step leads where the
    inversion came from (Mokady et al. 2022, arXiv:2211.09794). For ddim.

    Args:
        trace: of `sdkit.invert` with as many steps at guidance 1; the run starts from its last latent.
        steps: of Adam at each step of the run, with learning rate `rate`.

    Example:
        >>> prompt, ddim = "a red star on a blue background", {"scheduler": "ddim", "num_inference_steps": 5}
        >>> way = sdkit.invert(picture, prompt, num_inference_steps=5)
        >>> sdkit.text_to_image(prompt, latents=way.latents, hooks=[sdkit.hooks.null_text(way)], **ddim)
    """
    path = [one.value for one in reversed(trace[Stage.LATENT])]  # from noise to picture

    @on(Stage.CONTEXT)
    def null_text(event: Any) -> None:
        run = event.run
        if event.layer is not None or not run.guided or event.step + 1 >= len(path):
            return
        uncond, cond = event.value.chunk(2)
        target, level = path[event.step + 1].to(uncond), run.level_of(event.step + 1)
        with torch.enable_grad():
            moved = run.keep(null_text, lambda: [uncond.detach().clone()])[0].requires_grad_()
            adam = torch.optim.Adam([moved], lr=rate)
            for _ in range(steps):
                guided = run.guide(run.predict(text=torch.cat([moved, cond])))
                reached = level.alpha * run.x0_of(guided) + level.sigma * run.eps_of(guided)
                adam.zero_grad()
                (reached - target).square().mean().backward(inputs=[moved])
                adam.step()
        run.keep(null_text, list)[0] = moved.detach()
        event.value = torch.cat([moved.detach(), cond])

    return null_text
