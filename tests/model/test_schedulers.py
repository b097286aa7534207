"""The schedulers by themselves, without a U-Net: where the truth is known, a run stays on it."""

import math
import re
from itertools import pairwise
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from conftest import NOISE
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline

from sdkit import SCHEDULERS
from sdkit.model import schedulers

CPU = torch.device("cpu")
BASE = DDIMScheduler(**NOISE)
DRAWS = ("ddpm", "euler_a", "kdpm2_a", "kdpm2_a_karras", "lcm", "tcd", "dpmpp_sde", "dpmpp_sde_karras")


def begun(name, steps=10, **options):
    """A fresh scheduler, and what it visits."""
    scheduler = schedulers.fresh(name, BASE, torch.Generator().manual_seed(0))
    return scheduler, schedulers.visits(scheduler, steps, CPU, options.pop("strength", None), **options)


def noised(scheduler, x0, eps, visit):
    alpha, sigma = schedulers.alpha_sigma(scheduler, visit)
    return alpha * x0 + sigma * eps


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in DRAWS])
def test_with_the_true_noise_x_is_alpha_x0_plus_sigma_eps_at_every_visit(name):
    scheduler, visits = begun(name)
    x0, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = noised(scheduler, x0, eps, visits[0])
    for visit in visits:
        assert torch.allclose(x, noised(scheduler, x0, eps, visit), atol=2e-3 * float(x.std())), visit
        scheduler.scale_model_input(x, visit.tensor)
        x = schedulers.step_back(scheduler, eps, visit.tensor, x, eta=0.0, generator=None)
    assert (x - x0).abs().max() < 0.2  # Stable Diffusion's last level is not quite clean


@pytest.mark.parametrize("name", ["ddpm", "euler_a", "lcm", "tcd", "ddim", "euler", "unipc", "lms", "deis", "pndm"])
def test_the_levels_of_all_visits_are_those_that_diffusers_noises_to(name):
    scheduler, visits = begun(name, 4)
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for visit in visits:
        found = [scheduler.add_noise(*pair, visit.tensor[None]).item() for pair in ((one, none), (none, one))]
        level = schedulers.level(scheduler, visit)
        assert [float(part) for part in schedulers.alpha_sigma(scheduler, visit)] == pytest.approx(found, rel=1e-5)
        alpha, sigma = found
        assert level == {
            "t": visit.t,
            "sigma": pytest.approx(sigma / alpha, rel=1e-5),
            "alpha_bar": pytest.approx(alpha**2 / (alpha**2 + sigma**2), rel=1e-5),
        }


def test_a_level_without_any_signal_has_no_sigma():
    scheduler = DDIMScheduler(**{**NOISE, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
    first, *_ = schedulers.visits(scheduler, 4, CPU, None)
    assert schedulers.level(scheduler, first) == {"t": 999, "sigma": None, "alpha_bar": 0.0}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_a_strength_leaves_the_timesteps_that_it_leaves_in_diffusers(name, strength):
    _, visits = begun(name, 7, strength=strength)
    theirs = schedulers.fresh(name, BASE, torch.Generator().manual_seed(0))
    theirs.set_timesteps(7)
    pipeline = SimpleNamespace(scheduler=theirs)
    expected, _ = StableDiffusionImg2ImgPipeline.get_timesteps(pipeline, 7, strength, CPU)
    assert [visit.tensor.item() for visit in visits] == expected.tolist()
    assert [visit.t for visit in visits] == [round(t) for t in expected.tolist()]
    assert [visit.index for visit in visits] == list(range(len(theirs.timesteps)))[-len(expected) :]


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "kdpm2", "dpmpp_2m"])
@pytest.mark.parametrize("start", [0.2, 0.5, 0.85])
def test_a_denoising_start_leaves_the_timesteps_that_it_leaves_in_diffusers(name, start):
    _, visits = begun(name, 10, denoising_start=start)
    theirs = schedulers.fresh(name, BASE, None)
    theirs.set_timesteps(10)
    pipeline = SimpleNamespace(scheduler=theirs)
    expected, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(pipeline, 10, None, CPU, denoising_start=start)
    assert [visit.tensor.item() for visit in visits] == expected.tolist()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_base_and_refiner_divide_the_steps_between_them(share):
    _, whole = begun("euler", 10)
    _, before = begun("euler", 10, denoising_end=share)
    _, after = begun("euler", 10, denoising_start=share)
    assert [one.t for one in before] + [one.t for one in after] == [one.t for one in whole]
    assert all(one.t >= 1000 * (1 - share) for one in before)


def test_steps_of_the_callers_own_are_visited_as_they_are():
    _, visits = begun("euler", timesteps=[900, 500, 100])
    assert [(one.index, one.t) for one in visits] == [(0, 900), (1, 500), (2, 100)]
    scheduler, visits = begun("euler", sigmas=[10.0, 3.0, 0.5, 0.0])
    assert [float(schedulers.alpha_sigma(scheduler, one)[1]) for one in visits] == [10.0, 3.0, 0.5]


def test_lcm_spreads_its_steps_over_what_it_was_distilled_for():
    _, visits = begun("lcm", 4, original_inference_steps=20)
    theirs = diffusers.LCMScheduler.from_config(BASE.config)
    theirs.set_timesteps(4, original_inference_steps=20)
    assert [one.t for one in visits] == theirs.timesteps.tolist()
    _, visits = begun("lcm", 4, strength=0.5, distilled=True)
    theirs.set_timesteps(4, strength=0.5)
    assert [one.t for one in visits] == theirs.timesteps.tolist()


SENTENCES = {
    "a class": (
        lambda: schedulers.fresh(DDIMScheduler, BASE, None),
        TypeError,
        f"scheduler must be a short name or a diffusers scheduler object, but is {DDIMScheduler!r}",
    ),
    "a number": (
        lambda: schedulers.fresh(5, BASE, None),
        TypeError,
        "scheduler must be a short name or a diffusers scheduler object, but is 5",
    ),
    "another kind": (
        lambda: schedulers.fresh(diffusers.FlowMatchEulerDiscreteScheduler(), BASE, None),
        ValueError,
        "FlowMatchEulerDiscreteScheduler has no noise schedule of Stable Diffusion; use one of "
        + ", ".join(SCHEDULERS),
    ),
    "one of the user's": (
        lambda: schedulers.fresh(type("Mine", (DDIMScheduler,), {})(), BASE, None),
        ValueError,
        "Mine is no scheduler of diffusers that sdkit knows, so no run could be made again from its record; use one "
        "of " + ", ".join(SCHEDULERS),
    ),
    "a record without a class": (
        lambda: schedulers.rebuilt({"beta_start": 0.1}),
        ValueError,
        "the scheduler's settings are damaged; expected its class and configuration",
    ),
    "a record that is none": (
        lambda: schedulers.rebuilt(["DDIMScheduler"]),
        ValueError,
        "the scheduler's settings are damaged; expected its class and configuration",
    ),
    "a long record": (
        lambda: schedulers.rebuilt({"class": "DDIMScheduler", "num_train_timesteps": 100_001}),
        ValueError,
        "a noise schedule has at most 100,000 timesteps",
    ),
    "a record of no timesteps": (
        lambda: schedulers.rebuilt({"class": "DDIMScheduler", "num_train_timesteps": 0}),
        ValueError,
        "num_train_timesteps must be at least 1, but is 0",
    ),
    "a damaged record": (
        lambda: schedulers.rebuilt({"class": "DDIMScheduler", "beta_schedule": "cubic"}),
        ValueError,
        "the settings of DDIMScheduler are damaged: cubic is not implemented for "
        "<class 'diffusers.schedulers.scheduling_ddim.DDIMScheduler'>",
    ),
    "too many steps": (
        lambda: begun("ddim", 1001),
        ValueError,
        "num_inference_steps 1001 is more than the 1000 timesteps of the noise schedule",
    ),
    "as many, from the second on": (
        lambda: begun("ddim", 1000),
        ValueError,
        "DDIMScheduler makes no 1000 steps of this noise schedule: timestep 1000 lies beyond its last, 999; take fewer",
    ),
    "timesteps for one without": (
        lambda: begun("unipc", timesteps=[3, 2]),
        ValueError,
        "UniPCMultistepScheduler takes no custom timesteps; use ddpm, dpmpp_2m, dpmpp_2s, euler, heun, lcm or tcd",
    ),
    "sigmas for one without": (
        lambda: begun("ddim", sigmas=[3.0, 2.0]),
        ValueError,
        "DDIMScheduler takes no custom sigmas; use euler",
    ),
    "timesteps beyond the last": (
        lambda: begun("ddpm", timesteps=[1000, 2]),
        ValueError,
        "timesteps must lie below 1000, the length of the noise schedule, but go up to 1000",
    ),
    "timesteps that rise": (
        lambda: begun("ddpm", timesteps=[2, 3]),
        ValueError,
        "DDPMScheduler does not take these timesteps: `custom_timesteps` must be in descending order.",
    ),
    "steps of a distillation for one without": (
        lambda: begun("ddim", original_inference_steps=20),
        ValueError,
        "DDIMScheduler takes no original_inference_steps; use lcm or tcd",
    ),
    "a strength of too little": (
        lambda: begun("ddim", 8, strength=0.1),
        ValueError,
        "strength 0.1 of 8 steps leaves no step to run; it takes at least 0.125",
    ),
    "a share with nothing in it": (
        lambda: begun("ddim", 10, denoising_start=0.5, denoising_end=0.4),
        ValueError,
        "denoising_start 0.5 leaves none of these 10 timesteps to run; give more",
    ),
    "an end before the first step": (
        lambda: begun("ddim", 2, denoising_end=0.1),
        ValueError,
        "denoising_end 0.1 leaves none of these 2 timesteps to run; give more",
    ),
    "steps of another kind, backwards": (
        lambda: schedulers.alpha_sigma_after(*(lambda scheduler, visits: (scheduler, visits[0]))(*begun("euler"))),
        ValueError,
        "only the steps of DDIMScheduler can be taken backwards, not those of EulerDiscreteScheduler",
    ),
    "steps that clip, backwards": (
        lambda: schedulers.alpha_sigma_after(DDIMScheduler(clip_sample=True), None),
        ValueError,
        "this DDIM scheduler clips x0 (clip_sample or thresholding), and what is cut off is lost",
    ),
}


@pytest.mark.parametrize("what", SENTENCES)
def test_what_no_scheduler_does_is_one_sentence(what):
    call, kind, sentence = SENTENCES[what]
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        call()


def test_what_a_scheduler_says_of_a_number_of_steps_is_passed_on():
    with pytest.raises(
        ValueError, match=r"^LCMScheduler makes no 30 steps of this noise schedule: .*; take fewer, or ddim$"
    ):
        begun("lcm", 30, original_inference_steps=20)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_name_makes_that_algorithm_of_the_models_noise_schedule_whatever_the_model_was_configured_for(name):
    odd = diffusers.DPMSolverMultistepScheduler(**{k: NOISE[k] for k in ("beta_start", "beta_end", "beta_schedule")},
                                                algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)  # fmt: skip
    scheduler = schedulers.fresh(name, odd, torch.Generator().manual_seed(5))
    assert (scheduler.config.beta_start, scheduler.config.beta_end) == (0.00085, 0.012)
    assert scheduler.config.get("algorithm_type") in (None, "deis", "dpmsolver++", "sde-dpmsolver++")
    if name.startswith(("deis", "dpmpp_2")):
        assert scheduler.config.algorithm_type == ("deis" if name.startswith("deis") else "dpmsolver++")
    spaced = [one for one in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
              if one in schedulers._parameters(type(scheduler)) and scheduler.config[one]]  # fmt: skip
    assert spaced == (["use_karras_sigmas"] if name.endswith("_karras") else [])
    if name.startswith("dpmpp_sde"):
        assert scheduler.noise_sampler_seed == 5
        several = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        assert schedulers.fresh(name, odd, several).noise_sampler_seed == [5, 6]
        own = diffusers.DPMSolverSDEScheduler(noise_sampler_seed=3)
        assert schedulers.fresh(own, odd, several).noise_sampler_seed == 3


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_comes_back_from_its_record(name):
    scheduler, _ = begun(name)
    record = schedulers.plain(scheduler)
    assert record["class"] == type(scheduler).__name__
    assert not any(key.startswith("_") for key in record)
    assert all(value == value and abs(value) != math.inf for value in record.values() if isinstance(value, float))
    assert schedulers.plain(schedulers.rebuilt(record)) == record


def test_a_schedule_in_numbers_has_betas_alphas_sigmas_and_log_snr():
    for given in (BASE, schedulers.plain(BASE)):
        schedule = schedulers.noise_schedule(given)
        assert schedule.betas.dtype == torch.float64
        assert torch.allclose((1 - schedule.betas).cumprod(0), schedule.alphas_cumprod, rtol=1e-4)
        assert torch.allclose(schedule.alphas**2 + schedule.sigmas**2, torch.ones(1000, dtype=torch.float64))
        assert torch.allclose(schedule.log_snr, 2 * (schedule.alphas / schedule.sigmas).log())


def test_x0_is_clipped_as_the_configuration_says():
    x0 = torch.tensor([-3.0, -0.5, 0.5, 3.0]).reshape(1, 1, 2, 2)
    assert schedulers.clip(BASE, x0) is x0
    clips = DDIMScheduler(clip_sample=True, clip_sample_range=2.0)
    assert schedulers.clip(clips, x0).flatten().tolist() == [-2.0, -0.5, 0.5, 2.0]
    bounds = DDIMScheduler(clip_sample=False, thresholding=True, sample_max_value=2.0)
    assert torch.equal(schedulers.clip(bounds, x0), bounds._threshold_sample(x0))
    assert schedulers.clip(diffusers.EulerDiscreteScheduler(), x0) is x0  # which knows no such thing


@pytest.mark.parametrize(("name", "unscaled"), [("euler", True), ("heun", True), ("ddim", False), ("dpmpp_2m", False)])
def test_euler_and_its_kin_leave_the_signal_unscaled(name, unscaled):
    scheduler, visits = begun(name)
    assert schedulers.keeps_signal_unscaled(scheduler) == unscaled
    assert (float(schedulers.alpha_sigma(scheduler, visits[0])[0]) == 1.0) == unscaled


def fault(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_begins_where_nothing_was_kept_of_the_visit_before(name):
    untouched, visits = begun(name, 6)
    refused = [fault(lambda: schedulers.check_beginning(untouched, i, visit)) for i, visit in enumerate(visits)]  # noqa: B023
    if name in ("pndm", "lms", "lms_karras"):
        kept = [False] + [True] * (len(visits) - 1)
    elif untouched.order == 2:
        kept = [bool(i % 2) for i in range(len(visits))]
    elif hasattr(untouched, "order_list"):
        kept = [order > 1 for order in untouched.order_list]
    else:
        kept = [False] * len(visits)
    assert [one is not None for one in refused] == kept
    for i, sentence in enumerate(refused):
        assert sentence is None or sentence == (
            f"{type(untouched).__name__} cannot begin at step {i}, where it goes on from what it kept of the steps "
            "before; go to the first visit of a timestep, or use another scheduler, such as ddim"
        )
    for i in (i for i, sentence in enumerate(refused) if sentence is None and name not in DRAWS):
        scheduler = schedulers.beginning_at(untouched, visits[i])
        x0, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x = noised(untouched, x0, eps, visits[i])
        scheduler.scale_model_input(x, visits[i].tensor)
        x = schedulers.step_back(scheduler, eps, visits[i].tensor, x, eta=0.0, generator=None)
        if i + 1 < len(visits):
            assert torch.allclose(x, noised(scheduler, x0, eps, visits[i + 1]), atol=2e-3 * float(x.std()))


@pytest.mark.parametrize(
    ("name", "kept"),
    [("ddim", []), ("heun", [1, 3, 5]), ("kdpm2", [1, 3, 5]), ("pndm", [1]), ("dpmpp_2s", [1]), ("unipc", [])],
)
def test_an_edited_latent_counts_or_is_refused(name, kept):
    scheduler, visits = begun(name, 4)
    x, refused = torch.ones(1, 4, 8, 8), []
    for step, visit in enumerate(visits):
        sentence = fault(lambda: schedulers.accept_edit(scheduler, step, visit))  # noqa: B023
        if sentence is not None:
            refused.append(step)
            assert sentence == (
                f"stage 'latent', step {step}: {type(scheduler).__name__} goes on from a sample of its own here and "
                "would not use the edit; edit the first visit of each timestep, or use another scheduler"
            )
        scheduler.scale_model_input(x, visit.tensor)
        x = schedulers.step_back(scheduler, 0.1 * x, visit.tensor, x, eta=0.0, generator=None)
    assert refused == kept
    if name == "unipc":  # it corrects from the last sample, which then is none
        assert scheduler.last_sample is not None
        schedulers.accept_edit(scheduler, 2, visits[2])
        assert scheduler.last_sample is None


def test_the_runge_kutta_half_of_pndm_keeps_the_first_of_each_four():
    scheduler = diffusers.PNDMScheduler(**{k: NOISE[k] for k in ("beta_start", "beta_end", "beta_schedule")})
    visits = schedulers.visits(scheduler, 6, CPU, None)
    refused = [fault(lambda: schedulers.accept_edit(scheduler, i, visit)) for i, visit in enumerate(visits)]  # noqa: B023
    assert [i for i, one in enumerate(refused) if one] == [1, 2, 3, 5, 6, 7, 9, 10, 11]


def test_eta_and_generator_go_to_those_that_take_them():
    x = torch.ones(1, 4, 8, 8)
    for name, draws in (("ddim", True), ("euler_a", True), ("dpmpp_2m", False), ("lms", False)):
        found = []
        for seed in (1, 2):
            scheduler, visits = begun(name)
            t = visits[0].tensor
            scheduler.scale_model_input(x, t)
            generator = torch.Generator().manual_seed(seed)
            found.append(schedulers.step_back(scheduler, 0.1 * x, t, x, eta=1.0, generator=generator))
        assert torch.equal(*found) != draws
        scheduler, visits = begun(name)
        scheduler.scale_model_input(x, visits[0].tensor)
        generator = torch.Generator().manual_seed(2)
        again = schedulers.step_back(scheduler, 0.1 * x, visits[0].tensor, x, eta=1.0, generator=generator)
        assert torch.equal(again, found[-1])
    plain, visits = begun("ddim")
    t = visits[0].tensor
    assert torch.equal(schedulers.step_back(plain, x, t, x, eta=0.0, generator=None), plain.step(x, t, x).prev_sample)


def test_the_level_after_a_step_of_ddim_is_that_of_the_next_visit_and_not_quite_clean_in_the_end():
    scheduler, visits = begun("ddim", 5)
    for visit, following in pairwise(visits):
        assert schedulers.alpha_sigma_after(scheduler, visit) == schedulers.alpha_sigma(scheduler, following)
    alpha, sigma = schedulers.alpha_sigma_after(scheduler, visits[-1])
    assert (alpha**2).item() == pytest.approx(scheduler.alphas_cumprod[0].item())
    assert (alpha**2 + sigma**2).item() == pytest.approx(1)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_at_every_visit_the_noise_is_that_of_its_timestep_in_the_models_schedule(name):
    """Between two timesteps the logarithm of sigma goes straight; visits within a step are such."""
    scheduler, visits = begun(name, 6)
    alpha_bar = BASE.alphas_cumprod.double()
    known = ((1 - alpha_bar) / alpha_bar).sqrt().log().numpy()
    x, last = torch.ones(1, 4, 8, 8), visits[-1].index
    for visit in visits:
        alpha, sigma = (float(part) for part in schedulers.alpha_sigma(scheduler, visit))
        t = visit.t if name in ("ddim", "ddpm", "lcm", "pndm", "tcd") else visit.tensor.item()
        expected = float(np.exp(np.interp(t, np.arange(1000), known)))
        if visit.index < last:  # where timesteps are rounded, the last is that of no noise
            assert sigma / alpha == pytest.approx(expected, rel=0.03), visit
        scheduler.scale_model_input(x, visit.tensor)
        x = schedulers.step_back(scheduler, 0.1 * x, visit.tensor, x, eta=0.0, generator=torch.Generator())


def test_a_timestep_at_the_very_end_is_visited():
    _, visits = begun("ddim", 10, denoising_end=0.499)
    assert [one.t for one in visits] == [901, 801, 701, 601, 501]


def test_every_timestep_can_be_visited_and_a_long_schedule_is_read():
    every = schedulers.visits(DDIMScheduler(**NOISE | {"steps_offset": 0}), 1000, CPU, None)
    assert [one.t for one in every][::333] == [999, 666, 333, 0]
    long = schedulers.rebuilt({"class": "DDIMScheduler", "num_train_timesteps": 100_000})
    assert len(long.alphas_cumprod) == 100_000
    assert len(schedulers.rebuilt({"class": "DDIMScheduler"}).alphas_cumprod) == 1000


def test_a_class_that_is_none_of_a_scheduler_is_named():
    with pytest.raises(ValueError, match=r"^unknown scheduler class 'UNet2DConditionModel'"):
        schedulers.rebuilt({"class": "UNet2DConditionModel"})


def test_a_step_of_ddim_to_timestep_0_ends_at_its_level():
    scheduler = DDIMScheduler(**{**NOISE, "steps_offset": 0, "set_alpha_to_one": True})
    visits = schedulers.visits(scheduler, 5, CPU, None)
    assert [one.t for one in visits] == [800, 600, 400, 200, 0]
    assert schedulers.alpha_sigma_after(scheduler, visits[-2]) == schedulers.alpha_sigma(scheduler, visits[-1])
    assert [float(part) for part in schedulers.alpha_sigma_after(scheduler, visits[-1])] == [1.0, 0.0]


def test_betas_of_ones_own_are_written_down_as_numbers():
    betas = np.linspace(0.001, 0.01, 50)
    record = schedulers.plain(DDIMScheduler(num_train_timesteps=50, trained_betas=betas))
    assert record["trained_betas"] == betas.tolist()
    assert torch.equal(schedulers.rebuilt(record).betas, torch.tensor(betas, dtype=torch.float32))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_configuration_is_known_by_its_short_name(name):
    scheduler, _ = begun(name)
    assert schedulers.named(schedulers.plain(scheduler), BASE) == name
    assert schedulers.named(schedulers.plain(scheduler) | {"beta_end": 0.5}, BASE) is None


def test_a_class_without_a_short_name_has_none():
    assert schedulers.named({"class": "IPNDMScheduler"}, BASE) is None


def test_a_scheduler_that_begins_anew_shares_nothing_with_the_untouched_one():
    untouched, visits = begun("unipc", 6)
    one, other = (schedulers.beginning_at(untouched, visits[2]) for _ in range(2))
    x = torch.ones(1, 4, 8, 8)
    first = schedulers.step_back(one, 0.1 * x, visits[2].tensor, x, eta=0.0, generator=None)
    schedulers.step_back(one, 0.1 * first, visits[3].tensor, first, eta=0.0, generator=None)
    assert torch.equal(schedulers.step_back(other, 0.1 * x, visits[2].tensor, x, eta=0.0, generator=None), first)
    assert (untouched.step_index, untouched.begin_index, other.begin_index) == (None, None, 2)
