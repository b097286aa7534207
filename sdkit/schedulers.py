"""Short names for diffusers' schedulers, a fresh one for each run, and the one place that knows how they differ."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.settings import pick

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2s": "DPMSolverSinglestepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2_a": "KDPM2AncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "tcd": "TCDScheduler",
    "unipc": "UniPCMultistepScheduler",
}
# Those whose class has `use_karras_sigmas`.
_WITH_KARRAS = ("deis", "dpmpp_2m", "dpmpp_2s", "euler", "heun", "kdpm2", "kdpm2_a", "unipc")
SCHEDULERS: tuple[str, ...] = tuple(sorted([*_CLASSES, *(f"{name}_karras" for name in _WITH_KARRAS)]))


def fresh(scheduler: Any, model_scheduler: Any) -> Any:
    """A scheduler in its first state: schedulers hold the state of a run, so no two runs share one.

    Args:
        scheduler: a short name, which takes over the model's noise schedule; a diffusers scheduler, whose
            configuration is copied; or None, the model's own.
        model_scheduler: the scheduler that the model came with.
    """
    if scheduler is None:
        scheduler = model_scheduler
    if not isinstance(scheduler, str):
        if not hasattr(scheduler, "set_timesteps"):
            raise TypeError(f"scheduler must be a short name or a diffusers scheduler, but is {scheduler!r}")
        return type(scheduler).from_config(scheduler.config)
    import diffusers

    pick("scheduler", scheduler, SCHEDULERS)
    name = scheduler.removesuffix("_karras")
    karras = {"use_karras_sigmas": True} if name != scheduler else {}
    return getattr(diffusers, _CLASSES[name]).from_config(model_scheduler.config, **karras)


@dataclass(frozen=True)
class Visit:
    """One visit of a run to a training timestep."""

    index: int  # in the scheduler's own list of timesteps
    t: int  # the timestep as a number to show
    tensor: Tensor  # the same as the 0-d tensor that diffusers works with


def visits(scheduler: Any, num_inference_steps: int, device: torch.device, strength: float = 1.0) -> list[Visit]:
    """Set the scheduler's timesteps and list those that a run visits: the last `strength` of them, as in SDEdit.

    The numbers are taken from the device once: asking each tensor for its own would wait for the GPU in every step.
    """
    scheduler.set_timesteps(num_inference_steps, device=device)
    first = (num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps)) * scheduler.order
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    numbers = [round(t) for t in scheduler.timesteps.tolist()]
    return [Visit(i, numbers[i], scheduler.timesteps[i]) for i in range(first, len(numbers))]


def alpha_sigma(scheduler: Any, visit: Visit) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of the sample that this scheduler holds at a visit: x = alpha * x0 + sigma * eps.

    Three kinds exist: DDIM and its kin index alpha-bar by the timestep; multistep solvers keep a list of sigmas but
    hold a variance-preserving sample; Euler and its kin keep the sigmas and a sample whose signal is not scaled.
    """
    if not hasattr(scheduler, "sigmas"):
        alpha_bar = scheduler.alphas_cumprod[visit.t]
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    sigma = scheduler.sigmas[visit.index]
    if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
        # KDPM2 looks from half-way in the second half of each step; its two classes count that list differently.
        sigma = scheduler.sigmas_interpol[visit.index - ("Ancestral" in type(scheduler).__name__)]
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
        return alpha, sigma
    return sigma.new_ones(()), sigma


def level(scheduler: Any, visit: Visit) -> dict[str, float]:
    """How noisy a visit is: the timestep, sigma where the signal has scale 1, and alpha-bar, the signal's share."""
    alpha, sigma = alpha_sigma(scheduler, visit)
    return {"t": visit.t, "sigma": float(sigma / alpha), "alpha_bar": float(alpha**2 / (alpha**2 + sigma**2))}


def clip(scheduler: Any, x0: Tensor) -> Tensor:
    """x0 within the bounds that the scheduler's configuration sets; Stable Diffusion's sets none."""
    if scheduler.config.get("thresholding"):
        clipped: Tensor = scheduler._threshold_sample(x0)
        return clipped
    if scheduler.config.get("clip_sample"):
        bound = scheduler.config.clip_sample_range
        return x0.clamp(-bound, bound)
    return x0


def ignores_sample(scheduler: Any, step: int) -> bool:
    """Whether this step goes on from a sample that the scheduler kept, so that an edited latent would go unheard.

    So do the second half of each step of Heun and KDPM2, and the repeated visits of PNDM.
    """
    if type(scheduler).__name__ == "PNDMScheduler":
        runge_kutta = 0 if scheduler.config.skip_prk_steps else len(scheduler.prk_timesteps)
        return step % 4 != 0 if step < runge_kutta else runge_kutta == 0 and step == 1
    return not getattr(scheduler, "state_in_first_order", True)


def step_back(
    scheduler: Any,
    prediction: Tensor,
    t: Tensor,
    x: Tensor,
    *,
    eta: float,
    generator: torch.Generator | list[torch.Generator] | None,
) -> Tensor:
    """x one step less noisy. `eta` and `generator` go to those schedulers that take them."""
    accepted = inspect.signature(scheduler.step).parameters
    extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}
    before: Tensor = scheduler.step(prediction, t, x, **extra, return_dict=False)[0]
    return before
