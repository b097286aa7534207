"""What a hook may ask of its run: another prediction, what one stands for, other words, another step, less work."""

import itertools

import diffusers
import pytest
import torch
from carried import random_controlnet, with_controlnet
from conftest import EACH_FAMILY, MAKERS, random_pipeline
from test_parity import photo

import sdkit
from sdkit import Stage, Trace

RUN = {"prompt": "a red star", "num_inference_steps": 4, "guidance_scale": 5.0, "seed": 7}


def draw(pipeline, *hooks, **more):
    return sdkit.text_to_image(model=pipeline, hooks=hooks, **RUN | more)


@pytest.mark.parametrize(
    ("family", "scheduler"), list(itertools.product(MAKERS, ["ddim", "euler", "dpmpp_2m", "heun", "pndm"]))
)
def test_the_unet_asked_again_says_the_same_and_each_prediction_has_its_x0(pipelines, family, scheduler):
    checked = []

    @sdkit.on(Stage.DENOISED)
    def ask(event):
        run = event.run
        noise = run.predict()
        guided = run.guide(noise)
        assert torch.equal(noise, run.seen[Stage.NOISE])
        assert torch.equal(guided, run.seen[Stage.GUIDED])
        assert torch.equal(run.x0_of(guided), event.value)
        assert torch.allclose(run.noise_of(event.value), guided, atol=2e-3)
        x = event.alpha * event.value + event.sigma * run.eps_of(guided)
        assert torch.allclose(x, run.seen[Stage.LATENT], atol=1e-3 * float(x.abs().max()))
        checked.append(event.step)

    plain = draw(pipelines[family], scheduler=scheduler)
    assert torch.equal(draw(pipelines[family], ask, scheduler=scheduler).latents, plain.latents)
    assert len(checked) >= 4


def test_it_can_be_asked_for_other_words_another_x_another_model_and_another_inside(pipelines, tmp_path):
    first, second = pipelines["sd1"], random_pipeline(tmp_path)
    torch.nn.init.normal_(second.unet.conv_out.weight)
    rows = []

    @sdkit.on(Stage.NOISE)
    def ask(event):
        run, (uncond, cond) = event.run, event.value.chunk(2)
        text = run.condition.text.chunk(2)[1]
        assert torch.allclose(run.predict(text=text), cond, atol=1e-5)
        assert run.predict(text=torch.cat([run.condition.text, text])).shape[0] == 3
        assert not torch.equal(run.predict(x=run.seen[Stage.LATENT] + 1), event.value)
        assert not torch.equal(run.predict(model=sdkit.load(second)), event.value)
        seen = []
        run.predict(hooks=[sdkit.on(Stage.BLOCK)(lambda inside: seen.append(inside.layer))])
        rows.append(len(seen))
        assert uncond.shape == cond.shape

    result = draw(first, ask)
    assert rows == [len(rows) and rows[0]] * 4
    assert torch.equal(result.latents, draw(first).latents)
    assert result.settings["edited_by"] == []


def test_gradients_flow_through_a_prediction_and_its_attention_where_they_are_asked_for(pipelines):
    lengths = []

    @sdkit.on(Stage.NOISE, steps=[1])
    def ask(event):
        run, maps = event.run, []
        inside = sdkit.on(Stage.ATTENTION)(lambda one: maps.append(one.value))
        with torch.enable_grad():
            x = run.seen[Stage.LATENT].detach().requires_grad_()
            run.predict(x=x, hooks=[inside])
            (gradient,) = torch.autograd.grad(maps[0][..., 2].sum(), x, retain_graph=True)
            lengths.append(float(gradient.norm()))
        assert not run.predict(x=run.seen[Stage.LATENT]).requires_grad
        assert not event.value.requires_grad

    draw(pipelines["sd1"], ask)
    assert len(lengths) == 1
    assert lengths[0] > 0


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_words_can_change_at_any_step_and_the_trace_has_what_each_heard(pipelines, family):
    model = sdkit.load(pipelines[family])
    other, _ = model.encode_text(model.tokenize(["a blue cat", "a blue cat"]))

    @sdkit.on(Stage.CONTEXT, steps=[2, 3])
    def swap(event):
        if event.layer is None:
            event.value = other

    trace = Trace()
    changed = draw(pipelines[family], swap, trace)
    assert [(one.step, torch.equal(one.value, other)) for one in trace[Stage.CONTEXT]] == [(2, True), (3, True)]
    plain = Trace()
    draw(pipelines[family], plain)
    assert not plain[Stage.CONTEXT]
    same = [torch.equal(a.value, b.value) for a, b in zip(trace[Stage.LATENT], plain[Stage.LATENT], strict=True)]
    assert same == [True, True, True, False, False]
    assert changed.settings["edited_by"] == ["swap"]


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_rows_beyond_the_two_halves_are_asked_and_rows_left_out_are_not(pipelines, family):
    seen = []

    @sdkit.on(Stage.CONTEXT)
    def widen(event):
        if event.layer is None:
            uncond, cond = event.value.chunk(2)
            event.value = torch.cat([uncond, cond, cond]) if event.step < 2 else cond

    @sdkit.on(Stage.GUIDED)
    def look(event):
        seen.append(len(event.run.seen[Stage.NOISE]))

    result = draw(pipelines[family], widen, look)
    assert seen == [3, 3, 1, 1]
    assert result.latents.isfinite().all()
    plain = draw(pipelines[family], guidance_scale=1.0)
    alone = draw(pipelines[family], sdkit.on(Stage.CONTEXT)(_words_alone))
    assert torch.equal(alone.latents, plain.latents)


def _words_alone(event):
    if event.layer is None:
        event.value = event.value[len(event.value) // 2 :]


def test_rows_beyond_the_halves_go_with_a_controlnet_in_guess_mode_too(tmp_path):
    base = random_pipeline(tmp_path)
    pipeline = with_controlnet(base, random_controlnet(base, 1))

    @sdkit.on(Stage.CONTEXT)
    def widen(event):
        if event.layer is None:
            event.value = torch.cat([event.value, event.value.chunk(2)[1]])

    for guess_mode in (False, True):
        more = {"control_image": photo(1), "guess_mode": guess_mode}
        assert torch.allclose(
            draw(pipeline, widen, **more).latents, draw(pipeline, **more).latents, rtol=1e-4, atol=1e-4
        )


def test_a_context_that_fits_no_picture_is_refused(pipelines):
    widen = sdkit.on(Stage.CONTEXT)(lambda event: setattr(event, "value", torch.cat([event.value, event.value[:1]])))
    with pytest.raises(ValueError, match="5 rows, which is no multiple of the 2 pictures"):
        draw(pipelines["sd1"], widen, num_images_per_prompt=2)


@pytest.mark.parametrize("stage", [Stage.QUERY, Stage.KEY, Stage.VALUE])
def test_queries_keys_and_values_are_seen_without_changing_a_bit_and_changed_with_effect(pipelines, stage):
    layers = []
    reading = draw(pipelines["sd1"], sdkit.on(stage)(lambda event: layers.append(event.layer)))
    plain = draw(pipelines["sd1"])
    assert torch.equal(reading.latents, plain.latents)
    assert {layer.rpartition(".")[2] for layer in layers} == {"attn1", "attn2"}

    def double(event):
        event.value = event.value * 2

    edited = draw(pipelines["sd1"], sdkit.on(stage, layer="mid_block")(double))
    assert not torch.equal(edited.latents, plain.latents)
    assert edited.settings["edited_by"] == [double.__qualname__.rpartition("<locals>.")[2]]


def test_keys_and_values_may_grow_together_and_not_apart(pipelines):
    def longer(event):
        if event.layer.endswith("attn1"):
            event.value = torch.cat([event.value, event.value], dim=1)

    plain = draw(pipelines["sd1"])
    twice = draw(pipelines["sd1"], sdkit.on(Stage.KEY, Stage.VALUE)(longer))
    assert torch.allclose(twice.latents, plain.latents, rtol=1e-3, atol=1e-3)  # each place counts twice
    with pytest.raises(ValueError, match=r"hooks left \d+ keys and \d+ values; expected as many of both"):
        draw(pipelines["sd1"], sdkit.on(Stage.KEY)(longer))


# ---------------------------------------------------------------------------------------------------------------------
# Another step


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmpp_2m", "unipc", "ddpm", "heun", "lms"])
def test_a_run_sent_back_to_its_beginning_is_the_run_again(pipelines, scheduler):
    trace, plain = Trace(), Trace()
    draw(pipelines["sd1"], plain, scheduler=scheduler)
    first = plain[Stage.LATENT][0].value

    @sdkit.on(Stage.LATENT)
    def back(event):
        if event.step is None and event.run.keep("jumped", list) == []:
            event.run.keep("jumped", list).append(1)
            event.run.go_to(0, first)

    if scheduler == "ddpm":  # which draws from where the generator stands
        assert draw(pipelines["sd1"], back, scheduler=scheduler).settings["visited"] == [0, 1, 2, 3] * 2
        return
    result = draw(pipelines["sd1"], back, trace, scheduler=scheduler)
    steps = [one.step for one in trace[Stage.LATENT]]
    assert steps == 2 * [one.step for one in plain[Stage.LATENT]]
    assert torch.equal(result.latents, plain[Stage.LATENT][-1].value)
    assert result.settings["visited"] == [step for step in steps if step is not None]


def test_a_run_can_leave_steps_out_and_is_at_the_level_it_went_to(pipelines):
    levels = []

    @sdkit.on(Stage.LATENT, steps=[1])
    def forward(event):
        levels.append(event.run.level_of(3))
        event.run.go_to(3, event.value)

    trace = Trace()
    draw(pipelines["sd1"], forward, trace)
    assert [one.step for one in trace[Stage.LATENT]] == [0, 1, 3, None]
    assert trace.levels[3] == levels[0]


@pytest.mark.parametrize(
    ("scheduler", "step", "sides", "sentence"),
    [
        ("ddim", 9, 8, "there is no step 9 to go to; the run has 4"),
        ("ddim", 1, 2, "but .* is needed"),
        ("pndm", 1, 8, "PNDMScheduler cannot begin at step 1"),
        ("heun", 1, 8, "HeunDiscreteScheduler cannot begin at step 1"),
        ("lms", 1, 8, "LMSDiscreteScheduler cannot begin at step 1"),
    ],
)
def test_where_a_run_cannot_go_is_said(pipelines, scheduler, step, sides, sentence):
    @sdkit.on(Stage.LATENT, steps=[2])
    def jump(event):
        event.run.go_to(step, event.value[..., :sides])

    with pytest.raises(ValueError, match=sentence):
        draw(pipelines["sd1"], jump, scheduler=scheduler)


def test_a_run_that_jumped_is_not_branched_and_says_so_when_it_is_made_again(pipelines, tmp_path):
    @sdkit.on(Stage.LATENT, steps=[3])
    def back(event):
        if not event.run.keep("jumped", list):
            event.run.keep("jumped", list).append(1)
            event.run.go_to(1, event.value)

    trace = Trace()
    draw(None, back, trace, num_inference_steps=4).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a hook has sent its run to other steps"):
        trace.branch(2)
    with pytest.warns(UserWarning, match="edited by hooks.*visited"):
        again = sdkit.rerun(tmp_path / "a.png")
    assert "visited" not in again.settings  # what is saved says what made it


# ---------------------------------------------------------------------------------------------------------------------
# Less work


def count_calls(pipeline):
    """How often each block of a pipeline's U-Net computes, by the class's own forward."""
    counts = dict.fromkeys(("down_blocks.1", "mid_block", "up_blocks.0"), 0)
    for name in counts:
        module = pipeline.unet.get_submodule(name)
        convolution = module.resnets[0].conv1
        convolution.register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
    return counts


def test_a_part_that_is_given_its_output_is_not_computed(tmp_path):
    pipeline = random_pipeline(tmp_path)
    counts = count_calls(pipeline)
    parts = list(counts)

    @sdkit.on(Stage.CONTEXT)
    def cache(event):
        run = event.run
        if event.step % 2 == 0:
            run.hold(*parts)
            return
        for part in parts:
            run.give(part, run.held[part])

    result = draw(pipeline, cache)
    assert set(counts.values()) == {2}
    assert result.settings["given"] == parts
    draw(pipeline)
    assert set(counts.values()) == {6}


def test_the_same_output_given_changes_nothing_and_a_whole_prediction_can_be_given(pipelines):
    pipeline = pipelines["sd1"]
    trace = Trace()
    plain = draw(pipeline, trace)
    noises = [one.value for one in trace[Stage.NOISE]]
    give = sdkit.on(Stage.CONTEXT)(lambda event: event.run.give("", noises[event.step]))
    assert torch.equal(draw(pipeline, give).latents, plain.latents)
    with pytest.raises(ValueError, match="has no part 'middle'"):
        draw(pipeline, sdkit.on(Stage.CONTEXT)(lambda event: event.run.hold("middle")))


def test_a_hook_that_stops_a_run_at_a_latent_ends_it_with_that_latent(pipelines):
    trace = Trace()
    draw(pipelines["sd1"], trace)
    stop = sdkit.on(Stage.LATENT, steps=[2])(lambda event: event.run.stop())
    result = draw(pipelines["sd1"], stop)
    assert torch.equal(result.latents, trace[Stage.LATENT][2].value)
    assert result.settings["stopped_after"] == 1


# ---------------------------------------------------------------------------------------------------------------------
# Compiled


def in_place(unet):
    unet.compile(backend="eager")
    return unet


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [lambda unet: torch.compile(unet, backend="eager"), in_place], ids=["whole", "in place"]
)
def test_a_compiled_unet_is_driven_and_hooks_inside_fall_back_to_the_uncompiled_one(how, tmp_path):
    pipeline = random_pipeline(tmp_path)
    plain = draw(pipeline)
    parts = dict(pipeline.components)
    parts["unet"] = how(parts["unet"])
    compiled = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    assert torch.allclose(draw(compiled).latents, plain.latents, rtol=1e-4, atol=1e-4)
    assert sdkit.load(compiled).fingerprint() == sdkit.load(pipeline).fingerprint()
    seen = []
    with pytest.warns(UserWarning, match="this run calls the U-Net uncompiled"):
        looked = draw(compiled, sdkit.on(Stage.BLOCK)(lambda event: seen.append(event.layer)))
    assert torch.equal(looked.latents, plain.latents)
    assert seen
