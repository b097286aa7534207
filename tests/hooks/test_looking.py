"""What looks at a run changes no bit of it, and tells what is there: held against values worked out by hand."""

import math

import pytest
import torch
from conftest import EACH_FAMILY

import sdkit
from sdkit import Stage, hooks
from sdkit.pictures import to_pil

PROMPT = "a red star on a blue background"
RUN = {"num_inference_steps": 2, "guidance_scale": 5.0, "scheduler": "ddim", "seed": 1}


def latents(model, *chosen, prompt=PROMPT, **more):
    return sdkit.text_to_image(prompt, model=model, hooks=chosen, **{**RUN, **more}).latents


def nothing(*_):
    pass


class Turned:
    """An autoencoder of a turn of the axes, of which it keeps so many."""

    def __init__(self, channels, kept):
        torch.manual_seed(0)
        self.axes = torch.linalg.qr(torch.randn(channels, channels)).Q[:, :kept]  # (c, k)

    def encode(self, x):
        return x @ self.axes

    def decode(self, features):
        return features @ self.axes.T


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_the_x0_of_each_half_is_what_its_prediction_stands_for(family, models):
    model, trace, shown = models[family], sdkit.Trace(["latent", "noise", "guided", "denoised"]), {}
    hook = hooks.preview_halves(lambda step, *pictures: shown.update({step: pictures}), every=1)
    looked = latents(model, hook, trace, prompt=[PROMPT, "a cat"])
    assert torch.equal(looked, latents(model, prompt=[PROMPT, "a cat"]))
    assert sorted(shown) == [0, 1]
    (x0,) = (one.value for one in trace[Stage.DENOISED] if one.step == 1)
    seen = []

    @sdkit.on(Stage.NOISE, steps=[1])
    def by_hand(event):  # guidance is as linear in x0 as it is in predictions
        uncond, cond = event.run.x0_of(event.value).chunk(2)
        assert torch.allclose(uncond + 5 * (cond - uncond), x0, atol=1e-4, rtol=1e-4)
        seen.extend(to_pil(model.decode(half)) for half in (uncond, cond))

    latents(model, by_hand, prompt=[PROMPT, "a cat"])
    for found, wanted in zip(shown[1], seen, strict=True):
        assert [one.tobytes() for one in found] == [one.tobytes() for one in wanted]
        assert len(found) == 2


def test_without_guidance_both_halves_are_the_one_there_is(models):
    shown = []
    latents(models["sd1"], hooks.preview_halves(lambda *given: shown.append(given)), guidance_scale=1.0)
    assert [step for step, *_ in shown] == [0, 1]
    assert all(a.tobytes() == b.tobytes() for _, (a,), (b,) in shown)


@pytest.mark.parametrize("stage", ["attention", "self_attention"])
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_entropy_is_that_of_the_weights(family, stage, models):
    model, trace, found = models[family], sdkit.Trace([stage]), {}
    hook = hooks.attention_entropy(lambda step, layer, value: found.update({(step, layer): value}), stage)
    assert torch.equal(latents(model, hook, trace), latents(model))
    assert len(found) == len(trace[stage])
    for one in trace[stage]:
        p = one.value[1:].double()  # (1, heads, h*w, L)
        by_hand = -(p * p.clamp(min=1e-300).log()).sum(-1).mean(-1) / math.log(p.shape[-1])
        assert torch.allclose(found[one.step, one.layer].double(), by_hand, atol=1e-5)


def test_to_look_at_all_alike_is_an_entropy_of_1_and_at_one_token_0(models):
    found = []

    @sdkit.on(Stage.ATTENTION)
    def alike_or_one(event):
        value = torch.zeros_like(event.value)
        value[..., 3] = 1
        event.value = value if event.step else torch.full_like(value, 1 / value.shape[-1])

    hook = hooks.attention_entropy(lambda step, _, value: found.append((step, value)))
    latents(models["sd1"], alike_or_one, hook)
    for step, value in found:
        assert torch.allclose(value, torch.full_like(value, 0.0 if step else 1.0), atol=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_probe_reads_what_it_was_fitted_to(guidance, models):
    model, prompts, traces = models["sd1"], ["a cat", "a dog", "a red star", "a house"], []
    for part in (prompts[:2], prompts[2:]):
        traces.append(sdkit.Trace(["block"]))
        latents(model, traces[-1], prompt=part, guidance_scale=guidance)
    labels = torch.tensor([0, 2, 1, 2])
    weights = hooks.fit_probe(traces, labels)
    read = {}
    hook = hooks.probe(weights, lambda step, scores: read.update({step: scores}))
    for part, wanted in ((prompts[:2], labels[:2]), (prompts[2:], labels[2:])):
        plain = latents(model, prompt=part, guidance_scale=guidance)
        assert torch.equal(latents(model, hook, prompt=part, guidance_scale=guidance), plain)
        assert sorted(read) == [0, 1]
        for scores in read.values():  # there are more weights than pictures, so that the fit is exact
            assert torch.allclose(scores, torch.eye(3)[wanted], atol=1e-3)


def test_a_probe_reads_the_place_in_pictures_it_has_not_seen(tiny):
    run = {"num_inference_steps": 3, "model": tiny}
    prompts = [f"a {thing} on the {side}" for thing in ("star", "fish", "house", "cat") for side in ("left", "right")]
    trace, read = sdkit.Trace(["block"]), []
    sdkit.text_to_image(prompts, seed=1, hooks=[trace], **run)
    weights = hooks.fit_probe([trace], torch.tensor([0, 1] * 4))
    reader = hooks.probe(weights, lambda step, scores: read.append((step, scores.argmax(1).tolist())))
    sdkit.text_to_image(["a tree on the left", "a boat on the right"], seed=90, hooks=[reader], **run)
    assert read[-1] == (2, [0, 1])


def test_labels_and_traces_have_to_agree(models):
    trace = sdkit.Trace(["block"])
    latents(models["sd1"], trace)
    with pytest.raises(ValueError, match="there are 3 labels for 2 rows of 'mid_block'"):
        hooks.fit_probe([trace], torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_an_autoencoder_that_edits_nothing_changes_no_bit_however_badly_it_reconstructs(family, models):
    model = models[family]
    shapes = []
    hook = hooks.sparse_autoencoder(Turned(32, 5), lambda features: shapes.append(features.shape) or features)
    assert torch.equal(latents(model, hook), latents(model))
    assert {shape[0] for shape in shapes} == {2}
    assert {shape[-1] for shape in shapes} == {5}


@pytest.mark.parametrize("kept", [5, 32])
def test_an_edited_feature_moves_the_block_along_its_own_direction_alone(kept, models):
    model, autoencoder, seen = models["sd1"], Turned(32, kept), []
    look = sdkit.on(Stage.BLOCK, layer="mid_block", steps=[0])(lambda event: seen.append(event.value.movedim(1, -1)))

    def more(features):
        return features + 2 * torch.eye(kept)[3]

    changed = latents(model, look, hooks.sparse_autoencoder(autoencoder, more), look)
    before, after = seen
    assert torch.allclose(after - before, (2 * autoencoder.axes[:, 3]).expand_as(before), atol=1e-5)
    assert not torch.allclose(changed, latents(model), atol=1e-4)
    both = latents(model, hooks.sparse_autoencoder(autoencoder, more), prompt=[PROMPT, "a cat"], seed=[1, 5])
    assert torch.allclose(both[:1], changed, atol=1e-4)
