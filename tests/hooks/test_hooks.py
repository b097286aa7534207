"""Each ready-made hook has the effect that it claims, on the embedded model."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sdkit
from benchmarks.embedded import judge
from sdkit import AttentionMaps, Stage, Trace, hooks
from sdkit.hooks import attention, words
from sdkit.tiny import drawing, grammar


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
    steered, _ = draw(hooks.steer(loss, scale=6.0))
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
    theirs = tiny.pipeline(
        "a star",
        num_inference_steps=8,
        guidance_scale=tiny.guidance_scale,
        generator=[torch.Generator().manual_seed(7)],
        callback_on_step_end=callback,
        output_type="latent",
    ).images
    assert ours == calls
    assert torch.equal(result.latents, theirs)


def test_two_runs_driven_in_turn_do_not_touch_each_other(tiny):
    alone = [draw(prompt=prompt, steps=4)[1] for prompt in ("a star", "a red cat")]
    runs = [sdkit.stages(prompt, seed=7, num_inference_steps=4) for prompt in ("a star", "a red cat")]
    traces = [Trace(), Trace()]
    for events in zip(*runs, strict=True):
        for event, trace in zip(events, traces, strict=True):
            trace(event)
    for trace, one in zip(traces, alone, strict=True):
        assert trace.compare(one).parting is None


# ---------------------------------------------------------------------------------------------------------------------
# Words and attention


def paint(prompt, seed, *given, steps=12):
    return sdkit.text_to_image(prompt, seed=seed, num_inference_steps=steps, hooks=given).image


def colour(picture):
    """Which of the world's paints the thing in a picture has."""
    found = np.median(np.asarray(picture, dtype=float)[judge.silhouette(picture)], axis=0)
    return min(drawing.PAINTS, key=lambda name: ((np.array(drawing.PAINTS[name]) - found) ** 2).sum())


def overlap(one, other):
    a, b = judge.silhouette(one), judge.silhouette(other)
    return (a & b).sum() / (a | b).sum()


@pytest.mark.slow
def test_another_colour_keeps_the_layout_with_the_maps_of_a_trace(tiny, tmp_path):
    kept, free = [], []
    for seed, kind in enumerate(("star", "house", "cat", "square")):
        prompt, other = (f"a {shade} {kind} on a white background" for shade in ("red", "blue"))
        trace = Trace(["tokens", "attention"])
        red = paint(prompt, seed, trace)
        trace = Trace.load(trace.save(tmp_path / "run.safetensors"))
        blue = paint(other, seed, hooks.keep_layout(trace))
        assert (colour(red), colour(blue)) == ("red", "blue")
        kept.append(overlap(red, blue))
        free.append(overlap(red, paint(other, seed)))
    assert np.mean(kept) >= 0.8
    assert np.mean(kept) > np.mean(free) + 0.2


def test_a_layout_that_is_not_changed_is_kept_to_the_picture(tiny):
    trace = Trace(["tokens", "attention"])
    plain = paint("a red star", 1, trace, steps=4)
    assert paint("a red star", 1, hooks.keep_layout(trace, until=1.0), steps=4).tobytes() == plain.tobytes()
    self_attention = Trace(["self_attention"])
    paint("a red star", 1, self_attention, steps=4)
    assert paint("a red star", 1, hooks.keep_self_attention(self_attention), steps=4).tobytes() == plain.tobytes()


@pytest.mark.filterwarnings("ignore:sdkit/tiny does not know")
def test_words_that_come_or_go_are_aligned(tiny):
    """What a token of the one prompt becomes in the other."""
    trace = Trace(["tokens", "attention"])
    paint("a red star", 1, trace, steps=1)
    run = next(sdkit.stages("a small zebra star", seed=1)).run
    for event in sdkit.stages("a small zebra star", seed=1):
        run = event.run
        if event.stage is Stage.LATENT:
            break
    moves, free = attention._alignment(trace, run)
    (move,), (row,) = moves, free
    assert move[0, 0] == move[1, 1] == 1
    assert torch.allclose(move[2, 2:7], torch.full((5,), 0.2))  # red becomes small and the four pieces of zebra
    assert move[3, 7] == 1
    assert row.sum() == 0
    assert torch.allclose(move[:4].sum(1), torch.ones(4))


def test_a_trace_that_lacks_what_a_hook_needs_is_said(tiny):
    trace = Trace(["tokens", "attention"])
    paint("a red star", 1, trace, steps=2)
    with pytest.raises(ValueError, match=r"nothing of stage 'attention', step 2.*it has steps \[0, 1\] of it"):
        paint("a blue star", 1, hooks.keep_layout(trace), steps=4)
    with pytest.raises(ValueError, match=r"nothing of stage 'self_attention'.*Trace\(\['self_attention'\]\)"):
        paint("a blue star", 1, hooks.keep_self_attention(trace), steps=2)
    with pytest.raises(ValueError, match="tokens of 1 prompts for 2 pictures"):
        sdkit.text_to_image(["a cat", "a fish"], num_inference_steps=2, hooks=[hooks.keep_layout(trace)])


@pytest.mark.slow
def test_self_attention_of_another_run_keeps_shapes(tiny):
    kept, free = [], []
    for seed in (0, 4):
        trace = Trace(["self_attention"])
        red = paint("a red cat on a white background", seed, trace)
        kept.append(overlap(red, paint("a blue cat on a white background", seed, hooks.keep_self_attention(trace))))
        free.append(overlap(red, paint("a blue cat on a white background", seed)))
    assert np.mean(kept) > np.mean(free)


def test_a_local_blend_changes_only_where_the_word_looks(tiny):
    trace, maps = Trace(["tokens", "attention", "denoised"]), AttentionMaps(each_step=False)
    red = paint("a red cat on a white background", 4, trace, maps)
    given = [hooks.keep_layout(trace), hooks.local_blend(trace, maps, "cat")]
    blue, free = paint("a blue cat on a black background", 4, *given), paint("a blue cat on a black background", 4)
    assert colour(blue) == "blue"
    corner = [np.asarray(one, dtype=float)[:24, :24].mean() for one in (red, blue, free)]
    assert abs(corner[1] - corner[0]) < 8 < abs(corner[2] - corner[0])


@pytest.mark.slow
def test_a_word_weighs_more_or_less(tiny):
    """Of the noun the picture shows more and less."""
    areas = []
    for factor in (0.4, 1.0, 2.0):
        hook = [hooks.reweight("star", factor)]
        pictures = [paint("a red star on a white background", seed, *hook) for seed in (0, 2, 3)]
        areas.append(np.mean([judge.silhouette(picture).sum() for picture in pictures]))
    assert areas[0] < 0.9 * areas[1]
    assert areas[1] < 0.9 * areas[2]
    plain = paint("a red star", 0, steps=2)
    assert paint("a red star", 0, hooks.reweight("star", 1.0), steps=2).tobytes() == plain.tobytes()
    with pytest.raises(ValueError, match="no word 'moon' in the prompt; its words are 'a', 'star'"):
        draw(hooks.reweight("moon", 2.0))


def test_a_word_is_attended_to_where_it_is_painted(tiny):
    where = torch.zeros(4, 4)
    where[:, :2], where[:, 2:] = 1, -1
    seen = {}
    for strength in (0.0, 3.0):
        maps, trace = sdkit.AttentionMaps(), sdkit.Trace(["attention"])
        hook = hooks.paint_with_words("star", where, strength=strength, until=0.5)
        sdkit.text_to_image("a red star", model=tiny, seed=1, num_inference_steps=2, hooks=[hook, maps, trace])
        seen[strength] = maps.share("star", step=0, resolution=(16, 16))
        assert {record.step for record, _ in trace.edits} == {0}
        every = torch.stack([maps.share(place, step=0, resolution=(16, 16)) for place in range(32)])
        assert torch.allclose(every.sum(0), torch.ones(16, 16), atol=1e-5)
    assert (seen[3.0][:, :8] > seen[0.0][:, :8]).all()
    assert (seen[3.0][:, 8:] < seen[0.0][:, 8:]).all()


@pytest.mark.slow
def test_words_can_be_mixed(tiny):
    eye = judge.trained_eye()
    pictures = [paint("a red star on a white background", 3, hooks.mix_words("star", "heart", x)) for x in (0.0, 1.0)]
    assert pictures[0].tobytes() == paint("a red star on a white background", 3).tobytes()
    assert eye.read(pictures)[:, 0].tolist() == [1 + grammar.KINDS.index(kind) for kind in ("star", "heart")]
    with pytest.raises(ValueError, match="'zebra' has 4 tokens, which do not fit into the 1 of 'star'"):
        draw(hooks.mix_words("star", "zebra"))


@pytest.mark.slow
def test_padding_carries_the_background(tiny):
    """Without what the padding has read, the background comes out as chance has it; with it alone, it is there."""
    prompt, rim = "a red star on a blue background", []
    for parts in (words.PARTS, ("begin", "words"), ("padding",)):
        picture = np.asarray(paint(prompt, 3, hooks.hear_only(*parts)), dtype=float)
        rim.append(np.abs(picture[:4].mean((0, 1)) - drawing.BACKDROPS["blue"]).max())
    assert rim[0] < 12
    assert rim[2] < 12
    assert rim[1] > 25
    assert paint(prompt, 3, hooks.hear_only(*words.PARTS), steps=2).tobytes() == paint(prompt, 3, steps=2).tobytes()
    with pytest.raises(ValueError, match="unknown part of a prompt 'word'; did you mean 'words'"):
        hooks.hear_only("word")


def test_a_reading_is_what_the_text_encoder_makes_layer_by_layer(tiny):
    reading = sdkit.read_prompt("a red zebra")
    ids = tiny.tokenize(["a red zebra"])
    states = tiny.text_encoder(ids, output_hidden_states=True).hidden_states
    assert torch.equal(reading.hidden, torch.stack(states)[:, 0])
    assert [word.text for word in reading.words] == ["a", "red", "zebra"]
    assert torch.allclose(reading.of("zebra"), reading.hidden[:, 3:7].mean(1))
    assert reading.likeness("red")[2] == pytest.approx(1)
    assert reading.likeness("red", layer=0)[7] < 0.2 < reading.likeness("red")[7]  # the end has heard of it
    with pytest.raises(ValueError, match="no word 'star'"):
        reading.of("star")
