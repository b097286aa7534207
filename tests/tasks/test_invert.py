import pytest
import torch
from conftest import random_pipeline
from diffusers import DDIMScheduler, StableDiffusionPipeline

import sdkit
from benchmarks.embedded import judge
from sdkit import Stage, hooks
from sdkit.events import INNER
from sdkit.measure import psnr
from sdkit.pictures import to_pixels
from sdkit.tiny import drawing
from sdkit.tiny.grammar import COLOURS

OUTER = [stage for stage in Stage if stage not in INNER]
CAPTIONS = [
    "a purple house left of an orange tree",
    "a purple star on a white background",
    "a blue boat on a white background",
    "a green mushroom on a white background",
]


@pytest.fixture(scope="module")
def drawn():
    return [drawing.draw_with_facts(caption, seed=103 + i) for i, caption in enumerate(CAPTIONS)]


@pytest.fixture(scope="module")
def inversion(drawn):
    return sdkit.invert([one.image for one in drawn], CAPTIONS)


@pytest.fixture(scope="module")
def way_back(inversion):
    trace = sdkit.Trace([*OUTER, "attention", "self_attention"], budget="2GB")
    sdkit.text_to_image(
        CAPTIONS,
        latents=inversion.latents,
        guidance_scale=1,
        scheduler="ddim",
        num_inference_steps=50,
        seed=0,
        hooks=[trace],
    )
    return trace


@pytest.mark.slow
def test_the_way_back_through_50_steps_loses_next_to_nothing_beside_the_autoencoder(drawn, way_back):
    pictures = [one.image for one in drawn]
    alone, back = sdkit.round_trip(pictures).psnr, psnr(to_pixels(pictures), to_pixels(way_back.images))
    for autoencoder, both in zip(alone, back, strict=True):
        assert both > autoencoder - 0.1  # 1.5 is the promise


@pytest.mark.slow
def test_the_way_back_visits_the_same_latents(inversion, way_back):
    found = {record.t: record.value for record in inversion[Stage.LATENT]}
    for record in way_back[Stage.LATENT][:-1]:
        apart = (record.value - found[record.t]).norm() / found[record.t].norm()
        assert apart < 0.01, record.t
    assert [record.t for record in inversion[Stage.LATENT]] == [r.t for r in way_back[Stage.LATENT][-2::-1]]


@pytest.mark.slow
def test_words_changed_on_the_way_back_recolour_the_thing_and_keep_its_shape(drawn, way_back):
    edited = way_back.branch(25, prompt=[CAPTIONS[0], *_red(CAPTIONS[1:])], guidance_scale=3)
    read = judge.trained_eye().read(edited.images)[1:]
    assert (read[:, 1] == COLOURS.index("red") + 1).all()
    for one, before, after in zip(drawn[1:], way_back.images[1:], edited.images[1:], strict=True):
        mask = torch.from_numpy(one.masks[0]) > 0.5
        assert _cover(after, mask) > 0.8 * _cover(before, mask)
        outside = (to_pixels(before) - to_pixels(after))[0, :, ~mask]
        assert outside.square().mean().sqrt() < 0.15  # of a range of 2


@pytest.mark.slow
@pytest.mark.parametrize(("guidance_scale", "cover"), [(1, 0.93), (2, 0.85)])
def test_the_attention_of_the_way_back_keeps_shape_and_place_under_other_words(
    drawn, inversion, way_back, guidance_scale, cover
):
    edited = sdkit.text_to_image(
        [CAPTIONS[0], *_red(CAPTIONS[1:])],
        latents=inversion.latents,
        guidance_scale=guidance_scale,
        scheduler="ddim",
        num_inference_steps=50,
        seed=0,
        hooks=[hooks.keep_layout(way_back, until=1), hooks.keep_self_attention(way_back, until=0.8)],
    )
    read = judge.trained_eye().read(edited.images)[1:]
    assert (read[:, 1] == COLOURS.index("red") + 1).all()
    for one, before, after in zip(drawn[1:], way_back.images[1:], edited.images[1:], strict=True):
        mask = torch.from_numpy(one.masks[0]) > 0.5
        assert _cover(after, mask) > cover * _cover(before, mask)


def _red(captions):
    return [caption.replace(caption.split()[1], "red", 1) for caption in captions]


def _cover(picture, mask):
    """Intersection over union of the mask and what differs from the background."""
    pixels = to_pixels(picture)[0]
    thing = (pixels - pixels.flatten(1).median(1).values.view(3, 1, 1)).norm(dim=0) > 0.5
    return ((thing & mask).sum() / (thing | mask).sum()).item()


@pytest.mark.parametrize("prediction_type", [pytest.param("epsilon", marks=pytest.mark.slow), "v_prediction"])
def test_ddim_from_the_noise_found_gives_the_latents_back_with_either_prediction(prediction_type, tmp_path):
    pipeline = random_pipeline(tmp_path, prediction_type)
    picture = drawing.draw("a red star").resize((64, 64))
    trace = sdkit.invert(picture, "a red star", model=pipeline, num_inference_steps=50)
    back = sdkit.text_to_image(
        "a red star",
        model=pipeline,
        latents=trace.latents,
        guidance_scale=1,
        scheduler="ddim",
        num_inference_steps=50,
    )
    z = sdkit.encode(picture, model=pipeline).tensor
    assert (back.latents - z).norm() / z.norm() < 1e-2


@pytest.mark.slow
def test_refinement_is_what_brings_it_back(drawn):
    residuals = {}
    for refinements in (0, 10):
        trace = sdkit.invert(drawn[0].image, CAPTIONS[0], refinements=refinements, num_inference_steps=10)
        residuals[refinements] = trace.settings["residuals"]
        assert len(residuals[refinements]) == 10
    assert residuals[10][0] < residuals[0][0] / 5  # from latents without noise: the longest way and the slowest
    assert max(residuals[10][1:]) < 1e-4 < 0.03 < min(residuals[0][1:])


@pytest.mark.slow
def test_the_trace_tells_the_whole_way_and_cannot_be_branched(inversion, tmp_path):
    stages = [record.stage for record in inversion]
    assert stages[:4] == [Stage.TOKENS, Stage.TEXT, Stage.PIXELS, Stage.POSTERIOR]
    assert stages[4:] == [Stage.NOISE, Stage.DENOISED, Stage.LATENT] * 50
    assert inversion.prompt == CAPTIONS
    assert inversion.settings["process"] == "inversion"
    assert sdkit.Trace.load(inversion.save(tmp_path / "a.safetensors")).settings == inversion.settings
    with pytest.raises(ValueError, match="cannot be branched: it shows the inversion process"):
        inversion.branch(3)


def test_an_edit_is_heard_from_there_on(drawn):
    @sdkit.on(Stage.LATENT)
    def nudge(event):
        if event.step == 2:
            event.value = event.value * 1.5

    plain, edited = (
        sdkit.invert(drawn[1].image, CAPTIONS[1], num_inference_steps=4, refinements=0, hooks=hooks)
        for hooks in ([], [nudge])
    )
    assert plain.compare(edited).parting.step == 2
    assert edited.settings["edited_by"] == [nudge.__qualname__]


def test_what_cannot_be_undone_is_refused(sd1):
    clipping = with_a_scheduler_that_clips(sd1)
    with pytest.raises(ValueError, match="clips x0"):
        sdkit.invert(drawing.draw("a star").resize((64, 64)), "a star", model=clipping)
    with pytest.raises(ValueError, match="refinements must be a whole number from 0 up"):
        sdkit.invert(drawing.draw("a star"), refinements=-1)


def with_a_scheduler_that_clips(pipeline):
    clipping = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    clipping.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=True)
    return clipping
