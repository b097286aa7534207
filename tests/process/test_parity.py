"""Latents and pictures are those of diffusers' own pipelines, bit for bit, for every family, task and scheduler.

The matrix of cases stands in docs/parity.md, which `python tests/process/test_parity.py` writes.
"""

import inspect
import itertools
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from conftest import EACH_FAMILY, SCHEDULERS, SD2, random_pipeline, random_xl_pipeline
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
FAMILIES = {
    "sd1": ("Stable Diffusion 1.x, epsilon", lambda folder: random_pipeline(folder)),
    "sd2": ("Stable Diffusion 2.x, v prediction", lambda folder: random_pipeline(folder, "v_prediction", **SD2)),
    "sdxl": ("SDXL", lambda folder: random_xl_pipeline(folder)),
}
OTHERS = {
    "refiner": lambda folder: random_xl_pipeline(folder, refiner=True),
    "inpainting": lambda folder: random_pipeline(folder, in_channels=9),
    "xl_inpainting": lambda folder: random_xl_pipeline(folder, in_channels=9),
    "lcm": lambda folder: random_pipeline(folder, time_cond_proj_dim=8),
}
TASKS = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}  # with what diffusers adds to the pipeline's name
GUIDANCE = {"guided": 7.5, "unguided": 1.0}
PREDICTIONS = {"epsilon": "sd1", "v_prediction": "sd2"}


def reference_scheduler(name, pipeline, seed=None):
    """What a user of diffusers would write for this short name."""
    extra = {"use_karras_sigmas": True} if name.endswith("_karras") else {}
    if name.startswith("dpmpp_sde"):
        extra["noise_sampler_seed"] = seed
    if name == "pndm":
        extra["skip_prk_steps"] = True  # as in Stable Diffusion's own configuration
    return CLASSES[name.removesuffix("_karras")].from_config(pipeline.scheduler.config, **extra)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    makers = {**{name: make for name, (_, make) in FAMILIES.items()}, **OTHERS}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def by_diffusers(pipeline, scheduler, seeds, kind=None, **arguments):
    """Latents and pictures of a pipeline of diffusers' own, by default the one of this name, made of the same parts."""
    kind = kind or type(pipeline)
    parts = {**pipeline.components, "scheduler": scheduler}
    known = inspect.signature(kind.__init__).parameters
    settings = {name: pipeline.config[name] for name in known if name in pipeline.config and name not in parts}
    pipe = kind(**{name: part for name, part in parts.items() if name in known}, **settings)
    pipe.set_progress_bar_config(disable=True)
    seen = []

    def keep(_pipe, _step, _t, values):
        seen.append(values["latents"])
        return values

    # LCM's pipelines decode what their last step believed in, which is not what they hand to the callback
    latent = "Consistency" in kind.__name__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what diffusers says of itself
        if latent:
            seen.append(pipe(generator=seeded(*seeds), output_type="latent", **arguments).images)
        more = {} if latent else {"callback_on_step_end": keep}
        images = pipe(generator=seeded(*seeds), **more, **arguments).images
    return seen[-1], images


def assert_same(result, reference):
    latents, images = reference
    assert torch.equal(result.latents, latents)
    assert len(result.images) == len(images)
    for ours, theirs in zip(result.images, images, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_every_class_that_has_karras_spacing_has_it_as_a_short_name():
    karras = {f"{name}_karras" for name, kind in CLASSES.items() if "use_karras_sigmas" in kind().config}
    assert set(sdkit.SCHEDULERS) == set(CLASSES) | karras


def photo(seed, size=(64, 64)):
    noise = torch.randint(0, 256, (size[1] // 8, size[0] // 8, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.numpy().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


MASK = Image.new("L", (64, 64))
MASK.paste(255, (8, 16, 50, 40))


def task_arguments(task, guidance_scale):
    """What makes a small run of this task."""
    arguments = {"prompt": "a red star", "num_inference_steps": 5, "guidance_scale": guidance_scale}
    if task != "text":
        arguments |= {"image": photo(0), "strength": 0.7}
    if task == "inpaint":
        arguments |= {"mask_image": MASK, "height": 64, "width": 64}
    return arguments


def kind_of(pipeline, task):
    """The class that diffusers has for this task."""
    family = "StableDiffusionXL" if hasattr(pipeline, "text_encoder_2") else "StableDiffusion"
    return getattr(diffusers, f"{family}{TASKS[task]}Pipeline")


def by_sdkit(pipeline, arguments, **more):
    function = sdkit.image_to_image if "image" in arguments else sdkit.text_to_image
    return function(model=pipeline, **arguments, **more)


CASES = list(itertools.product(FAMILIES, TASKS, GUIDANCE, sdkit.SCHEDULERS))


def some(cases):
    """The cases, of which the fast suite has a ninth: each scheduler with SD 1 and XL once, every task by turns."""
    axes = [list(axis) for axis in (FAMILIES, TASKS, GUIDANCE, sdkit.SCHEDULERS)]
    for case in cases:
        family, task, guided, name = (axis.index(value) for axis, value in zip(axes, case, strict=True))
        fast = (family + 2 * task + guided + name) % 6 == 0 and case[0] != "sd2"
        yield pytest.param(*case, marks=() if fast else pytest.mark.slow, id="-".join(case))


@pytest.mark.parametrize(("family", "task", "guided", "name"), list(some(CASES)))
def test_a_run_equals_that_of_diffusers(family, task, guided, name, pipelines):
    pipeline, arguments = pipelines[family], task_arguments(task, GUIDANCE[guided])
    scheduler = reference_scheduler(name, pipeline, 7)
    reference = by_diffusers(pipeline, scheduler, [7], kind_of(pipeline, task), **arguments)
    assert_same(by_sdkit(pipeline, arguments, scheduler=name, seed=7), reference)


def table():
    """The cases as a table in Markdown: a row for each scheduler, a column for each family and task."""
    columns = list(itertools.product(FAMILIES, TASKS))
    runs = {(family, task, name) for family, task, _, name in CASES}
    lines = [
        "# Where sdkit equals diffusers to the bit",
        "",
        "Written by `PYTHONPATH=tests python tests/process/test_parity.py`, which tests each cell with guidance 7.5",
        "and without: `torch.equal` latents and pictures of the same bytes, for components of random weights.",
        "",
        *(f"- **{name}**: {what}" for name, (what, _) in FAMILIES.items()),
        "",
        "| scheduler | " + " | ".join(f"{family} {task}" for family, task in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in sdkit.SCHEDULERS:
        cells = ["equal" if (family, task, name) in runs else "" for family, task in columns]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Beside the matrix: batches, several pictures a prompt, oblong sizes, negative prompts, rescaled",
        "guidance, latents and embeddings that were given, timesteps and sigmas of one's own, one generator",
        "for all; the sizes and crops of SDXL, its refiner and the hand-over to it; inpainting U-Nets with 9",
        "channels; latent consistency models with their guidance embedding; LoRA, IP-Adapter and ControlNet;",
        "a run at the true size of Stable Diffusion 1.5.",
    ]
    return "\n".join(lines) + "\n"


PAGE = Path(__file__).parents[2] / "docs" / "parity.md"


def test_the_table_in_the_docs_lists_the_cases():
    assert PAGE.read_text(encoding="utf-8").startswith(table())


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
@pytest.mark.parametrize("name", SCHEDULERS)
def test_x0_equals_what_the_scheduler_itself_reports(name, prediction_type, pipelines):
    """Where a scheduler returns no x0, its own conversion of the model's output, or DDIM's at that step, is the
    reference."""
    pipeline = pipelines[PREDICTIONS[prediction_type]]
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


@pytest.mark.parametrize("strength", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", ["image", "inpaint"])
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_any_strength_equals_that_of_diffusers(pipelines, family, task, strength):
    pipeline, arguments = pipelines[family], {**task_arguments(task, 5.0), "strength": strength}
    for name in ("heun", "euler_a", "ddpm"):
        scheduler = reference_scheduler(name, pipeline, 7)
        reference = by_diffusers(pipeline, scheduler, [7], kind_of(pipeline, task), **arguments)
        assert_same(by_sdkit(pipeline, arguments, scheduler=name, seed=7), reference)


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


@pytest.mark.filterwarnings("ignore:You have passed:FutureWarning")  # what diffusers says of itself
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


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": ["a red star", "a blue fish"], "negative_prompt": ["a cat", ""], "num_images_per_prompt": 2},
        {"prompt": "a red star", "height": 96, "width": 64, "guidance_rescale": 0.7},
        {"prompt": "a red star", "prompt_2": "a cat", "negative_prompt": "a tree", "negative_prompt_2": "a house"},
        {"prompt": "a red star", "clip_skip": 1},
        {"prompt": "", "guidance_scale": 3.0, "original_size": (40, 90), "crops_coords_top_left": (8, 16)},
        {
            "prompt": "a star",
            "negative_original_size": (30, 30),
            "negative_target_size": (60, 60),
            "target_size": (9, 9),
        },
        {"prompt": "a red star", "guidance_scale": 0.0, "num_inference_steps": 1},
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_what_sdxl_takes_equals_that_of_diffusers(pipelines, arguments):
    pipeline = pipelines["sdxl"]
    many = 1 if isinstance(arguments["prompt"], str) else len(arguments["prompt"])
    seeds = range(11, 11 + many * arguments.get("num_images_per_prompt", 1))
    arguments = {"num_inference_steps": 4, "guidance_scale": 5.0, **arguments}
    ours = {**arguments, "clip_skip_negative": False}  # diffusers' clip_skip spares the negative prompt
    for name in ("ddim", "euler_a"):
        reference = by_diffusers(pipeline, reference_scheduler(name, pipeline), seeds, **arguments)
        assert_same(sdkit.text_to_image(model=pipeline, scheduler=name, seed=11, **ours), reference)


def test_a_variation_by_sdxl_heeds_sizes_as_in_diffusers(pipelines):
    arguments = {**task_arguments("image", 5.0), "crops_coords_top_left": (4, 4), "negative_original_size": (9, 9)}
    arguments["negative_target_size"] = (99, 99)
    pipeline = pipelines["sdxl"]
    reference = by_diffusers(
        pipeline, reference_scheduler("ddim", pipeline), [7], kind_of(pipeline, "image"), **arguments
    )
    assert_same(by_sdkit(pipeline, arguments, scheduler="ddim", seed=7), reference)


def test_embeddings_given_to_sdxl_equal_those_of_diffusers(pipelines):
    draw = torch.Generator().manual_seed(0)
    arguments = {
        "prompt_embeds": torch.randn(2, 32, 56, generator=draw),
        "pooled_prompt_embeds": torch.randn(2, 24, generator=draw),
        "negative_prompt_embeds": torch.randn(2, 32, 56, generator=draw),
        "negative_pooled_prompt_embeds": torch.randn(2, 24, generator=draw),
        "num_inference_steps": 3,
        "num_images_per_prompt": 2,
        "guidance_scale": 5.0,
    }
    reference = by_diffusers(
        pipelines["sdxl"], reference_scheduler("ddim", pipelines["sdxl"]), range(5, 9), **arguments
    )
    assert_same(sdkit.text_to_image(model=pipelines["sdxl"], scheduler="ddim", seed=5, **arguments), reference)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp_2m_karras", "ddpm"])
def test_the_hand_over_to_a_refiner_equals_that_of_diffusers(pipelines, name):
    base, refiner = pipelines["sdxl"], pipelines["refiner"]
    arguments = {"prompt": "a red star", "num_inference_steps": 8, "guidance_scale": 5.0}
    latents, _ = by_diffusers(base, reference_scheduler(name, base), [7], denoising_end=0.6, **arguments)
    halfway = sdkit.text_to_image(model=base, scheduler=name, seed=7, denoising_end=0.6, **arguments)
    assert torch.equal(halfway.latents, latents)
    reference = by_diffusers(
        refiner,
        reference_scheduler(name, base),
        [7],
        image=latents,
        denoising_start=0.6,
        aesthetic_score=5.5,
        **arguments,
    )
    finished = sdkit.image_to_image(
        halfway.latents,
        model=refiner,
        scheduler=reference_scheduler(name, base),
        seed=7,
        denoising_start=0.6,
        aesthetic_score=5.5,
        **arguments,
    )
    assert_same(finished, reference)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("family", ["inpainting", "xl_inpainting"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_a_unet_that_sees_the_mask_equals_that_of_diffusers(pipelines, family, guidance_scale, strength):
    pipeline = pipelines[family]
    arguments = {**task_arguments("inpaint", guidance_scale), "strength": strength}
    for name in ("ddim", "euler_a", "unipc"):
        scheduler = reference_scheduler(name, pipeline, 7)
        reference = by_diffusers(pipeline, scheduler, [7], kind_of(pipeline, "inpaint"), **arguments)
        assert_same(by_sdkit(pipeline, arguments, scheduler=name, seed=7), reference)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "inpainting"])
def test_several_pictures_are_inpainted_as_in_diffusers(pipelines, family):
    pipeline = pipelines[family]
    alone = {**task_arguments("inpaint", 5.0), "num_images_per_prompt": 3}
    each = {**task_arguments("inpaint", 5.0), "prompt": ["a star", "a cat"], "image": [photo(0), photo(1)]}
    each["mask_image"] = [MASK, MASK.transpose(Image.Transpose.ROTATE_90)]
    for arguments, seeds in ((alone, [7, 8, 9]), (each, [7, 8])):
        for name in ("ddpm", "dpmpp_sde"):
            scheduler = reference_scheduler(name, pipeline, seeds)
            reference = by_diffusers(pipeline, scheduler, seeds, kind_of(pipeline, "inpaint"), **arguments)
            assert_same(by_sdkit(pipeline, arguments, scheduler=name, seed=seeds), reference)


@pytest.mark.parametrize("strength", [None, 0.6])
def test_a_latent_consistency_model_equals_that_of_diffusers(pipelines, strength):
    pipeline, given = pipelines["lcm"], {} if strength is None else {"image": photo(0), "strength": strength}
    model = sdkit.load(pipeline)
    assert (model.num_inference_steps, model.guidance_scale) == (4, 8.5)
    what = "Img2Img" if given else ""
    kind = getattr(diffusers, f"LatentConsistencyModel{what}Pipeline")
    for arguments in ({"num_images_per_prompt": 2}, {"guidance_scale": 3.0, "num_inference_steps": 6}):
        arguments = {"prompt": "a red star", **given, **arguments}
        seeds = [7, 8][: arguments.get("num_images_per_prompt", 1)]
        reference = by_diffusers(pipeline, reference_scheduler("lcm", pipeline), seeds, kind, **arguments)
        assert_same(by_sdkit(pipeline, arguments, scheduler="lcm", seed=7), reference)


if __name__ == "__main__":
    from test_carried import arguments_page

    PAGE.write_text(table() + arguments_page(), encoding="utf-8")
