"""Callbacks that were written for diffusers act in sdkit as they do in diffusers' own pipelines, to the bit."""

import diffusers
import numpy as np
import pytest
import torch
from carried import random_controlnet, with_controlnet, with_ip_adapter
from conftest import SD2, random_pipeline, random_xl_pipeline
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
    SDXLControlnetCFGCutoffCallback,
)
from test_parity import MASK, kind_of, photo, reference_scheduler

import sdkit
from sdkit import hooks

MAKERS = {
    "sd1": random_pipeline,
    "sd2": lambda folder: random_pipeline(folder, "v_prediction", **SD2),
    "sdxl": random_xl_pipeline,
    "lcm": lambda folder: random_pipeline(folder, time_cond_proj_dim=8),
    "inpainting": lambda folder: random_pipeline(folder, in_channels=9),
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


RUN = {"prompt": "a red star", "num_inference_steps": 5, "guidance_scale": 5.0}
PICTURE = {"image": photo(0), "strength": 0.8}
PAINT = {**PICTURE, "mask_image": MASK}


def both(pipeline, callback, arguments=RUN, tensors=None, scheduler="ddim", kind=None):
    """Latents and pictures by diffusers and by sdkit, the callback made anew for each."""
    task = "inpaint" if "mask_image" in arguments else "image" if "image" in arguments else "text"
    kind = kind or kind_of(pipeline, task)
    parts = {**pipeline.components, "scheduler": reference_scheduler(scheduler, pipeline)}
    if issubclass(kind, diffusers.StableDiffusionMixin) and "Consistency" not in kind.__name__:
        parts = {name: part for name, part in parts.items() if name != "controlnet" or "ControlNet" in kind.__name__}
    extra = {} if "XL" in kind.__name__ else {"safety_checker": None, "requires_safety_checker": False}
    pipe = kind(**parts, **{k: v for k, v in extra.items() if k not in parts})
    pipe.set_progress_bar_config(disable=True)
    sizes = {"height": 64, "width": 64} if task == "inpaint" else {}
    seen = []

    def keep(given, made):
        def called(pipeline, step, t, values):
            after = given(pipeline, step, t, values)
            made.append((step, float(t), type(t), pipeline.num_timesteps, pipeline.guidance_scale, sorted(values)))
            return after

        return called

    called = callback()
    names = list(tensors or getattr(called, "tensor_inputs", ["latents"]))
    theirs, ours = [], []
    theirs_latents = pipe(
        **arguments,
        **sizes,
        generator=torch.Generator().manual_seed(7),
        callback_on_step_end=keep(called, theirs),
        callback_on_step_end_tensor_inputs=names,
        output_type="latent",
    ).images
    function = sdkit.image_to_image if task != "text" else sdkit.text_to_image
    result = function(
        model=pipeline,
        scheduler=scheduler,
        generator=torch.Generator().manual_seed(7),
        hooks=[hooks.from_diffusers(keep(callback(), ours), names)],
        **arguments,
    )
    assert ours == theirs
    seen.append(result)
    return theirs_latents, result.latents


def assert_equal(pair):
    theirs, ours = pair
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "unipc", "heun", "pndm"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_latents_that_a_callback_replaces_go_on_as_in_diffusers(pipelines, family, scheduler):
    def callback(_pipeline, step, _t, values):
        return {"latents": values["latents"] * (0.9 if step == 1 else 1)}

    assert_equal(both(pipelines[family], lambda: callback, scheduler=scheduler))


@pytest.mark.parametrize("arguments", [RUN, RUN | PICTURE, RUN | PAINT], ids=["text", "image", "inpaint"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_guidance_that_an_official_callback_cuts_off_is_off_as_in_diffusers(pipelines, family, arguments):
    kind = SDXLCFGCutoffCallback if family == "sdxl" else SDCFGCutoffCallback

    def cut():
        return kind(cutoff_step_ratio=None, cutoff_step_index=1)

    if "mask_image" in arguments:  # where diffusers halves the mask of a run that it has already halved

        def halved(pipeline, step, t, values):
            after = cut()(pipeline, step, t, values)
            return after | ({"mask": values["mask"][-1:]} if step == 1 else {})

        assert_equal(both(pipelines[family], lambda: halved, arguments, [*kind.tensor_inputs, "mask"]))
        return
    plain = both(pipelines[family], lambda: lambda *given: given[-1], arguments)
    pair = both(pipelines[family], cut, arguments)
    assert_equal(pair)
    assert not torch.equal(pair[1], plain[1])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_guidance_scale_that_a_callback_sets_counts_from_the_next_step_on(pipelines, family):
    def callback(pipeline, step, _t, values):
        pipeline._guidance_scale = 2.0 + step
        return values

    assert_equal(both(pipelines[family], lambda: callback))


@pytest.mark.parametrize("arguments", [RUN, RUN | PICTURE, RUN | PAINT], ids=["text", "image", "inpaint"])
def test_a_run_that_a_callback_interrupts_ends_with_the_latents_it_has(pipelines, arguments):
    def callback(pipeline, step, _t, values):
        pipeline._interrupt = step == 2
        return values

    assert_equal(both(pipelines["sd1"], lambda: callback, arguments))
    assert not getattr(pipelines["sd1"], "_interrupt", False)


@pytest.mark.parametrize(
    ("family", "arguments", "names"),
    [
        ("sd1", RUN, ["prompt_embeds", "negative_prompt_embeds"]),
        ("sdxl", RUN | PICTURE, ["prompt_embeds", "add_text_embeds", "add_time_ids"]),
        ("sd1", RUN | PAINT, ["prompt_embeds", "mask"]),
        ("inpainting", RUN | PAINT, ["prompt_embeds", "mask", "masked_image_latents"]),
        ("sdxl", RUN | PAINT, ["add_text_embeds", "mask"]),
    ],
    ids=["sd1-text", "sdxl-image", "sd1-inpaint", "inpainting", "sdxl-inpaint"],
)
def test_each_tensor_is_handed_over_and_replaced_as_in_diffusers(pipelines, family, arguments, names):
    given = []

    def callback(_pipeline, step, _t, values):
        given.append({name: value.clone() for name, value in values.items()})
        if step == 1:
            values |= {name: value.roll(1, dims=-1) * 0.5 for name, value in values.items() if "neg" not in name}
        return values

    assert_equal(both(pipelines[family], lambda: callback, arguments, ["latents", *names]))
    half = len(given) // 2
    for theirs, ours in zip(given[:half], given[half:], strict=True):
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "w_embedding", "denoised"])
def test_latency_models_hand_over_their_own_tensors(pipelines, name):
    given = []

    def callback(_pipeline, step, _t, values):
        given.append(values[name].clone())
        return {name: values[name] * 0.8}

    kind = diffusers.LatentConsistencyModelPipeline
    arguments = RUN | {"num_inference_steps": 3}
    assert_equal(both(pipelines["lcm"], lambda: callback, arguments, [name], "lcm", kind))
    assert all(map(torch.equal, given[: len(given) // 2], given[len(given) // 2 :]))


def test_a_callback_that_asks_for_what_the_run_has_not_is_told_so(pipelines):
    with pytest.raises(ValueError, match="'add_time_ids', which this run does not have"):
        sdkit.text_to_image(
            model=pipelines["sd1"], hooks=[hooks.from_diffusers(lambda *given: given[-1], ["add_time_ids"])], **RUN
        )
    with pytest.raises(TypeError, match="must return a dictionary"):
        sdkit.text_to_image(model=pipelines["sd1"], hooks=[hooks.from_diffusers(lambda *_: None)], **RUN)


def test_what_a_callback_sets_on_the_pipeline_stays_off_the_model(pipelines):
    def callback(pipeline, _step, _t, values):
        pipeline._guidance_scale = 3.0
        pipeline.note = "mine"
        return values

    before = dict(vars(pipelines["sd1"]))
    result = sdkit.text_to_image(model=pipelines["sd1"], seed=1, hooks=[hooks.from_diffusers(callback)], **RUN)
    assert vars(pipelines["sd1"]) == before
    assert result.settings["edited_by"] == ["from_diffusers"]


def test_the_callback_for_controlnets_cuts_guidance_and_pictures(tmp_path):
    base = random_xl_pipeline(tmp_path)
    pipeline = with_controlnet(base, random_controlnet(base, 1))
    cut = lambda: SDXLControlnetCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)  # noqa: E731
    control = {"image": photo(1)}
    pipe = diffusers.StableDiffusionXLControlNetPipeline(
        **{**pipeline.components, "scheduler": reference_scheduler("ddim", pipeline)}
    )
    pipe.set_progress_bar_config(disable=True)
    called = cut()
    theirs = pipe(
        **RUN,
        **control,
        generator=torch.Generator().manual_seed(7),
        callback_on_step_end=called,
        callback_on_step_end_tensor_inputs=called.tensor_inputs,
        output_type="latent",
    ).images
    ours = sdkit.text_to_image(
        model=pipeline,
        scheduler="ddim",
        generator=torch.Generator().manual_seed(7),
        control_image=photo(1),
        hooks=[hooks.from_diffusers(cut())],
        **RUN,
    )
    assert torch.equal(theirs, ours.latents)


def test_several_callbacks_and_that_for_ip_adapters_act_as_in_diffusers(tmp_path):
    latents = []
    for ours in (False, True):
        pipeline = with_ip_adapter(random_pipeline(tmp_path))
        callback = MultiPipelineCallbacks(
            [
                IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1),
                SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=3),
            ]
        )
        arguments = RUN | {"ip_adapter_image": photo(2), "generator": torch.Generator().manual_seed(7)}
        if ours:
            one = sdkit.text_to_image(
                model=pipeline, scheduler="ddim", hooks=[hooks.from_diffusers(callback)], **arguments
            )
            latents.append(one.latents)
        else:
            pipeline.scheduler = reference_scheduler("ddim", pipeline)
            pipeline.set_progress_bar_config(disable=True)
            names = callback.tensor_inputs
            try:
                latents.append(
                    pipeline(
                        **arguments,
                        callback_on_step_end=callback,
                        callback_on_step_end_tensor_inputs=names,
                        output_type="latent",
                    ).images
                )
            except RuntimeError:  # diffusers leaves the adapter's embeddings at two rows
                pytest.skip("diffusers itself does not run these two together")
    assert np.array_equal(*(one.numpy() for one in latents))
