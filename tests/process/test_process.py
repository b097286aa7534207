"""What a hook may see and what an edit does, measured against runs whose result is known."""

import contextlib

import numpy as np
import pytest
import torch
from conftest import SCHEDULERS
from diffusers import HeunDiscreteScheduler, PNDMScheduler

import sdkit
from sdkit import Stage
from sdkit.events import INNER
from sdkit.tiny.drawing import draw

STEPS = 4


def events_of(model, prompt="a red star", **options):
    options = {"seed": 1, "num_inference_steps": STEPS, **options}
    return list(sdkit.stages(prompt, model=model, **options))


def picture(model, prompt="a red star", **options):
    options = {"seed": 1, "num_inference_steps": STEPS, **options}
    return sdkit.text_to_image(prompt, model=model, **options)


def same(a, b):
    return torch.equal(a.latents, b.latents) and all(
        np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(a.images, b.images, strict=True)
    )


def test_a_run_meets_its_stages_in_order(sd1):
    names = [(event.stage, event.step) for event in events_of(sd1)]
    each = [Stage.LATENT, Stage.CONTEXT, Stage.NOISE, Stage.GUIDED, Stage.DENOISED]
    steps = [(stage, step) for step in range(STEPS) for stage in each]
    assert names == [(Stage.TOKENS, None), (Stage.TEXT, None), *steps, (Stage.LATENT, None), (Stage.IMAGE, None)]


@pytest.mark.parametrize("guided", [True, False])
def test_values_have_the_shapes_that_the_stages_promise(sd1, guided):
    scale, pictures = (7.5, 4) if guided else (1.0, 4)
    rows = 2 * pictures if guided else pictures
    events = events_of(sd1, ["a star", "a cat"], num_images_per_prompt=2, guidance_scale=scale, height=96, width=64)
    shapes = {event.stage: tuple(event.value.shape) for event in events}
    assert shapes == {
        Stage.TOKENS: (rows, 32),
        Stage.TEXT: (rows, 32, 32),
        Stage.LATENT: (pictures, 4, 12, 8),
        Stage.CONTEXT: (rows, 32, 32),
        Stage.NOISE: (rows, 4, 12, 8),
        Stage.GUIDED: (pictures, 4, 12, 8),
        Stage.DENOISED: (pictures, 4, 12, 8),
        Stage.IMAGE: (pictures, 3, 96, 64),
    }


def test_a_variation_meets_the_picture_first_and_runs_its_share_of_the_steps(sd1):
    events = events_of(sd1, image=draw("a red fish"), strength=0.5, num_inference_steps=6)
    names = [(event.stage, event.step) for event in events]
    assert names[2:4] == [(Stage.PIXELS, None), (Stage.POSTERIOR, None)]
    assert {step for _, step in names} == {None, 0, 1, 2}
    shapes = {event.stage: tuple(event.value.shape) for event in events}
    assert shapes[Stage.PIXELS] == (1, 3, 128, 128)
    assert shapes[Stage.POSTERIOR] == (1, 8, 16, 16)


def test_a_variation_starts_from_the_encoded_picture_noised_in_closed_form(tiny):
    """With the posterior's variance edited away, x = alpha * mean + sigma * eps at the realised start."""

    @sdkit.on(Stage.POSTERIOR)
    def certain(event):
        mean, _ = event.value.chunk(2, dim=1)
        event.value = torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)

    photo, seen = draw("a red fish"), {}
    hooks = [certain, lambda e: seen.setdefault((e.stage, e.step), e.value)]
    result = sdkit.image_to_image(photo, "a star", strength=0.6, num_inference_steps=10, seed=3, hooks=hooks)
    mean = seen[Stage.POSTERIOR, None].chunk(2, dim=1)[0]
    generator = torch.Generator().manual_seed(3)
    torch.randn(mean.shape, generator=generator)  # the posterior's own draw
    start = result.settings["start"]
    alpha, sigma = start["alpha_bar"] ** 0.5, (1 - start["alpha_bar"]) ** 0.5
    expected = alpha * mean + sigma * torch.randn(mean.shape, generator=generator)
    assert torch.allclose(seen[Stage.LATENT, 0], expected, atol=1e-5)
    assert (start["t"], start["steps"]) == (599, 6)
    assert start["sigma"] == pytest.approx(sigma / alpha, rel=1e-5)


def test_a_strength_that_leaves_no_step_says_what_it_takes(sd1):
    with pytest.raises(ValueError, match=r"strength 0.3 of 3 steps leaves no step to run; it takes at least 0.334"):
        sdkit.image_to_image(draw("a red fish"), "a star", model=sd1, strength=0.3, num_inference_steps=3)


def test_little_strength_keeps_the_picture_and_full_strength_forgets_it(tiny):
    photo = draw("a small red square at the top on a black background", 1)
    kept, forgotten = (sdkit.image_to_image(photo, "a red square", strength=s, seed=0).image for s in (0.1, 1.0))
    before, near, far = (np.asarray(p, dtype=float) for p in (photo, kept, forgotten))
    assert np.abs(near - before).mean() < 6
    assert np.abs(far - before).mean() > 3 * np.abs(near - before).mean()


def test_timesteps_fall_from_noise_to_picture(tiny):
    ts = [event.t for event in events_of(tiny, num_inference_steps=10) if event.stage is Stage.LATENT]
    assert ts == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, None]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_hook_that_only_reads_changes_nothing(sd1, scheduler):
    read = []
    result = picture(sd1, scheduler=scheduler, hooks=[lambda event: read.append(event.value.sum().item())])
    assert same(result, picture(sd1, scheduler=scheduler))
    assert len(read) == len(events_of(sd1, scheduler=scheduler))


def test_guided_is_the_sum_that_guidance_promises(sd1):
    events = {(e.stage, e.step): e.value for e in events_of(sd1, guidance_scale=3.0)}
    for step in range(STEPS):
        uncond, cond = events[Stage.NOISE, step].chunk(2)
        assert torch.equal(events[Stage.GUIDED, step], uncond + 3.0 * (cond - uncond))


def replay(events, stage):
    """A hook that puts in the values of another run at one stage."""
    values = {event.step: event.value for event in events if event.stage is stage}

    @sdkit.on(stage)
    def put(event):
        event.value = values[event.step].clone()

    return put


@pytest.mark.parametrize("stage", [Stage.TOKENS, Stage.TEXT])
def test_the_words_of_another_prompt_make_its_picture(sd1, stage):
    other = events_of(sd1, "a blue fish")
    assert same(picture(sd1, hooks=[replay(other, stage)]), picture(sd1, "a blue fish"))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("stage", [pytest.param(Stage.NOISE, marks=pytest.mark.slow), Stage.GUIDED])
def test_the_predictions_of_another_prompt_make_its_picture(sd1, stage, scheduler):
    other = events_of(sd1, "a blue fish", scheduler=scheduler)
    result = picture(sd1, scheduler=scheduler, hooks=[replay(other, stage)])
    assert same(result, picture(sd1, "a blue fish", scheduler=scheduler))


def test_the_start_noise_of_another_seed_makes_its_picture(sd1):
    noise = events_of(sd1, seed=2)[2].value

    @sdkit.on(Stage.LATENT)
    def start_elsewhere(event):
        if event.step == 0:
            event.value = noise.clone()

    assert same(picture(sd1, hooks=[start_elsewhere]), picture(sd1, seed=2))


def test_tokens_may_differ_between_pictures_of_one_prompt(sd1):
    other = events_of(sd1, "a blue fish")[0].value

    @sdkit.on(Stage.TOKENS)
    def swap_second(event):
        event.value = torch.cat([event.value[:3], other[1:]])  # two negative rows, then two prompts

    result = picture(sd1, num_images_per_prompt=2, seed=[1, 1], hooks=[swap_second])
    alike = {"rtol": 0, "atol": 1e-4}
    assert torch.allclose(result.latents[:1], picture(sd1).latents, **alike)
    assert torch.allclose(result.latents[1:], picture(sd1, "a blue fish").latents, **alike)


@pytest.mark.parametrize("scheduler", ["dpmpp_2m", "dpmpp_2m_karras", "euler", "euler_karras"])
def test_the_last_x0_is_where_a_run_ends(sd1, scheduler):
    """These schedulers end at sigma 0, where the sample is x0 itself."""
    target = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)

    @sdkit.on(Stage.DENOISED)
    def believe(event):
        event.value = target.clone()

    result = picture(sd1, scheduler=scheduler, hooks=[believe])
    assert torch.allclose(result.latents, target, atol=1e-4)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_x0_that_is_assigned_unchanged_changes_next_to_nothing(sd1, scheduler):
    @sdkit.on(Stage.DENOISED)
    def assign(event):
        event.value = event.value.clone()

    result, plain = picture(sd1, scheduler=scheduler, hooks=[assign]), picture(sd1, scheduler=scheduler)
    assert (result.latents - plain.latents).abs().max() < 1e-3 * plain.latents.abs().max()


def test_an_edited_picture_is_the_picture(sd1):
    @sdkit.on(Stage.IMAGE)
    def paint_it_white(event):
        event.value = torch.ones_like(event.value)

    result = picture(sd1, hooks=[paint_it_white])
    assert np.asarray(result.image).min() == 255
    assert torch.equal(result.latents, picture(sd1).latents)


# Of SDXL, of inpainting, and inside the U-Net: other tests edit them.
ELSEWHERE = {Stage.POOLED, Stage.MASK, *INNER}


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage not in ELSEWHERE])
def test_an_edit_at_any_stage_changes_what_follows_and_nothing_before(sd1, stage):
    def edit(event):
        if event.stage is stage and event.step in (None, 1):
            event.value = event.value.flip(-1)

    photo = draw("a red fish", 2)
    plain = {(e.stage, e.step): e.value.clone() for e in events_of(sd1, image=photo)}
    assert {stage for stage, _ in plain} == set(Stage) - ELSEWHERE
    edited = {}
    sdkit.image_to_image(
        photo,
        "a red star",
        model=sd1,
        seed=1,
        num_inference_steps=STEPS,
        hooks=[edit, lambda e: edited.setdefault((e.stage, e.step), e.value)],
    )
    changed = [where for where, value in edited.items() if not torch.equal(value, plain[where])]
    places = list(plain)
    first = next(i for i, (s, step) in enumerate(places) if s is stage and step in (None, 1))
    assert places[first] == changed[0]
    assert places[-1] == changed[-1]


def test_a_wrong_shaped_edit_names_its_stage_and_step(sd1):
    @sdkit.on(Stage.NOISE)
    def halve(event):
        event.value = event.value[:1]

    with pytest.raises(ValueError, match=r"stage 'noise', step 0 .*\(1, 4, 8, 8\).*\(2, 4, 8, 8\)"):
        picture(sd1, hooks=[halve])


def test_an_exception_in_a_hook_leaves_the_model_as_it_was(tiny):
    before = {name: p.clone() for name, p in tiny.unet.state_dict().items()}
    config, attributes = dict(tiny.scheduler.config), set(vars(tiny.unet))
    plain = picture(tiny)

    @sdkit.on(Stage.GUIDED)
    def fail(event):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough") as caught:
        picture(tiny, hooks=[fail])
    assert "stage 'guided', step 0" in caught.value.__notes__[0]
    assert all(torch.equal(p, before[name]) for name, p in tiny.unet.state_dict().items())
    assert (dict(tiny.scheduler.config), set(vars(tiny.unet))) == (config, attributes)
    assert same(picture(tiny), plain)


def test_two_runs_driven_in_turn_equal_two_runs_one_after_the_other(sd1):
    options = {"model": sd1, "num_inference_steps": STEPS, "scheduler": "euler_a"}
    one, two = sdkit.stages("a star", seed=1, **options), sdkit.stages("a cat", seed=2, **options)
    together = list(zip(one, two, strict=True))
    for (first, second), a, b in zip(
        together,
        sdkit.stages("a star", seed=1, **options),
        sdkit.stages("a cat", seed=2, **options),
        strict=True,
    ):
        assert torch.equal(first.value, a.value)
        assert torch.equal(second.value, b.value)


def test_grad_mode_of_the_caller_reaches_the_loop_and_the_values_carry_no_graph(sd1):
    for event in sdkit.stages("a star", model=sd1, seed=0, num_inference_steps=2):
        assert torch.is_grad_enabled()
        assert not event.value.requires_grad


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_edited_latent_is_heard_or_refused_by_every_scheduler(sd1, scheduler):
    """With x0 held fixed by a hook, the next latent moves only if the scheduler goes on from the edited one."""
    options = {"model": sd1, "scheduler": scheduler, "seed": 1, "num_inference_steps": 5}

    def latents_with_edit_at(chosen):
        seen = []

        def hook(event):
            if event.stage is Stage.LATENT:
                if event.step == chosen:
                    event.value = event.value + 1
                seen.append(event.value)
            elif event.stage is Stage.DENOISED:
                event.value = torch.zeros_like(event.value)

        sdkit.text_to_image("a", hooks=[hook], **options)
        return seen

    plain, heard = latents_with_edit_at(None), 0
    for step in range(1, len(plain) - 2):
        with contextlib.suppress(ValueError):  # refused
            moved = (latents_with_edit_at(step)[step + 1] - plain[step + 1]).mean()
            assert moved.abs() > 1e-4 or scheduler == "lcm"  # which draws each latent anew from x0
            heard += 1
    assert heard


@pytest.mark.parametrize(("kind", "step"), [(HeunDiscreteScheduler, 1), (PNDMScheduler, 1)])
def test_a_latent_that_the_scheduler_would_not_hear_cannot_be_edited(sd1, kind, step):
    scheduler = kind.from_config(sd1.scheduler.config, **({"skip_prk_steps": True} if kind is PNDMScheduler else {}))

    @sdkit.on(Stage.LATENT)
    def edit(event):
        if event.step == step:
            event.value = event.value * 1.1

    with pytest.raises(ValueError, match=f"stage 'latent', step {step}: {kind.__name__} goes on from a sample of its"):
        picture(sd1, scheduler=scheduler, hooks=[edit])
