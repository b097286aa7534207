"""Half precision, little memory and true size: what people meet on the machines that they have."""

import json
from importlib.resources import files

import accelerate
import diffusers
import pytest
import torch
import transformers
from conftest import random_pipeline, random_xl_pipeline
from test_parity import assert_same, by_diffusers, kind_of, reference_scheduler, task_arguments

import sdkit
from sdkit.model.single_file import _tokenizers

RUN = {"prompt": "a red star", "num_inference_steps": 3, "guidance_scale": 5.0}
MAKERS = {"sd1": random_pipeline, "sdxl": random_xl_pipeline}


def ours(pipeline, arguments, **more):
    function = sdkit.image_to_image if "image" in arguments else sdkit.text_to_image
    return function(model=pipeline, scheduler="ddim", seed=7, **arguments, **more)


@pytest.mark.parametrize(("dtype", "task"), [(torch.float16, "inpaint"), (torch.bfloat16, "image")])
@pytest.mark.parametrize("family", MAKERS)
def test_half_precision_equals_that_of_diffusers(family, dtype, task, tmp_path):
    pipeline = MAKERS[family](tmp_path).to(dtype)
    arguments = {**task_arguments(task, 5.0), "num_inference_steps": 2}
    reference = by_diffusers(pipeline, reference_scheduler("ddim", pipeline), [7], kind_of(pipeline, task), **arguments)
    assert_same(ours(pipeline, arguments), reference)
    assert {part.dtype for part in (pipeline.vae, pipeline.unet)} == {dtype}


def test_a_decoder_that_overflows_decodes_again_in_float32_and_says_so(tmp_path):
    pipeline = random_pipeline(tmp_path)
    for norm in (pipeline.vae.decoder.mid_block.resnets[0].norm1, pipeline.vae.decoder.mid_block.resnets[0].norm2):
        norm.weight.data *= 3e4
    expected = ours(pipeline, RUN)
    pipeline.to(torch.float16)
    with pytest.warns(UserWarning, match=r"the decoder overflowed in torch\.float16; its picture was decoded again"):
        result = ours(pipeline, RUN)
    assert pipeline.vae.dtype == torch.float16
    assert sdkit.load(pipeline).decode(result.latents.half()).isfinite().all()
    assert expected.image.size == result.image.size


def test_latents_that_are_not_finite_are_no_picture(tmp_path):
    pipeline = random_pipeline(tmp_path).to(torch.float16)
    pipeline.unet.conv_out.weight.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"are not finite in torch\.float16; load the model in bfloat16"):
        ours(pipeline, RUN)


def test_tiles_and_slices_of_a_pipeline_are_respected(tmp_path):
    pipeline = random_pipeline(tmp_path)
    arguments = {**RUN, "height": 128, "width": 96, "num_images_per_prompt": 2}
    plain = ours(pipeline, arguments)
    pipeline.vae.enable_tiling()
    pipeline.vae.tile_sample_min_size = 64
    pipeline.vae.tile_latent_min_size = 8
    pipeline.vae.enable_slicing()
    pipeline.enable_attention_slicing()
    result = ours(pipeline, arguments)
    reference = by_diffusers(pipeline, reference_scheduler("ddim", pipeline), [7, 8], **arguments)
    assert_same(result, reference)
    assert result.image.tobytes() != plain.image.tobytes()


def test_parts_that_come_to_the_device_when_they_are_needed_make_the_same_picture(tmp_path):
    pipeline = random_pipeline(tmp_path)
    expected = ours(pipeline, {**task_arguments("image", 5.0)})
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        accelerate.cpu_offload(part, execution_device="cpu")
    assert next(pipeline.unet.parameters()).device.type == "meta"
    assert torch.equal(ours(pipeline, {**task_arguments("image", 5.0)}).latents, expected.latents)
    assert next(pipeline.unet.parameters()).device.type == "meta"


def test_out_of_memory_says_what_to_try(sd1):
    with pytest.raises(RuntimeError, match=r"^out of memory; try a smaller height and width, fewer pictures at once"):
        ours(sd1, {**RUN, "height": 2**23, "width": 2**23})


def true_size():
    """Stable Diffusion 1.5 with random weights, of the configuration that sdkit carries."""
    contents = json.loads((files("sdkit.model") / "checkpoints" / "sd1.json").read_text())
    noise = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        parts = {
            "unet": diffusers.UNet2DConditionModel.from_config(contents["unet/config.json"]),
            "vae": diffusers.AutoencoderKL.from_config(contents["vae/config.json"]),
            "text_encoder": transformers.CLIPTextModel(
                transformers.CLIPTextConfig(**contents["text_encoder/config.json"])
            ),
        }
    for part in parts.values():
        part.to_empty(device="cpu")
        for module in part.modules():
            for name, weight in module.named_parameters(recurse=False):
                if "Norm" in type(module).__name__:
                    weight.data.fill_(float(name == "weight"))
                else:
                    fan = max(1, weight[0].numel())
                    flat = weight.data.view(-1)
                    for start in range(0, len(flat), len(noise)):
                        piece = flat[start : start + len(noise)]
                        piece.copy_(noise[: len(piece)] / fan**0.5)
        for name, buffer in part.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(77)[None])
    scheduler = diffusers.PNDMScheduler.from_config(contents["scheduler/scheduler_config.json"])
    pipeline = diffusers.StableDiffusionPipeline(
        **{name: part.eval() for name, part in parts.items()},
        **_tokenizers("sd1"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
def test_a_run_at_the_true_size_of_stable_diffusion_equals_that_of_diffusers():
    pipeline = true_size()
    arguments = {"prompt": "an astronaut riding a horse", "num_inference_steps": 2, "guidance_scale": 7.5}
    arguments |= {"height": 64, "width": 128}
    reference = by_diffusers(pipeline, reference_scheduler("dpmpp_2m", pipeline), [7], **arguments)
    result = sdkit.text_to_image(model=pipeline, scheduler="dpmpp_2m", seed=7, **arguments)
    assert_same(result, reference)
    assert result.latents.isfinite().all()
