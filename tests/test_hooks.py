"""Each ready-made hook has the effect that it claims, on the embedded model."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sdkit
from sdkit import Stage, Trace, hooks
from sdkit.tiny import drawing


def draw(*given, prompt="a star", steps=8, **more):
    trace = Trace()
    result = sdkit.text_to_image(prompt, seed=7, num_inference_steps=steps, hooks=[*given, trace], **more)
    return result, trace


def test_outside_its_interval_guidance_is_off_and_inside_it_is_on(tiny):
    _, trace = draw(hooks.guidance_interval(300, 700))
    for noise, guided in zip(trace[Stage.NOISE], trace[Stage.GUIDED], strict=True):
        _, cond = noise.value.chunk(2)
        assert torch.equal(guided.value, cond) == (not 300 <= noise.t <= 700)
    assert {300 <= record.t <= 700 for record in trace[Stage.GUIDED]} == {True, False}


def test_an_interval_that_holds_all_timesteps_changes_nothing(tiny):
    assert torch.equal(draw(hooks.guidance_interval(0, 999))[0].latents, draw()[0].latents)


def test_a_dynamic_threshold_keeps_every_x0_within_its_limit(tiny):
    _, plain = draw(guidance_scale=12.0)
    _, trace = draw(hooks.dynamic_threshold(0.9, limit=1.5), guidance_scale=12.0)
    assert max(record.value.abs().max() for record in plain[Stage.DENOISED]) > 1.5
    assert max(record.value.abs().max() for record in trace[Stage.DENOISED]) <= 1.5 + 1e-5


def test_a_threshold_that_nothing_reaches_changes_nothing_much(tiny):
    assert torch.allclose(draw(hooks.dynamic_threshold(1.0, limit=100.0))[0].latents, draw()[0].latents, atol=1e-3)


def test_injected_noise_is_of_its_strength_at_its_steps_alone(tiny):
    _, trace = draw(hooks.inject_noise(0.3, seed=1, steps=range(2, 4)))
    assert [at.step for at, _ in trace.edits] == [2, 3]
    for at, edit in trace.edits:
        assert edit.distance / at.value.numel() ** 0.5 == pytest.approx(0.3, rel=0.1)
    again, _ = draw(hooks.inject_noise(0.3, seed=1, steps=range(2, 4)))
    assert torch.equal(again.latents, trace[Stage.LATENT][-1].value)


def test_a_blend_paints_only_where_its_mask_is(tiny):
    known = drawing.draw("a red cat on a white background", seed=1)
    start = Trace(["posterior"])
    sdkit.image_to_image(known, "", strength=0.2, seed=0, num_inference_steps=5, hooks=[start])
    latents = start[Stage.POSTERIOR][0].value.chunk(2, dim=1)[0]
    mask = torch.zeros(16, 16)
    mask[:, 8:] = 1
    result, trace = draw(hooks.blend(mask, latents), prompt="a black background with a blue star")
    assert all(torch.equal(record.value[..., :8], latents[..., :8]) for record in trace[Stage.DENOISED])
    # The schedule ends a little short of no noise at all.
    assert (result.latents[..., :8] - latents[..., :8]).abs().mean() < 0.05
    assert (result.latents[..., 8:] - latents[..., 8:]).abs().mean() > 0.3


def redness(tiny):
    def loss(x0: Tensor) -> Tensor:
        red, green, blue = tiny.vae.decode(x0 / tiny.vae.config.scaling_factor).sample.unbind(1)
        return (green + blue - 2 * red).mean()

    return loss


def test_steering_lowers_its_loss(tiny):
    loss = redness(tiny)
    plain, _ = draw()
    steered, _ = draw(hooks.steer(loss, scale=2.0))
    with torch.no_grad():
        assert loss(steered.latents) < loss(plain.latents) - 0.1
    assert all(parameter.grad is None for parameter in tiny.vae.parameters())


def test_a_preview_shows_the_x0_of_its_steps_and_changes_nothing(tiny):
    shown = {}
    result, trace = draw(hooks.preview(shown.__setitem__, every=3))
    assert list(shown) == [0, 3, 6]
    assert isinstance(shown[0][0], Image.Image)
    last = np.asarray(shown[6][0], dtype=float)
    assert (
        np.abs(last - np.asarray(result.image, dtype=float)).mean()
        < np.abs(np.asarray(shown[0][0], dtype=float) - np.asarray(result.image, dtype=float)).mean()
    )
    assert torch.equal(result.latents, draw()[0].latents)
    assert trace.edits == []


def test_a_run_that_is_stopped_ends_with_the_x0_of_that_step(tiny):
    _, whole = draw()
    result, trace = draw(hooks.stop_after(4))
    assert trace.steps == [0, 1, 2, 3, 4]
    assert torch.equal(result.latents, whole[Stage.DENOISED][4].value)
    assert trace.images[0].tobytes() == result.image.tobytes()


def test_a_callback_of_diffusers_is_called_and_heard_as_diffusers_does(tiny):
    calls = []

    def callback(pipeline, step, timestep, given):
        calls.append((step, int(timestep)))
        return {"latents": given["latents"] * 0.9 if step == 4 else given["latents"]}

    result, _ = draw(hooks.from_diffusers(callback))
    ours, calls[:] = list(calls), []
    pipeline = tiny.pipeline
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a star",
        num_inference_steps=8,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(7)],
        callback_on_step_end=callback,
        output_type="latent",
    ).images
    assert ours == calls
    assert torch.equal(result.latents, theirs)


def test_a_callback_that_returns_more_than_latents_is_refused(tiny):
    with pytest.raises(ValueError, match="prompt_embeds"):
        draw(hooks.from_diffusers(lambda *_: {"prompt_embeds": None}), steps=2)


def test_two_runs_driven_in_turn_do_not_touch_each_other(tiny):
    alone = [draw(prompt=prompt, steps=4)[1] for prompt in ("a star", "a red cat")]
    runs = [sdkit.stages(prompt, seed=7, num_inference_steps=4) for prompt in ("a star", "a red cat")]
    traces = [Trace(), Trace()]
    for events in zip(*runs, strict=True):
        for event, trace in zip(events, traces, strict=True):
            trace(event)
    for trace, one in zip(traces, alone, strict=True):
        assert trace.compare(one).parting is None
