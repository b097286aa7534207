"""What sdkit does beyond generating works with every family and task, not with Stable Diffusion 1 alone."""

import pytest
import torch
from conftest import random_pipeline
from test_parity import MASK, photo

import sdkit
from sdkit import Stage, Trace, hooks

RUN = {"prompt": "a red star", "num_inference_steps": 5, "guidance_scale": 5.0, "seed": 7}
PAINT = {"image": photo(0), "mask_image": MASK, "strength": 0.8}


@pytest.fixture(scope="session")
def inpainting(tmp_path_factory):
    return random_pipeline(tmp_path_factory.mktemp("inpainting"), in_channels=9)


def made(pipeline, arguments=None, **more):
    arguments = {**RUN, **(arguments or {}), **more}
    function = sdkit.image_to_image if "image" in arguments else sdkit.text_to_image
    return function(model=pipeline, **arguments)


def test_sdxl_shows_the_tokens_of_both_text_encoders_and_their_pooled_embedding(sdxl):
    trace = Trace()
    made(sdxl, hooks=[trace])
    assert [record.layer for record in trace[Stage.TOKENS]] == ["text_encoder", "text_encoder_2"]
    first, second = (record.value for record in trace[Stage.TOKENS])
    assert torch.equal(first[1, :5], second[1, :5])
    assert (first[1, -1], second[1, -1]) == (sdxl.tokenizer.pad_token_id, sdxl.tokenizer_2.pad_token_id)
    assert trace[Stage.TEXT][0].value.shape == (2, 32, 56)
    assert trace[Stage.POOLED][0].value.shape == (2, 24)
    assert not trace[Stage.TEXT][0].value[0].any()  # nothing was said, and SDXL then hears zeros
    assert trace.tokens[1][2].text == "red"


@pytest.mark.parametrize("stage", [Stage.TOKENS, Stage.TEXT, Stage.POOLED])
def test_an_edit_of_what_sdxl_hears_changes_the_picture(sdxl, stage):
    @sdkit.on(stage)
    def edit(event):
        event.value = event.value.flip(-1)

    result = made(sdxl, hooks=[edit])
    assert not torch.equal(result.latents, made(sdxl).latents)
    assert len(result.settings["edited_by"]) == 1


def test_edited_tokens_of_the_negative_half_are_heard_instead_of_silence(sdxl):
    @sdkit.on(Stage.TOKENS)
    def speak(event):
        event.value = torch.cat([event.value[1:], event.value[1:]])

    trace = Trace(["text"])
    made(sdxl, hooks=[speak, trace])
    negative, positive = trace[Stage.TEXT][0].value
    assert torch.equal(negative, positive)


def test_an_edited_mask_is_where_it_paints(sd1):
    @sdkit.on(Stage.MASK)
    def nowhere(event):
        event.value = torch.zeros_like(event.value)

    def encoded(event):
        if event.stage is Stage.POSTERIOR:
            kept.append(event.value)

    kept = []
    result = made(sd1, PAINT, hooks=[nowhere, encoded])
    mean, _ = kept[0].chunk(2, dim=1)
    assert (result.latents - mean * sd1.vae.config.scaling_factor).abs().max() < 1  # but for the draw
    assert not torch.equal(result.latents, made(sd1, PAINT).latents)


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "euler_a", "unipc"])
@pytest.mark.parametrize("kind", ["sdxl text", "sdxl inpaint", "sd1 inpaint", "inpainting"])
def test_a_branch_without_a_change_gives_the_same_bits(kind, scheduler, sd1, sdxl, inpainting, tmp_path):
    pipeline = {"sd1": sd1, "sdxl": sdxl, "inpainting": inpainting}[kind.split()[0]]
    arguments = {} if kind == "sdxl text" else PAINT
    trace = Trace()
    result = made(pipeline, arguments, scheduler=scheduler, num_images_per_prompt=2, hooks=[trace])
    reopened = Trace.load(trace.save(tmp_path / "run.safetensors"))
    for one in (trace, reopened):
        branch = one.branch(2, model=pipeline)
        assert torch.equal(branch[Stage.LATENT][-1].value, result.latents)
    other = trace.branch(2, model=pipeline, prompt="a cat")
    assert not torch.equal(other[Stage.LATENT][-1].value, result.latents)


def test_a_branch_of_a_hand_over_goes_on_in_the_process_that_holds_its_latents(sdxl, tmp_path):
    base = made(sdxl, denoising_end=0.6)
    trace = Trace()
    result = sdkit.image_to_image(
        base.latents, "a red star", model=sdxl, seed=7, denoising_start=0.6, num_inference_steps=5, hooks=[trace]
    )
    assert torch.equal(trace.branch(1)[Stage.LATENT][-1].value, result.latents)
    reopened = Trace.load(trace.save(tmp_path / "run.safetensors"))
    with pytest.raises(ValueError, match="does not hold image, which its run was given"):
        reopened.branch(1, model=sdxl)


def test_a_painted_picture_is_run_again_from_its_picture_and_its_mask(sdxl, tmp_path):
    (path,) = made(sdxl, PAINT).save(tmp_path / "out.png")
    with pytest.raises(ValueError, match="was made from mask_image; give that picture as mask_image"):
        sdkit.rerun(path, model=sdxl, image=photo(0))
    (again,) = sdkit.rerun(path, model=sdxl, image=photo(0), mask_image=MASK).save(tmp_path / "again.png")
    assert again.read_bytes() == path.read_bytes()


def test_attention_is_seen_and_edited_in_sdxl(sdxl):
    maps, trace = sdkit.AttentionMaps(), Trace(["tokens", "attention", "block"])
    assert torch.equal(made(sdxl, hooks=[maps, trace]).latents, made(sdxl).latents)
    assert maps.words == ["a", "red", "star"]
    assert maps.heat("red").shape == (64, 64)
    assert {record.layer.split(".")[0] for record in trace["attention"]} == {"down_blocks", "mid_block", "up_blocks"}
    assert not torch.equal(made(sdxl, hooks=[hooks.reweight("star", 3)]).latents, made(sdxl).latents)
    mixed = [hooks.mix_words("star", "cat", 1.0)]
    assert not torch.equal(made(sdxl, hooks=mixed).latents, made(sdxl).latents)
    assert sdkit.read_prompt("a red star", model=sdxl).hidden.shape == (4, 32, 32)


def test_words_given_as_embeddings_of_a_model_make_their_picture(sdxl):
    model = sdkit.load(sdxl)
    text, pooled = model.encode_text(model.tokenize(["a red star"]))
    given = {"prompt": None, "prompt_embeds": text, "pooled_prompt_embeds": pooled}
    assert torch.equal(made(sdxl, given).latents, made(sdxl).latents)
    with pytest.raises(ValueError, match="takes prompt_embeds and pooled_prompt_embeds together; give both"):
        made(sdxl, {"prompt": None, "prompt_embeds": text})


def test_a_unet_that_sees_a_mask_asks_for_one(inpainting):
    with pytest.raises(ValueError, match="paints into pictures: its U-Net sees a mask"):
        made(inpainting)
    with pytest.raises(ValueError, match="paints into pictures: its U-Net sees a mask"):
        made(inpainting, {"image": photo(0)})


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.convert("RGB"),
        torch.tensor([[[0.0]]]).expand(1, 64, 64).clone().index_fill_(2, torch.arange(8, 50), 1.0),
    ],
    ids=["grey", "colour", "tensor"],
)
def test_masks_of_every_form_are_taken(sd1, mask):
    trace = Trace(["mask"])
    made(sd1, {**PAINT, "mask_image": mask, "num_inference_steps": 2}, hooks=[trace])
    value = trace[Stage.MASK][0].value
    assert value.shape == (1, 1, 64, 64)
    assert set(value.unique().tolist()) == {0.0, 1.0}
    assert value[0, 0, 20, 20] == 1
    assert value[0, 0, 20, 2] == 0
