"""A run owns what belongs to it: its hooks, their state, its noise levels, and no more than that."""

import gc
import threading
import weakref

import pytest
import torch

import sdkit
from sdkit import AttentionMaps, Event, Stage, Trace, hooks
from sdkit.tiny.drawing import draw

SHORT = {"num_inference_steps": 3, "height": 64, "width": 64}
PROMPT = "a red star"


def generate(model, prompt=PROMPT, *hooks_of_it, seed=3, **more):
    return sdkit.text_to_image(prompt, model=model, seed=seed, hooks=list(hooks_of_it), **(SHORT | more))


def at_once(*works):
    """The results of functions that run at the same time, in threads that start together."""
    results, barrier = [None] * len(works), threading.Barrier(len(works))

    def go(number, work):
        barrier.wait()
        results[number] = work()

    threads = [threading.Thread(target=go, args=(number, work)) for number, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Its hooks


def test_runs_of_one_model_at_the_same_time_equal_runs_alone(sd1):
    """With maps, with edits of attention, with edits of blocks, and without hooks."""

    def edit(event):
        event.value = event.value * 1.1

    def alone(kind):
        maps = AttentionMaps()
        given = {
            "plain": [],
            "maps": [maps],
            "reweighted": [hooks.reweight("star", 0)],
            "blocks": [sdkit.on("block", layer="mid_block")(edit)],
        }[kind]
        latents = generate(sd1, PROMPT, *given, num_inference_steps=6).latents
        return latents, maps.heat("star") if kind == "maps" else None

    kinds = ["plain", "maps", "reweighted", "blocks"]
    expected = {kind: alone(kind) for kind in kinds}
    assert not torch.equal(expected["plain"][0], expected["reweighted"][0])
    for _ in range(3):
        together = at_once(*(lambda kind=kind: alone(kind) for kind in kinds))
        for kind, (latents, heat) in zip(kinds, together, strict=True):
            assert torch.equal(latents, expected[kind][0]), kind
            assert heat is None or torch.equal(heat, expected[kind][1])


def test_a_run_within_a_hook_neither_hears_the_outer_runs_hooks_nor_is_heard(sd1):
    inner, plain = [], generate(sd1, "a cat").latents
    outer_alone = generate(sd1, PROMPT, hooks.reweight("star", 0)).latents

    @sdkit.on(Stage.ATTENTION, layer="mid_block", steps=[1])
    def another_run(_event):
        inner.append(generate(sd1, "a cat").latents)

    outer = generate(sd1, PROMPT, another_run, hooks.reweight("star", 0)).latents
    assert torch.equal(outer, outer_alone)
    assert inner
    assert all(torch.equal(one, plain) for one in inner)


def test_nothing_is_put_on_the_model_even_while_a_run_is_under_way(sd1):
    modules = {name: (dict(one._forward_hooks), dict(one._forward_pre_hooks)) for name, one in sd1.unet.named_modules()}

    def bare(_event):
        assert modules == {
            name: (dict(one._forward_hooks), dict(one._forward_pre_hooks)) for name, one in sd1.unet.named_modules()
        }

    generate(sd1, PROMPT, sdkit.on("attention", "self_attention", "block")(bare), AttentionMaps())


@pytest.mark.parametrize("stage", ["attention", "self_attention", "block", "text", "guided"])
def test_a_hook_that_names_what_a_process_never_shows_is_refused_before_the_first_step(tiny, stage):
    seen = []

    @sdkit.on(stage, "latent")
    def nothing(event):
        seen.append(event)

    with pytest.raises(ValueError, match=f"'.*nothing' names {stage}, which this run never shows; its stages are p"):
        sdkit.diffuse(draw("a star"), 2, model=tiny, hooks=[nothing])
    assert not seen


def test_a_stage_that_only_this_run_leaves_out_may_be_named_beside_others(sd1):
    def look(event):
        seen.add(event.stage)

    seen = set()
    generate(sd1, PROMPT, sdkit.on("pixels", "latent")(look))
    assert seen == {Stage.LATENT}
    with pytest.raises(ValueError, match="names mask, pixels, which this run never shows"):
        generate(sd1, PROMPT, sdkit.on("pixels", "mask")(look))
    with pytest.raises(ValueError, match="'Trace' names attention, which this run never shows"):
        sdkit.diffuse(draw("a star"), 2, hooks=[Trace(["latent", "attention"])])


def test_a_hook_inside_the_unet_given_to_run_alone_is_refused(sd1):
    with pytest.raises(ValueError, match="'AttentionMaps' names attention, which is shown to the hooks of the func"):
        sdkit.run(sdkit.stages(PROMPT, model=sd1, seed=1, **SHORT), [AttentionMaps()])


def test_a_hook_is_narrowed_by_layer_and_step(sd1):
    seen = []
    look = sdkit.on("attention", "block", layer="up_blocks.1", steps=range(1, 3))(
        lambda event: seen.append((event.step, event.layer))
    )
    generate(sd1, PROMPT, look)
    assert {step for step, _ in seen} == {1, 2}
    assert {layer.split(".")[1] for _, layer in seen} == {"1"}
    with pytest.raises(ValueError, match=r"names the stage 'block', but there is none in layer 'up_blocks.7'; its l"):
        generate(sd1, PROMPT, sdkit.on("block", layer="up_blocks.7")(print))


def test_inversion_shows_the_inside_of_the_unet(tiny):
    maps = AttentionMaps()
    picture = sdkit.text_to_image("a red star on a white background", model=tiny, seed=2).image
    sdkit.invert(picture, "a red star", model=tiny, num_inference_steps=8, refinements=2, hooks=[maps])
    assert maps.steps == list(range(8))
    heat = maps.heat("star", resolution=(16, 16))
    dark = torch.tensor(list(picture.convert("L").get_flattened_data())).view(128, 128) < 160
    assert heat[dark].mean() > 2 * heat[~dark].mean()


@pytest.mark.parametrize("hooks_given", [None, 5, "abc"])
def test_hooks_that_are_no_list_are_said(sd1, hooks_given):
    with pytest.raises(TypeError, match="hooks must be a list of functions, but is"):
        sdkit.text_to_image(PROMPT, model=sd1, hooks=hooks_given, **SHORT)


def test_what_is_no_hook_is_said(sd1):
    with pytest.raises(TypeError, match="hooks holds 'x'"):
        generate(sd1, PROMPT, "x")
    with pytest.raises(TypeError, match=r"hooks holds the class Trace; make one of it: hooks=\[Trace\(\)\]"):
        generate(sd1, PROMPT, Trace)


# ---------------------------------------------------------------------------------------------------------------------
# Their state


def test_the_same_hook_does_the_same_in_every_run(sd1):
    noisy = hooks.inject_noise(0.5, seed=1, steps=range(1, 3))
    first, second = (generate(sd1, PROMPT, noisy).latents for _ in range(2))
    assert torch.equal(first, second)
    reweighted = hooks.reweight("star", 0.2)
    assert torch.equal(
        generate(sd1, "a star and a cat", reweighted).latents,
        [generate(sd1, PROMPT, reweighted), generate(sd1, "a star and a cat", reweighted)][1].latents,
    )


def test_a_callback_of_diffusers_knows_nothing_of_a_run_that_was_broken_off(sd1):
    calls = []

    def callback(_pipeline, step, _timestep, values):
        calls.append(step)
        return values

    hook = hooks.from_diffusers(callback)
    for event in sdkit.stages(PROMPT, model=sd1, seed=1, hooks=[hook], **SHORT):
        if event.step == 1:
            break
    calls.clear()
    generate(sd1, PROMPT, hook)
    assert calls == [0, 1, 2]


def test_what_a_hook_keeps_goes_with_its_run(sd1):
    kept = []

    def keep(event):
        kept.append(weakref.ref(event.run.keep("mine", torch.nn.Identity)))

    generate(sd1, PROMPT, sdkit.on("latent")(keep))
    assert len(kept) == 4
    assert len(set(map(id, kept))) == 1  # references to one thing are one
    gc.collect()
    assert kept[0]() is None


# ---------------------------------------------------------------------------------------------------------------------
# What it writes down


def test_an_event_knows_how_noisy_its_step_is_and_what_was_seen_before(sd1):
    def check(event):
        x, noise = event.run.seen[Stage.LATENT], event.run.seen[Stage.NOISE]
        assert noise.shape[0] == 2 * x.shape[0]
        x0 = (x - event.sigma * event.value) / event.alpha
        predicted.append(x0)

    predicted, trace = [], Trace()
    generate(sd1, PROMPT, sdkit.on("guided")(check), trace, scheduler="euler")
    for x0, record in zip(predicted, trace[Stage.DENOISED], strict=True):
        assert torch.allclose(x0, record.value, atol=1e-4)
    assert next(sdkit.stages(PROMPT, model=sd1)).alpha is None
    assert Event(Stage.LATENT, torch.zeros(1)).sigma is None


def test_a_run_that_goes_on_from_another_has_the_levels_that_it_visits(sdxl):
    begun = sdkit.text_to_image(PROMPT, model=sdxl, seed=1, denoising_end=0.5, num_inference_steps=6)
    trace = Trace()
    sdkit.image_to_image(
        begun.latents, PROMPT, model=sdxl, seed=1, denoising_start=0.5, num_inference_steps=6, hooks=[trace]
    )
    schedule = sdkit.model.schedulers.noise_schedule(trace.settings["scheduler"])
    for step, level in trace.levels.items():
        assert level.t == trace.at(step)[Stage.LATENT].t < 500
        assert level.noise == pytest.approx(1 - schedule.alphas_cumprod[level.t].item(), abs=2e-3)


def test_an_edit_by_the_loop_after_one_by_a_hook_is_recorded_too(sd1):
    @sdkit.on(Stage.GUIDED, steps=[0])
    def double(event):
        event.value = event.value * 2

    trace = Trace()
    for event in sdkit.stages(PROMPT, model=sd1, seed=1, hooks=[double, trace], **SHORT):
        if event.stage is Stage.GUIDED and event.step == 0:
            event.value = torch.zeros_like(event.value)
    assert [(edit.hook, edit.relative) for _, edit in trace.edits] == [
        ("double", pytest.approx(1)),
        ("the loop that drives the run", pytest.approx(1)),
    ]
    assert trace[Stage.GUIDED][0].value.eq(0).all()
    assert trace.settings["edited_by"] == ["double", "the loop that drives the run"]


def test_a_trace_that_is_read_while_it_records_still_keeps_what_everybody_left(sd1):
    trace = Trace()

    @sdkit.on(Stage.GUIDED)
    def read_and_edit(event):
        assert all(record.step != event.step for record in trace[Stage.GUIDED])
        event.value = event.value * 0

    generate(sd1, PROMPT, trace, read_and_edit, trace)
    assert len(trace[Stage.GUIDED]) == 3  # once each, though the trace stands twice among the hooks
    assert all(record.value.eq(0).all() for record in trace[Stage.GUIDED])


def test_a_run_that_a_hook_ended_is_recorded_as_such(sd1, tmp_path):
    result = generate(sd1, PROMPT, hooks.stop_after(1))
    assert result.settings["stopped_after"] == 1
    assert "stopped_after" not in generate(sd1).settings
    (path,) = result.save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="was edited by hooks, which settings do not hold: stopped_after"):
        sdkit.rerun(path, model=sd1)
    again = sdkit.rerun(path, model=sd1, hooks=[hooks.stop_after(1)])
    assert torch.equal(again.latents, result.latents)


def test_what_is_made_again_with_other_hooks_says_so(sd1, tmp_path):
    (path,) = generate(sd1).save(tmp_path / "a.png")
    assert sdkit.rerun(path, model=sd1).settings["edited_by"] == []
    again = sdkit.rerun(path, model=sd1, hooks=[hooks.inject_noise(1.0, seed=1, steps=range(2))])
    assert again.settings["edited_by"] == ["inject_noise"]


@pytest.mark.parametrize(
    ("stage", "where"),
    [("noise", r"stage 'noise', step 1 \(t=\d+\)"), ("block", r"stage 'block', step 1 \(t=\d+\), layer 'mid_block'")],
)
def test_the_first_value_that_is_not_finite_is_named(sd1, stage, where):
    @sdkit.on(stage, steps=[1], layer="mid_block" if stage == "block" else None)
    def spoil(event):
        event.value = event.value / 0

    with pytest.raises(ValueError, match=f"^{where}: this is the first .* NaN or infinity; it was edited by '.*spoil'"):
        generate(sd1, PROMPT, spoil)


# ---------------------------------------------------------------------------------------------------------------------
# What it does not hold


def test_neither_a_trace_nor_maps_keep_the_model(tmp_path):
    from conftest import random_pipeline

    trace, maps = Trace(), AttentionMaps()
    pipeline = random_pipeline(tmp_path)
    unet = weakref.ref(pipeline.unet)
    generate(pipeline, PROMPT, trace, maps)
    assert torch.equal(trace.branch(2, model=pipeline).latents, trace.latents)
    del pipeline
    gc.collect()
    assert unet() is None
    assert trace.latents.shape == (1, 4, 8, 8)
    assert maps.heat("star").shape == (64, 64)


@pytest.mark.parametrize("name", ["guidance_scale", "generator", "visits", "settings"])
def test_what_makes_a_run_cannot_be_changed_behind_its_record(sd1, name):
    def change(event):
        setattr(event.run, name, None)

    with pytest.raises(AttributeError, match=f"cannot assign to field '{name}'"):
        generate(sd1, PROMPT, change)
