"""Short names for diffusers' schedulers, a fresh one for each run, and the one place that knows how they differ.

It is longer than other files for that reason: whatever is peculiar to a scheduler stands here and nowhere else.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sdkit.inputs.checks import pick, whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Each name with what makes it that algorithm, whatever the model's own scheduler was configured for.
_NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++", "lower_order_final": True}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # as Stable Diffusion configures it
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
_WITH_KARRAS = ("deis", "dpmpp_2m", "dpmpp_2s", "dpmpp_sde", "euler", "heun", "kdpm2", "kdpm2_a", "lms", "unipc")
_NEEDS = {"dpmpp_sde": "torchsde", "lms": "scipy"}  # packages of the extra "schedulers"
_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
KNOWN = (  # the classes that a record or a model's folder may name, those of diffusers with such a noise schedule
    "CMStochasticIterativeScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
LONGEST = 100_000  # training timesteps that a configuration may ask for
SCHEDULERS: tuple[str, ...] = tuple(sorted([*_NAMED, *(f"{name}_karras" for name in _WITH_KARRAS)]))


def fresh(scheduler: Any, model_scheduler: Any, generator: torch.Generator | list[torch.Generator] | None) -> Any:
    """A scheduler in its first state: schedulers hold the state of a run, so no two runs share one.

    Args:
        scheduler: a short name, which takes over the model's noise schedule; a diffusers scheduler, whose
            configuration is copied; or None, the model's own.
        model_scheduler: the scheduler that the model came with.
        generator: what the run draws from. The Brownian motion of DPM++ SDE is no draw: it grows from the seeds of the
            generators, as from a `noise_sampler_seed` in diffusers, unless the scheduler was made with one.

    Raises:
        ValueError: the name is unknown, it needs a package that is not there, or it is not one for Stable Diffusion.
        TypeError: it is neither a name nor a scheduler.
    """
    stepper = _fresh(scheduler, model_scheduler)
    if generator is not None and getattr(stepper, "noise_sampler_seed", 0) is None:
        seeds = [one.initial_seed() for one in generator] if isinstance(generator, list) else generator.initial_seed()
        stepper.noise_sampler_seed = seeds
    return stepper


def _fresh(scheduler: Any, model_scheduler: Any) -> Any:
    if isinstance(scheduler, str):
        return _named(pick("scheduler", scheduler, SCHEDULERS), model_scheduler)
    chosen = model_scheduler if scheduler is None else scheduler
    if isinstance(chosen, type) or not hasattr(chosen, "set_timesteps"):
        raise TypeError(f"scheduler must be a short name or a diffusers scheduler object, but is {chosen!r}")
    kind = type(chosen).__name__
    if not hasattr(chosen, "alphas_cumprod"):
        raise ValueError(f"{kind} has no noise schedule of Stable Diffusion; use one of {', '.join(SCHEDULERS)}")
    if kind not in KNOWN or not type(chosen).__module__.startswith("diffusers."):
        raise ValueError(
            f"{kind} is no scheduler of diffusers that sdkit knows, so no run could be made again from its record; "
            f"use one of {', '.join(SCHEDULERS)}"
        )
    return type(chosen).from_config(chosen.config)


def _named(name: str, model_scheduler: Any) -> Any:
    import diffusers

    kind, fixed = _NAMED[name.removesuffix("_karras")]
    package = _NEEDS.get(name.removesuffix("_karras"))
    if package is not None and find_spec(package) is None:
        raise ValueError(f"scheduler {name!r} needs {package}, which is not installed: pip install {package}")
    scheduler = getattr(diffusers, kind)
    spacings = {spacing: False for spacing in _SPACINGS if spacing in _parameters(scheduler)}
    if name.endswith("_karras"):
        spacings["use_karras_sigmas"] = True
    return scheduler.from_config(model_scheduler.config, **fixed, **spacings)


def _parameters(scheduler: type) -> Mapping[str, Any]:
    """What a class is configured by; a configuration that was taken over may hold more, which it does not use."""
    return inspect.signature(scheduler.__init__).parameters  # type: ignore[misc]  # of that very class


def rebuilt(config: Mapping[str, Any]) -> Any:
    """The scheduler of a run's settings: a configuration with the "class" that it belongs to.

    Raises:
        ValueError: that is no class of a scheduler that sdkit knows, or its configuration is damaged.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("class"), str):
        raise ValueError("the scheduler's settings are damaged; expected its class and configuration")
    if whole("num_train_timesteps", config.get("num_train_timesteps", 1000), at_least=1) > LONGEST:
        raise ValueError(f"a noise schedule has at most {LONGEST:,} timesteps")
    kind = pick("scheduler class", config["class"], KNOWN)
    import diffusers

    try:
        return getattr(diffusers, kind).from_config({k: v for k, v in config.items() if k != "class"})
    except (TypeError, ValueError, ArithmeticError, RuntimeError, NotImplementedError, LookupError) as error:
        raise ValueError(f"the settings of {kind} are damaged: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """How much noise each training timestep t = 0 .. T-1 means: x_t = sqrt(alpha-bar) * x0 + sqrt(1 - alpha-bar) * eps
    (Ho et al. 2020, arXiv:2006.11239, eq. 4)."""

    betas: Tensor  # (T,) variance that step t adds
    alphas_cumprod: Tensor  # (T,) alpha-bar, the signal's share of the variance

    @property
    def alphas(self) -> Tensor:
        """(T,) what the picture is multiplied by, sqrt(alpha-bar)."""
        return self.alphas_cumprod**0.5

    @property
    def sigmas(self) -> Tensor:
        """(T,) what noise of unit variance is multiplied by, sqrt(1 - alpha-bar)."""
        return (1 - self.alphas_cumprod) ** 0.5

    @property
    def log_snr(self) -> Tensor:
        """(T,) natural logarithm of the signal-to-noise ratio of variances, alpha-bar / (1 - alpha-bar)."""
        return (self.alphas_cumprod / (1 - self.alphas_cumprod)).log()


def noise_schedule(scheduler: Any) -> NoiseSchedule:
    """The noise schedule of a diffusers scheduler, or of the configuration that a run's settings hold of one."""
    one = rebuilt(scheduler) if isinstance(scheduler, Mapping) else scheduler
    return NoiseSchedule(one.betas.double().cpu(), one.alphas_cumprod.double().cpu())


@dataclass(frozen=True)
class Visit:
    """One visit of a run to a training timestep."""

    index: int  # in the scheduler's own list of timesteps
    t: int  # the timestep as a number to show
    tensor: Tensor  # the same as the 0-d tensor that diffusers works with


def visits(
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    strength: float | None,
    *,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
    original_inference_steps: int | None = None,
    distilled: bool = False,
) -> list[Visit]:
    """Set the scheduler's timesteps and list those that a run visits: all, or the last `strength` of them (SDEdit), or
    those between two shares of the noise schedule, which SDXL's base model and refiner divide so.

    The numbers are taken from the device once: asking each tensor for its own would wait for the GPU in every step.

    Args:
        distilled: whether the model takes guidance as an input, so that diffusers runs it by the pipeline of LCM.

    Raises:
        ValueError: the scheduler does not take the timesteps or sigmas of the caller, or no step is left.
    """
    custom = {name: value for name, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None}
    if custom:
        _set_custom(scheduler, custom, device)
        num_inference_steps = len(scheduler.timesteps)  # as diffusers counts them, which Heun has nearly two of a step
    else:
        takes = inspect.signature(scheduler.set_timesteps).parameters
        extra: dict[str, Any] = {}
        if original_inference_steps is not None:
            if "original_inference_steps" not in takes:
                raise ValueError(f"{type(scheduler).__name__} takes no original_inference_steps; use lcm or tcd")
            extra["original_inference_steps"] = original_inference_steps
        if strength is not None and distilled and "strength" in takes:
            extra["strength"], strength = strength, None  # LCM spreads all of its few steps over what strength leaves
        _set(scheduler, num_inference_steps, device, extra)
    exact: list[float] = scheduler.timesteps.tolist()
    numbers = [round(t) for t in exact]
    if max(numbers) >= len(scheduler.alphas_cumprod):  # where `steps_offset` is added to all of them
        raise ValueError(
            f"{type(scheduler).__name__} makes no {num_inference_steps} steps of this noise schedule: timestep "
            f"{max(numbers)} lies beyond its last, {len(scheduler.alphas_cumprod) - 1}; take fewer"
        )
    first, last, reason = 0, len(numbers), ""
    if denoising_start is not None:
        remaining = sum(t < _cutoff(scheduler, denoising_start) for t in exact)
        if scheduler.order == 2 and remaining % 2 == 0:
            remaining += 1  # not between the two halves of a step
        first, reason = len(exact) - remaining, f"denoising_start {denoising_start:g}"
    elif strength is not None:
        first = (num_inference_steps - int(num_inference_steps * strength)) * scheduler.order
        reason = f"strength {strength:g} of {num_inference_steps} steps"
        if first == len(numbers):
            enough = math.ceil(1000 / num_inference_steps) / 1000
            raise ValueError(f"{reason} leaves no step to run; it takes at least {enough:g}")
    twice = exact[:1] == exact[1:2]  # where schedulers would look for the first timestep, and take the second
    if (first or strength is not None or twice) and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    if denoising_end is not None:
        last = first + sum(t >= _cutoff(scheduler, denoising_end) for t in exact[first:])
        reason = reason or f"denoising_end {denoising_end:g}"
    if not 0 <= first < last:
        raise ValueError(f"{reason} leaves none of these {len(numbers)} timesteps to run; give more")
    return [Visit(i, numbers[i], scheduler.timesteps[i]) for i in range(first, last)]


def _set(scheduler: Any, steps: int, device: torch.device, extra: Mapping[str, Any]) -> None:
    """Set a number of timesteps.

    Raises:
        ValueError: the scheduler has no so many, or none for this noise schedule.
    """
    kind, known = type(scheduler).__name__, len(scheduler.alphas_cumprod)
    if steps > known:
        raise ValueError(f"num_inference_steps {steps} is more than the {known} timesteps of the noise schedule")
    try:
        scheduler.set_timesteps(steps, device=device, **extra)
    except (ValueError, IndexError, AssertionError, ArithmeticError, RuntimeError) as error:
        said = f": {str(error).splitlines()[0]}" if str(error) else ""
        raise ValueError(f"{kind} makes no {steps} steps of this noise schedule{said}; take fewer, or ddim") from error


def _cutoff(scheduler: Any, share: float) -> int:
    """The training timestep at which so large a share of the noise schedule is done."""
    known: int = scheduler.config.num_train_timesteps
    return round(known - share * known)


def _set_custom(scheduler: Any, custom: dict[str, Sequence[Any]], device: torch.device) -> None:
    """Set timesteps or sigmas of the caller's own, lists, by the one keyword that is in `custom`."""
    ((name, values),) = custom.items()
    kind, known = type(scheduler).__name__, len(scheduler.alphas_cumprod)
    if name not in inspect.signature(scheduler.set_timesteps).parameters:
        takers = "euler" if name == "sigmas" else "ddpm, dpmpp_2m, dpmpp_2s, euler, heun, lcm or tcd"
        raise ValueError(f"{kind} takes no custom {name}; use {takers}")
    if name == "timesteps" and max(values) >= known:
        raise ValueError(
            f"timesteps must lie below {known}, the length of the noise schedule, but go up to {max(values)}"
        )
    try:
        scheduler.set_timesteps(**custom, device=device)
    except ValueError as error:
        raise ValueError(f"{kind} does not take these {name}: {error}") from error


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
    elif getattr(scheduler, "mid_point_sigma", None) is not None:  # and so does DPM++ SDE
        sigma = scheduler.mid_point_sigma
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
        return alpha, sigma
    return sigma.new_ones(()), sigma


def keeps_signal_unscaled(scheduler: Any) -> bool:
    """Whether the sample is x = x0 + sigma * eps, as Euler and its kin have it; the others scale the signal too."""
    return hasattr(scheduler, "sigmas") and not hasattr(scheduler, "_sigma_to_alpha_sigma_t")


def level(scheduler: Any, visit: Visit) -> dict[str, float | None]:
    """How noisy a visit is: the timestep, sigma where the signal has scale 1 (None if there is no signal), and
    alpha-bar, the signal's share of the variance."""
    alpha, sigma = (float(value) for value in alpha_sigma(scheduler, visit))
    return {"t": visit.t, "sigma": sigma / alpha if alpha else None, "alpha_bar": alpha**2 / (alpha**2 + sigma**2)}


def clip(scheduler: Any, x0: Tensor) -> Tensor:
    """x0 within the bounds that the scheduler's class and configuration set; Stable Diffusion's sets none."""
    used, config = _parameters(type(scheduler)), scheduler.config
    if "thresholding" in used and config.thresholding:
        clipped: Tensor = scheduler._threshold_sample(x0)
        return clipped
    if "clip_sample" in used and config.clip_sample:
        return x0.clamp(-config.clip_sample_range, config.clip_sample_range)
    return x0


def accept_edit(scheduler: Any, step: int, visit: Visit) -> None:
    """Make an edited latent count where the scheduler would go on from a sample that it kept.

    UniPC and SA-Solver correct the new latent from the last one; without the last one they skip that. The second half
    of each step of Heun, KDPM2 and DPM++ SDE, the later orders of a singlestep solver and the repeated visits of PNDM
    start from the kept sample, which cannot be changed.

    Raises:
        ValueError: the edit would have no effect.
    """
    if hasattr(scheduler, "last_sample"):
        scheduler.last_sample = None
    elif _keeps_sample(scheduler, step, visit):
        raise ValueError(
            f"stage 'latent', step {step}: {type(scheduler).__name__} goes on from a sample of its own here and "
            "would not use the edit; edit the first visit of each timestep, or use another scheduler"
        )


def check_beginning(scheduler: Any, step: int, visit: Visit) -> None:
    """Whether a run can begin at a visit, as if there had been none before.

    Raises:
        ValueError: the scheduler goes on there from what it kept of the visit before.
    """
    orders = getattr(scheduler, "order_list", None)
    if visit.index and (
        type(scheduler).__name__ in ("PNDMScheduler", "LMSDiscreteScheduler")
        or (scheduler.order == 2 and visit.index % 2)
        or (orders is not None and orders[visit.index] > 1)
    ):
        raise ValueError(
            f"{type(scheduler).__name__} cannot begin at step {step}, where it goes on from what it kept of the steps "
            "before; go to the first visit of a timestep, or use another scheduler, such as ddim"
        )


def beginning_at(untouched: Any, visit: Visit) -> Any:
    """A copy of a scheduler that has taken no step, whose first is this visit."""
    scheduler = copy.deepcopy(untouched)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(visit.index)
    return scheduler


def _keeps_sample(scheduler: Any, step: int, visit: Visit) -> bool:
    if type(scheduler).__name__ == "PNDMScheduler":
        runge_kutta = 0 if scheduler.config.skip_prk_steps else len(scheduler.prk_timesteps)
        return step % 4 != 0 if step < runge_kutta else runge_kutta == 0 and step == 1
    if hasattr(scheduler, "order_list"):
        return bool(scheduler.order_list[visit.index] > 1)
    return not getattr(scheduler, "state_in_first_order", True)


def plain(scheduler: Any) -> dict[str, Any]:
    """A scheduler's class and configuration as plain JSON values, without diffusers' private entries.

    JSON has no infinity; the only one there is, `lambda_min_clipped`, is a default and comes back by itself.
    """
    return {"class": type(scheduler).__name__} | {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in dict(scheduler.config).items()
        if not name.startswith("_") and not (isinstance(value, float) and math.isinf(value))
    }


def named(config: Mapping[str, Any], model_scheduler: Any) -> str | None:
    """The short name that makes a scheduler of this `plain` configuration for a model; None if none does."""
    for name in SCHEDULERS:
        if _NAMED[name.removesuffix("_karras")][0] == config.get("class"):
            with suppress(ValueError):  # its package is not installed
                if plain(_named(name, model_scheduler)) == config:
                    return name
    return None


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


def alpha_sigma_after(scheduler: Any, visit: Visit) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of the sample that DDIM's step from a visit leads to, which after the last step is not quite 1
    and 0: Stable Diffusion's configuration (`set_alpha_to_one=False`) stops at the noise of timestep 0.

    Raises:
        ValueError: the scheduler is not DDIM, or it clips x0, which cannot be undone.
    """
    if type(scheduler).__name__ != "DDIMScheduler":
        raise ValueError(
            f"only the steps of DDIMScheduler can be taken backwards, not those of {type(scheduler).__name__}"
        )
    if scheduler.config.clip_sample or scheduler.config.thresholding:
        raise ValueError("this DDIM scheduler clips x0 (clip_sample or thresholding), and what is cut off is lost")
    before = visit.t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alpha_bar = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
