"""What users of diffusers carry along acts in sdkit as in diffusers' own pipelines, to the bit."""

import inspect
import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from carried import random_controlnet, with_controlnet, with_ip_adapter
from conftest import random_pipeline, random_xl_pipeline
from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny
from test_parity import MASK, assert_same, by_diffusers, kind_of, photo, reference_scheduler

import sdkit
from sdkit.model.allowed import PIPELINES

RUN = {"prompt": "a red star", "num_inference_steps": 4, "guidance_scale": 5.0}
PICTURE = RUN | {"image": photo(0), "strength": 0.75}
PAINT = PICTURE | {"mask_image": MASK}
SIZE = {"height": 64, "width": 64}


def both(pipeline, arguments, scheduler="ddim", kind=None, **theirs):
    task = "inpaint" if "mask_image" in arguments else "image" if "image" in arguments else "text"
    function = sdkit.text_to_image if task == "text" else sdkit.image_to_image
    many = len(arguments["prompt"]) if isinstance(arguments.get("prompt"), list) else 1
    seeds = list(range(7, 7 + many))
    reference = by_diffusers(
        pipeline,
        reference_scheduler(scheduler, pipeline),
        seeds,
        kind or kind_of(pipeline, task),
        **arguments | (SIZE if task == "inpaint" else {}) | theirs,
    )
    return function(model=pipeline, scheduler=scheduler, seed=7, **arguments), reference


def with_vae(kind, folder):
    """A pipeline with another autoencoder, of random weights."""
    torch.manual_seed(3)
    if kind is AutoencoderTiny:
        sizes = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
        vae = AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))
    else:
        vae = AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            down_block_out_channels=(8, 8, 8, 8),
            up_block_types=("UpDecoderBlock2D",) * 4,
            up_block_out_channels=(8, 8, 8, 8),
            norm_num_groups=4,
        )
    base = random_pipeline(folder)
    parts = {name: part for name, part in base.components.items() if name != "vae"}
    return type(base)(**parts, vae=vae.eval(), requires_safety_checker=False)


@pytest.mark.parametrize("arguments", [RUN, PICTURE, PAINT], ids=["text", "image", "inpaint"])
@pytest.mark.parametrize("vae", [AutoencoderTiny, AsymmetricAutoencoderKL])
def test_another_autoencoder_encodes_and_decodes_as_in_diffusers(vae, arguments, tmp_path):
    assert_same(*both(with_vae(vae, tmp_path), arguments))


def test_a_tiny_autoencoder_loads_from_its_folder_and_has_no_spread(tmp_path):
    pipeline = with_vae(AutoencoderTiny, tmp_path)
    pipeline.save_pretrained(tmp_path / "model")
    model = sdkit.load(tmp_path / "model", device="cpu")
    assert torch.equal(sdkit.text_to_image(model=model, seed=7, **RUN).latents, both(pipeline, RUN)[0].latents)
    mean, std = model.moments(model.encode(torch.rand(1, 3, 64, 64)))
    assert float(std.max()) < 1e-5 < float(mean.abs().max())


def test_latents_of_the_masked_picture_are_taken_as_they_are(tmp_path):
    pipeline = random_pipeline(tmp_path, in_channels=9)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    result, reference = both(pipeline, PAINT | {"masked_image_latents": latents})
    assert_same(result, reference)
    assert not torch.equal(result.latents, both(pipeline, PAINT)[0].latents)
    with pytest.raises(ValueError, match=r"must be a tensor \(1, 4, 8, 8\) for this picture, but is \(1, 4, 4, 4\)"):
        sdkit.image_to_image(model=pipeline, **PAINT, masked_image_latents=latents[..., :4, :4])


@pytest.mark.parametrize("maker", [random_pipeline, random_xl_pipeline])
@pytest.mark.parametrize("channels", [4, 9])
def test_the_part_around_a_mask_is_painted_and_laid_back_as_in_diffusers(maker, channels, tmp_path):
    pipeline = maker(tmp_path, in_channels=channels)
    arguments = PAINT | {"image": photo(0, (96, 128)), "mask_image": MASK.resize((96, 128)), "padding_mask_crop": 8}
    result, reference = both(pipeline, arguments | SIZE)
    assert_same(result, reference)
    assert result.image.size == (96, 128)


def test_the_scale_of_a_lora_counts_in_the_text_encoder_too(tmp_path):
    peft = pytest.importorskip("peft")
    pipeline = random_pipeline(tmp_path)
    torch.manual_seed(1)
    for part, targets in ((pipeline.unet, ["to_q", "to_v"]), (pipeline.text_encoder, ["q_proj", "v_proj"])):
        part.add_adapter(peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    whole = both(pipeline, RUN)[0]
    result, reference = both(pipeline, RUN | {"cross_attention_kwargs": {"scale": 0.3}})
    assert_same(result, reference)
    assert result.settings["cross_attention_kwargs"] == {"scale": 0.3}
    assert not torch.equal(result.latents, whole.latents)
    assert torch.equal(both(pipeline, RUN)[0].latents, whole.latents)


def test_masks_of_an_ip_adapter_act_as_in_diffusers(tmp_path):
    pipeline = with_ip_adapter(random_pipeline(tmp_path))
    masks = diffusers.image_processor.IPAdapterMaskProcessor().preprocess([MASK], height=64, width=64)
    arguments = RUN | {"ip_adapter_image": photo(2), "cross_attention_kwargs": {"ip_adapter_masks": [masks[None, 0]]}}
    result, reference = both(pipeline, arguments)
    assert_same(result, reference)
    assert not torch.equal(result.latents, both(pipeline, RUN | {"ip_adapter_image": photo(2)})[0].latents)


@pytest.mark.parametrize("maker", [random_pipeline, random_xl_pipeline])
def test_a_pipeline_without_text_encoders_runs_on_embeddings(maker, tmp_path):
    whole = maker(tmp_path)
    torch.manual_seed(0)
    model = sdkit.load(whole)
    length = model.tokenizer.model_max_length
    embeds = {
        "prompt_embeds": torch.randn(1, length, model.text_width),
        "negative_prompt_embeds": torch.randn(1, length, model.text_width),
    }
    if model.is_xl:
        embeds |= {name.replace("prompt", "pooled_prompt"): torch.randn(1, model.pooled_width) for name in embeds}
    silent = {name: None for name in whole.components if name.startswith(("text_encoder", "tokenizer"))}
    pipeline = type(whole)(**whole.components | silent)
    settings = {name: value for name, value in RUN.items() if name != "prompt"}
    assert_same(*both(pipeline, settings | embeds, prompt=None))
    with pytest.raises(ValueError, match="carries no text encoder, so nothing reads words; give prompt_embeds"):
        sdkit.text_to_image(model=pipeline, **RUN)


def test_arrays_of_several_pictures_are_taken_as_lists_are(sd1):
    pictures = [photo(0), photo(1)]
    array = np.stack([np.asarray(one) for one in pictures])
    results = [
        sdkit.image_to_image(given, "a star", model=sd1, seed=7, num_inference_steps=3)
        for given in (pictures, array, array / 255.0)
    ]
    assert torch.equal(results[0].latents, results[1].latents)
    assert torch.allclose(results[0].latents, results[2].latents, atol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_latents_as_the_picture_are_gone_on_from_as_in_diffusers(family, request):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_same(*both(request.getfixturevalue(family), PICTURE | {"image": latents}, "euler"))


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("image", {"num_inference_steps": 1, "strength": 0.8}),
        ("image", {"image": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}),
        ("text", {"original_inference_steps": 20}),
    ],
    ids=["one step", "latents", "original steps"],
)
def test_latent_consistency_models_run_as_in_diffusers(task, more, tmp_path):
    pipeline = random_pipeline(tmp_path, time_cond_proj_dim=8)
    kind = getattr(diffusers, f"LatentConsistencyModel{'Img2Img' if task == 'image' else ''}Pipeline")
    assert_same(*both(pipeline, (PICTURE if task == "image" else RUN) | more, "lcm", kind))


@pytest.mark.parametrize("many", [1, 2])
def test_controlnets_in_a_list_and_floats_of_any_range_are_taken(many, tmp_path):
    base = random_pipeline(tmp_path)
    pipeline = with_controlnet(base, [random_controlnet(base, i) for i in range(many)])
    pictures = [torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(many)]
    settings = RUN | {"control_guidance_start": [0.1] * many, "control_guidance_end": 0.8}
    reference = by_diffusers(pipeline, reference_scheduler("ddim", pipeline), [7], image=pictures, **settings)
    given = pictures[0] if many == 1 else pictures
    assert_same(
        sdkit.text_to_image(model=pipeline, scheduler="ddim", seed=7, control_image=given, **settings), reference
    )


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"controlnet_conditioning_scale": [0.1, 0.2]}, "has 2 values for 1 ControlNets"),
        ({"control_guidance_start": 0.8, "control_guidance_end": 0.2}, "start 0.8 must lie below control_guidance_end"),
        ({"cross_attention_kwargs": {"scale": object()}}, "'scale' of type object; give numbers or tensors"),
        ({"cross_attention_kwargs": 0.5}, "must be a dictionary of names, but is 0.5"),
    ],
)
def test_what_does_not_fit_a_controlnet_is_said_before_the_run(wrong, sentence, tmp_path):
    base = random_pipeline(tmp_path)
    pipeline = with_controlnet(base, random_controlnet(base, 1))
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
        sdkit.stages(model=pipeline, control_image=photo(1), **RUN, **wrong)


def test_variations_of_several_pictures_say_that_diffusers_pairs_them_otherwise(sd1):
    with pytest.warns(UserWarning, match="2 pictures with 2 variations each"):
        sdkit.stages("a star", [photo(0), photo(1)], model=sd1, num_images_per_prompt=2)


REFUSES = ("lcm", "tcd")  # they pick from fifty steps of a teacher


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "euler", "heun", "pndm", "unipc", "lcm", "tcd", "ddpm"])
def test_as_many_steps_as_the_noise_schedule_has_are_made_or_refused_in_a_sentence(scheduler, tiny):
    def begin(steps):
        events = sdkit.stages("a star", seed=7, scheduler=scheduler, num_inference_steps=steps)
        return next(event for event in events if event.step == 1)

    with pytest.raises(ValueError, match="1001 is more than the 1000 timesteps"):
        begin(1001)
    if scheduler in REFUSES:
        with pytest.raises(ValueError, match=r"makes no 1000 steps of this noise schedule.*take fewer"):
            begin(1000)
    else:
        assert begin(1000).value.isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# Every argument of diffusers' pipelines, and what became of it: this table stands in docs/parity.md

OTHERWISE = {
    "output_type": 'by another name: `result.images` are PIL, `result.latents` are what `"latent"` gives',
    "return_dict": "not, because a `Result` is the only thing that is returned",
    "callback_on_step_end": "by another name: `hooks=[hooks.from_diffusers(callback)]`",
    "callback_on_step_end_tensor_inputs": "by another name: `hooks.from_diffusers(callback, tensor_inputs)`",
    "kwargs": "not, because it holds diffusers' deprecated `callback` and `callback_steps`",
    "latents": "same from words; beside a picture not, because a run starts from one of them",
}
CONTROL = "by another name in pipelines with a ControlNet from words: `control_image`"


def arguments_of_diffusers():
    """Every argument of the pipelines that sdkit drives, with how many have it."""
    counts = {}
    for name in PIPELINES:
        for argument in list(inspect.signature(getattr(diffusers, name).__call__).parameters)[1:]:
            counts[argument] = counts.get(argument, 0) + 1
    return counts


def table_of_arguments():
    ours = set(inspect.signature(sdkit.stages).parameters)
    rows = []
    for name, count in sorted(arguments_of_diffusers().items()):
        verdict = OTHERWISE.get(name) or ("same" if name in ours else "not known to this table")
        verdict = f"same; {CONTROL}" if name == "image" else verdict
        rows.append(f"| `{name}` | {count} of {len(PIPELINES)} | {verdict} |")
    return rows


def arguments_page():
    head = f"""
## Every argument of diffusers' pipelines

Of the `__call__` of the {len(PIPELINES)} pipelines that sdkit drives, made from their signatures in diffusers
{diffusers.__version__}.
\"Same\" is the same name with the same meaning in `text_to_image`, `image_to_image` or `stages`.

| argument | in | here |
|---|---|---|
"""
    return (
        head
        + "\n".join(table_of_arguments())
        + """

Schedulers of EDM's kind (`EDMEulerScheduler`, `EDMDPMSolverMultistepScheduler`) are refused in a sentence: they have
no noise schedule over training timesteps, which traces and noise levels are written in.
"""
    )


def test_every_argument_of_diffusers_pipelines_is_in_the_table():
    assert "not known" not in arguments_page()
    page = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
    assert page.endswith(arguments_page()), "write it anew: PYTHONPATH=tests python tests/process/test_parity.py"


def test_a_picture_far_larger_than_the_model_is_said_with_the_size_that_would_fit(tiny):
    large = photo(0, (1024, 512))
    with pytest.warns(UserWarning, match=r"1024x512, 32 times the pixels .* height=88, width=184 would fit it"):
        sdkit.stages("a star", large)
    sdkit.stages("a star", large, height=88, width=184)
    sdkit.stages("a star", photo(0, (256, 256)))


KARRAS = [name for name in sdkit.SCHEDULERS if name.endswith("_karras")]


@pytest.mark.parametrize("scheduler", [KARRAS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in KARRAS[1:])])
def test_karras_spacing_runs_on_a_noise_schedule_that_ends_without_signal(scheduler, tmp_path):
    """Fifty of its timesteps round to the last one twice, where diffusers' own index runs over the end."""
    pipeline = random_pipeline(tmp_path, "v_prediction")
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **zero)
    result = sdkit.text_to_image(model=pipeline, scheduler=scheduler, seed=1, **RUN | {"num_inference_steps": 50})
    assert result.latents.isfinite().all()


def test_a_schedule_without_signal_and_a_model_of_noise_do_not_blame_the_precision(tmp_path):
    pipeline = random_pipeline(tmp_path)
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **zero)
    with pytest.raises(FloatingPointError, match=r"step 0 .* DDIMScheduler cannot take these steps"):
        sdkit.text_to_image(model=pipeline, seed=1, **RUN)
