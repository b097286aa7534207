"""Latents and pictures are those of diffusers' own pipelines, bit for bit, for every scheduler."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from conftest import random_pipeline
from PIL import Image

import sdkit

CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "deis": diffusers.DEISMultistepScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "dpmpp_2s": diffusers.DPMSolverSinglestepScheduler,
    "dpmpp_sde": diffusers.DPMSolverSDEScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "kdpm2": diffusers.KDPM2DiscreteScheduler,
    "kdpm2_a": diffusers.KDPM2AncestralDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "pndm": diffusers.PNDMScheduler,
    "tcd": diffusers.TCDScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
PREDICTIONS = ["epsilon", "v_prediction"]


def reference_scheduler(name, pipeline, seed=None):
    """What a user of diffusers would write for this short name."""
    extra = {"use_karras_sigmas": True} if name.endswith("_karras") else {}
    if name.startswith("dpmpp_sde"):
        extra["noise_sampler_seed"] = seed
    if name == "pndm":
        extra["skip_prk_steps"] = True  # as in Stable Diffusion's own configuration
    return CLASSES[name.removesuffix("_karras")].from_config(pipeline.scheduler.config, **extra)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    return {kind: random_pipeline(tmp_path_factory.mktemp(kind), kind) for kind in PREDICTIONS}


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def by_diffusers(pipeline, scheduler, seeds, kind=diffusers.StableDiffusionPipeline, **arguments):
    """Latents and pictures of diffusers' own pipeline with a scheduler of its own."""
    pipe = kind(**{**pipeline.components, "scheduler": scheduler}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(generator=seeded(*seeds), output_type="latent", **arguments).images
    return latents, pipe(generator=seeded(*seeds), **arguments).images


def assert_same(result, reference):
    latents, images = reference
    assert torch.equal(result.latents, latents)
    assert len(result.images) == len(images)
    for ours, theirs in zip(result.images, images, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_every_class_that_has_karras_spacing_has_it_as_a_short_name():
    karras = {f"{name}_karras" for name, kind in CLASSES.items() if "use_karras_sigmas" in kind().config}
    assert set(sdkit.SCHEDULERS) == set(CLASSES) | karras


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("name", sdkit.SCHEDULERS)
def test_a_run_equals_that_of_diffusers(name, guidance_scale, prediction_type, pipelines):
    pipeline = pipelines[prediction_type]
    arguments = {"prompt": "a red star", "num_inference_steps": 7, "guidance_scale": guidance_scale}
    reference = by_diffusers(pipeline, reference_scheduler(name, pipeline, 7), [7], **arguments)
    assert_same(sdkit.text_to_image(model=pipeline, scheduler=name, seed=7, **arguments), reference)


@pytest.mark.parametrize(
    ("kind", "extra"), [(diffusers.PNDMScheduler, {"skip_prk_steps": False}), (diffusers.SASolverScheduler, {})]
)
def test_a_scheduler_object_equals_the_same_one_in_diffusers(sd1, kind, extra):
    scheduler = kind.from_config(sd1.scheduler.config, **extra)
    arguments = {"prompt": "a red star", "num_inference_steps": 6, "guidance_scale": 4.0}
    reference = by_diffusers(sd1, kind.from_config(scheduler.config), [3], **arguments)
    assert_same(sdkit.text_to_image(model=sd1, scheduler=scheduler, seed=3, **arguments), reference)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": ["a red star", "a blue fish"], "negative_prompt": ["a cat", ""]},
        {"prompt": "a red star", "negative_prompt": "a blue background", "num_images_per_prompt": 3},
        {"prompt": ["a red star", "a tree"], "num_images_per_prompt": 2},
        {"prompt": "a red star", "height": 96, "width": 64},
        {"prompt": "a red star", "guidance_rescale": 0.7},
        {"prompt": "", "guidance_scale": 3},
        {"prompt": "a red star", "eta": 0.6},
        {"prompt": "zebra quagga " * 12},
    ],
    ids=lambda arguments: " ".join(arguments),
)
@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_batches_sizes_and_options_equal_those_of_diffusers(sd1, arguments):
    many = 1 if isinstance(arguments["prompt"], str) else len(arguments["prompt"])
    seeds = range(11, 11 + many * arguments.get("num_images_per_prompt", 1))
    arguments = {"num_inference_steps": 5, "guidance_scale": 7.5, **arguments}
    for name in ("ddim", "euler_a"):
        reference = by_diffusers(sd1, reference_scheduler(name, sd1), seeds, **arguments)
        assert_same(sdkit.text_to_image(model=sd1, scheduler=name, seed=11, **arguments), reference)


def test_given_latents_equal_those_of_diffusers(sd1):
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    arguments = {"prompt": ["a star", "a cat"], "num_inference_steps": 4, "guidance_scale": 5.0, "latents": start}
    reference = by_diffusers(sd1, reference_scheduler("euler", sd1), [0, 1], **arguments)
    assert_same(sdkit.text_to_image(model=sd1, scheduler="euler", seed=0, **arguments), reference)


def test_the_embedded_model_equals_diffusers_with_the_same_files(tiny):
    reference = by_diffusers(
        tiny.pipeline,
        reference_scheduler("ddim", tiny.pipeline),
        [7],
        prompt="a red star on a blue background",
        num_inference_steps=20,
        guidance_scale=tiny.guidance_scale,
    )
    assert_same(sdkit.text_to_image("a red star on a blue background", seed=7), reference)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("name", sdkit.SCHEDULERS)
def test_x0_equals_what_the_scheduler_itself_reports(name, prediction_type, pipelines):
    """Where a scheduler returns no x0, its own conversion of the model's output, or DDIM's at that step, is the
    reference."""
    pipeline = pipelines[prediction_type]
    scheduler = reference_scheduler(name, pipeline, 1)
    scheduler.set_timesteps(6)
    ddim = reference_scheduler("ddim", pipeline)
    ddim.set_timesteps(6)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    generator = {"generator": torch.Generator().manual_seed(1)} if takes_generator else {}
    torch.randn(1, 4, 8, 8, **({"generator": generator["generator"]} if generator else {}))  # the start noise
    x = guided = None
    for event in sdkit.stages("a red star", model=pipeline, scheduler=name, seed=1, num_inference_steps=6):
        if event.stage is sdkit.Stage.LATENT and event.step is not None:
            x = event.value
        elif event.stage is sdkit.Stage.GUIDED:
            guided = event.value
        elif event.stage is sdkit.Stage.DENOISED:
            t = scheduler.timesteps[event.step]
            scheduler.scale_model_input(x, t)
            if hasattr(scheduler, "convert_model_output"):
                if scheduler.step_index is None:
                    scheduler._init_step_index(t)
                expected = scheduler.convert_model_output(guided, sample=x)
                if name.startswith("deis"):  # converts to the noise, not to x0
                    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index])
                    expected = (x - sigma * expected) / alpha
            else:
                expected = ddim.step(guided, t, x).pred_original_sample if not hasattr(scheduler, "sigmas") else None
            done = scheduler.step(guided, t, x, **generator)
            expected = getattr(done, "pred_original_sample", expected)
            assert torch.allclose(event.value, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def photo(seed, size=(64, 64)):
    noise = torch.randint(0, 256, (size[1] // 8, size[0] // 8, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.numpy().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", sdkit.SCHEDULERS)
def test_a_variation_equals_that_of_diffusers(sd1, name, strength):
    arguments = {"prompt": "a red star", "num_inference_steps": 7, "guidance_scale": 5.0 if strength < 1 else 1.0}
    arguments |= {"strength": strength, "image": photo(0)}
    scheduler = reference_scheduler(name, sd1, 7)
    reference = by_diffusers(sd1, scheduler, [7], kind=diffusers.StableDiffusionImg2ImgPipeline, **arguments)
    assert_same(sdkit.image_to_image(model=sd1, scheduler=name, seed=7, **arguments), reference)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": "a red star", "image": photo(0, (96, 64)), "num_images_per_prompt": 3},
        {"prompt": ["a red star", "a cat"], "image": [photo(0), photo(1)], "negative_prompt": ["", "a tree"]},
        {"prompt": "a red star", "image": photo(0, (100, 70))},
        {"prompt": "a red star", "image": torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))},
        {"prompt": "a red star", "image": np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)},
    ],
    ids=["several at once", "a list", "an odd size", "a tensor", "an array"],
)
@pytest.mark.filterwarnings("ignore:the picture is 100x70")
def test_pictures_of_every_form_vary_as_in_diffusers(sd1, arguments):
    arguments = {"num_inference_steps": 5, "guidance_scale": 5.0, "strength": 0.6, **arguments}
    many = len(arguments["prompt"]) if isinstance(arguments["prompt"], list) else 1
    seeds = range(4, 4 + many * arguments.get("num_images_per_prompt", 1))
    for name in ("ddim", "euler_a"):
        scheduler = reference_scheduler(name, sd1)
        reference = by_diffusers(sd1, scheduler, seeds, kind=diffusers.StableDiffusionImg2ImgPipeline, **arguments)
        assert_same(sdkit.image_to_image(model=sd1, scheduler=name, seed=4, **arguments), reference)


@pytest.mark.parametrize("prompt", ["a star", ["a star", "a cat"]])
def test_one_generator_for_several_pictures_draws_as_in_diffusers(sd1, prompt):
    arguments = {"prompt": prompt, "num_images_per_prompt": 2, "num_inference_steps": 4, "guidance_scale": 5.0}
    for image in ({}, {"image": photo(0), "strength": 0.6}):
        kind = diffusers.StableDiffusionImg2ImgPipeline if image else diffusers.StableDiffusionPipeline
        pipe = kind(**{**sd1.components, "scheduler": reference_scheduler("ddim", sd1)}, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        latents = pipe(generator=generator, output_type="latent", **arguments, **image).images
        options = {**arguments, "model": sd1, "scheduler": "ddim", "generator": torch.Generator().manual_seed(0)}
        ours = sdkit.image_to_image(**image, **options) if image else sdkit.text_to_image(**options)
        assert torch.equal(ours.latents, latents)


AYS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]  # Align Your Steps (Sabour et al. 2024) for Stable Diffusion 1
AYS_SIGMAS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]


@pytest.mark.parametrize("strength", [None, 0.6])
@pytest.mark.parametrize(
    ("name", "schedule"),
    [(name, {"timesteps": AYS}) for name in ("ddpm", "dpmpp_2m", "dpmpp_2s", "euler", "heun")]
    + [("lcm", {"timesteps": [999, 759, 499, 259]}), ("tcd", {"timesteps": [999, 759, 499, 259]})]
    + [(name, {"sigmas": AYS_SIGMAS}) for name in ("euler", "euler_karras")],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_timesteps_and_sigmas_of_ones_own_equal_those_of_diffusers(sd1, name, schedule, strength):
    image = {} if strength is None else {"image": photo(0), "strength": strength}
    kind = diffusers.StableDiffusionImg2ImgPipeline if image else diffusers.StableDiffusionPipeline
    arguments = {"prompt": "a red star", "guidance_scale": 3.0, **schedule, **image}
    reference = by_diffusers(sd1, reference_scheduler(name, sd1), [7], kind=kind, **arguments)
    function = sdkit.image_to_image if image else sdkit.text_to_image
    assert_same(function(model=sd1, scheduler=name, seed=7, **arguments), reference)


def skipped(pipeline, prompts, clip_skip):
    """What clip_skip means in diffusers, which its own code no longer reaches with transformers 5.6 and newer."""
    encoder = pipeline.text_encoder
    ids = pipeline.tokenizer(
        prompts, padding="max_length", max_length=pipeline.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        hidden = encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        return getattr(encoder, "text_model", encoder).final_layer_norm(hidden)


@pytest.mark.parametrize("halfway", [False, True])
def test_clip_skip_reaches_both_prompts_or_only_one_as_in_diffusers(sd1, halfway):
    words = {"prompt": ["a red star", "a tree"], "negative_prompt": ["a cat", ""]}
    arguments = {"num_inference_steps": 4, "guidance_scale": 5.0, "num_images_per_prompt": 2}
    embeds = {"prompt_embeds": skipped(sd1, words["prompt"], 1)}
    if halfway:
        embeds["negative_prompt"] = words["negative_prompt"]
    else:
        embeds["negative_prompt_embeds"] = skipped(sd1, words["negative_prompt"], 1)
    reference = by_diffusers(sd1, reference_scheduler("ddim", sd1), range(5, 9), **embeds, **arguments)
    arguments |= {"model": sd1, "seed": 5, "clip_skip": 1, "clip_skip_negative": not halfway}
    assert_same(sdkit.text_to_image(**words, **arguments), reference)


@pytest.mark.parametrize("length", [32, 20])
@pytest.mark.parametrize("negative", [True, False])
def test_given_embeddings_equal_those_of_diffusers(sd1, negative, length):
    embeds = {"prompt_embeds": torch.randn(2, length, 32, generator=torch.Generator().manual_seed(0))}
    if negative:
        embeds["negative_prompt_embeds"] = torch.randn(2, length, 32, generator=torch.Generator().manual_seed(1))
    arguments = {**embeds, "num_inference_steps": 3, "guidance_scale": 5.0, "num_images_per_prompt": 2}
    reference = by_diffusers(sd1, reference_scheduler("ddim", sd1), range(5, 9), **arguments)
    assert_same(sdkit.text_to_image(model=sd1, seed=5, **arguments), reference)
