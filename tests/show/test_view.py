"""What drawing reads from a trace: noise levels, colours, halves."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

import sdkit
from sdkit import Event, Stage, Trace
from sdkit.model.schedulers import noise_schedule
from sdkit.show.view import colours, guided, heats, prompt_of, spread_out


def recorded(model, **more):
    trace = Trace()
    given = {"seed": 7, "num_inference_steps": 3, "height": 64, "width": 64} | more
    sdkit.text_to_image("a red star", model=model, hooks=[trace], **given)
    return trace


@pytest.mark.parametrize(
    "scheduler", ["ddim", "dpmpp_2m_karras", "euler_a", "heun", "kdpm2", "kdpm2_a", "dpmpp_sde", "pndm", "unipc"]
)
def test_levels_explain_the_latents_of_every_kind_of_scheduler(sd1, scheduler):
    trace = recorded(sd1, scheduler=scheduler)
    assert list(trace.levels) == trace.steps
    for step, level in trace.levels.items():
        at = trace.at(step)
        x, x0, eps = (at[stage].value.double() for stage in (Stage.LATENT, Stage.DENOISED, Stage.GUIDED))
        error = (level.alpha * x0 + level.sigma * eps - x).norm() / x.norm()
        assert error < 1e-4, (step, level)


def test_the_signal_to_noise_ratio_is_that_of_the_schedule(seen):
    schedule = noise_schedule(seen.settings["scheduler"])
    for level in seen.levels.values():
        assert level.snr == pytest.approx(schedule.log_snr[level.t].exp().item(), rel=1e-4)
        assert level.noise == pytest.approx(1 - schedule.alphas_cumprod[level.t].item(), abs=1e-6)


def test_a_forward_walk_tells_its_levels_itself(walk):
    assert [level.snr for level in walk.levels.values()] == pytest.approx(
        [one["snr"] for one in walk.settings["levels"]]
    )


def test_the_colours_are_close_to_what_the_decoder_makes(seen, tiny):
    paint = colours(seen)
    assert paint.true
    x0 = seen.at(4)[Stage.DENOISED].value
    decoded = adaptive_avg_pool2d(tiny.decode(x0).clamp(-1, 1), 16) / 2 + 0.5
    assert (paint(x0) - decoded).square().mean().sqrt() < 0.06
    assert (decoded.mean(dim=(2, 3), keepdim=True) - decoded).square().mean().sqrt() > 0.06  # than one colour for all


def test_colours_of_two_runs_come_from_both_pictures(seen, walk):
    one, other, both = colours(seen), colours(walk), colours(seen, walk)
    assert not torch.equal(one.weight, both.weight)
    assert not torch.equal(other.weight, both.weight)


def test_without_a_picture_the_colours_tell_values_apart_and_say_so():
    trace = Trace()
    trace.record(Event(Stage.LATENT, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 0, 500))
    paint = colours(trace)
    assert not paint.true
    assert paint(trace[Stage.LATENT][0].value).flatten(2).std(dim=2).min() > 0.1
    assert trace.levels == {}


def test_guided_runs_are_told_from_others(seen, sd1):
    assert guided(seen)
    assert not guided(recorded(sd1, guidance_scale=1.0))
    assert not guided(Trace())


def test_the_words_of_each_picture_are_found(sd1):
    trace = Trace()
    sdkit.text_to_image(
        ["a cat", "a dog"],
        model=sd1,
        seed=1,
        num_inference_steps=1,
        num_images_per_prompt=2,
        height=64,
        width=64,
        hooks=[trace],
    )
    assert [prompt_of(trace, picture) for picture in range(4)] == ["a cat", "a cat", "a dog", "a dog"]


def test_spread_out_keeps_the_ends():
    assert spread_out(range(50), 5) == [0, 12, 24, 37, 49]
    assert spread_out([1, 2], 5) == [1, 2]
    assert spread_out(range(50), 1) == [49]


def test_heat_is_that_of_the_nearest_step_and_words_without_any_are_left_out(heat):
    found = heats(heat, [0, 4, 40], words=["zebra", "blue"])
    assert list(found) == ["blue"]
    assert torch.equal(found["blue"], torch.stack([heat.planes["blue", step] for step in (0, 4, 5)]))


def test_maps_that_kept_only_the_sum_of_all_steps_give_it_for_every_step(heat):
    summed = SimpleNamespace(words=["red"], steps=[0, 1], each_step=False, heat=heat.heat)
    assert torch.equal(heats(summed, [0, 9])["red"], heat.heat("red").expand(2, -1, -1))


def test_an_inversion_has_the_colours_of_the_picture_that_it_starts_from(walk):
    backwards = Trace()
    for record in walk:
        if record.stage is not Stage.IMAGE:
            backwards.record(Event(record.stage, record.value, record.step, record.t))
    assert not colours(backwards).true
    backwards.settings = {"process": "inversion"}
    paint, picture = colours(backwards), walk[Stage.PIXELS][0].value.clamp(-1, 1)
    seen = paint(walk[Stage.LATENT][0].value)
    assert (seen - adaptive_avg_pool2d(picture, 16) / 2 - 0.5).square().mean().sqrt() < 0.05
