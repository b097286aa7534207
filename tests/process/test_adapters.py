"""What a pipeline carries keeps its effect and its parity: LoRA, textual inversion, IP-Adapter, ControlNet."""

import warnings

import pytest
import torch
from carried import random_controlnet, with_controlnet, with_ip_adapter
from conftest import random_pipeline, random_xl_pipeline
from test_parity import assert_same, by_diffusers, kind_of, photo, reference_scheduler, task_arguments

import sdkit

RUN = {"prompt": "a red star", "num_inference_steps": 3, "guidance_scale": 5.0}
MAKERS = {"sd1": random_pipeline, "sdxl": random_xl_pipeline}


def ours(pipeline, arguments, **more):
    function = sdkit.image_to_image if "image" in arguments else sdkit.text_to_image
    return function(model=pipeline, scheduler="ddim", seed=7, **arguments, **more)


def theirs(pipeline, arguments, kind=None):
    return by_diffusers(pipeline, reference_scheduler("ddim", pipeline), [7], kind, **arguments)


@pytest.mark.parametrize("family", MAKERS)
def test_a_lora_keeps_its_effect_and_its_parity(family, tmp_path):
    peft = pytest.importorskip("peft")
    pipeline = MAKERS[family](tmp_path)
    plain = ours(pipeline, RUN)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    pipeline.text_encoder.add_adapter(
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    with_lora = ours(pipeline, RUN)
    assert not torch.equal(with_lora.latents, plain.latents)
    assert_same(with_lora, theirs(pipeline, RUN))
    reading = []
    assert torch.equal(ours(pipeline, RUN, hooks=[reading.append]).latents, with_lora.latents)
    pipeline.unet.disable_adapters()
    pipeline.text_encoder.disable_adapters()
    assert torch.equal(ours(pipeline, RUN).latents, plain.latents)


@pytest.mark.parametrize("scale", [0.7, 0.0])
def test_a_run_with_a_scale_leaves_adapters_as_strong_as_they_were(scale, tmp_path):
    peft = pytest.importorskip("peft")
    pipeline = random_pipeline(tmp_path)
    torch.manual_seed(1)
    for module, targets in ((pipeline.unet, ["to_q"]), (pipeline.text_encoder, ["q_proj"])):
        module.add_adapter(peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))

    def scales():
        modules = [*pipeline.unet.modules(), *pipeline.text_encoder.modules()]
        return [dict(one.scaling) for one in modules if hasattr(one, "scaling")]

    for layer in pipeline.unet.modules():
        if hasattr(layer, "scaling"):
            layer.scale_layer(0.3)
    before = scales()
    arguments = {**RUN, "cross_attention_kwargs": {"scale": scale}}
    first = ours(pipeline, arguments)
    assert scales() == before
    assert torch.equal(ours(pipeline, arguments).latents, first.latents)


def test_an_inverted_word_of_several_vectors_is_heard_as_in_diffusers(tmp_path):
    pipeline = random_pipeline(tmp_path)
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    pipeline.load_textual_inversion(vectors, token="<toy>")
    arguments = {**RUN, "prompt": "a <toy> on a white background"}
    result = ours(pipeline, arguments)
    assert_same(result, theirs(pipeline, arguments))
    assert not torch.equal(result.latents, ours(pipeline, {**RUN, "prompt": "a on a white background"}).latents)


@pytest.mark.parametrize("family", MAKERS)
def test_a_picture_guides_through_an_ip_adapter_as_in_diffusers(family, tmp_path):
    pipeline = with_ip_adapter(MAKERS[family](tmp_path))
    latents = []
    for task in ("text", "image", "inpaint"):
        arguments = {**task_arguments(task, 5.0), "ip_adapter_image": photo(3, (96, 96)), "num_images_per_prompt": 2}
        result = ours(pipeline, arguments)
        scheduler = reference_scheduler("ddim", pipeline)
        assert_same(result, by_diffusers(pipeline, scheduler, [7, 8], kind_of(pipeline, task), **arguments))
        latents.append(result.latents)
    pipeline.set_ip_adapter_scale(0.0)
    arguments["ip_adapter_image"] = photo(4)
    assert not torch.equal(ours(pipeline, arguments).latents, latents[-1])
    with pytest.raises(ValueError, match="carries an IP-Adapter; give the picture that it goes by as ip_adapter_image"):
        ours(pipeline, RUN)
    embeds = pipeline.prepare_ip_adapter_image_embeds(photo(3), None, "cpu", 1, True)
    assert_same(
        ours(pipeline, RUN, ip_adapter_image_embeds=embeds),
        theirs(pipeline, {**RUN, "ip_adapter_image_embeds": embeds}),
    )


def test_what_no_ip_adapter_hears_is_said(sd1):
    with pytest.raises(ValueError, match="carries no IP-Adapter; load one with"):
        sdkit.text_to_image("a star", model=sd1, ip_adapter_image=photo(0))
    with pytest.raises(ValueError, match="carries no ControlNet; load a pipeline with one"):
        sdkit.text_to_image("a star", model=sd1, control_image=photo(0))


@pytest.mark.parametrize("family", MAKERS)
def test_a_controlnet_steers_as_in_diffusers(family, tmp_path):
    base = MAKERS[family](tmp_path)
    pipeline = with_controlnet(base, random_controlnet(base, 1))
    control, size = photo(5), {"height": 64, "width": 64}
    plain = ours(base, {**RUN, **size})
    for options in (
        {},
        {"controlnet_conditioning_scale": 0.5, "num_images_per_prompt": 2},
        {"control_guidance_start": 0.3, "control_guidance_end": 0.7},
        {"guess_mode": True},
        {"guidance_scale": 1.0},
    ):
        arguments = {**RUN, **size, **options}
        seeds = [7, 8][: options.get("num_images_per_prompt", 1)]
        scheduler = reference_scheduler("ddim", pipeline)
        reference = by_diffusers(pipeline, scheduler, seeds, image=control, **arguments)
        result = ours(pipeline, arguments, control_image=control)
        assert_same(result, reference)
        assert not torch.equal(result.latents, plain.latents)
    with pytest.raises(ValueError, match="carries a ControlNet; give the picture that it goes by as control_image"):
        ours(pipeline, RUN)


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("task", ["image", "inpaint"])
def test_a_controlnet_steers_variations_and_inpainting_as_in_diffusers(family, task, tmp_path):
    base = MAKERS[family](tmp_path)
    pipeline = with_controlnet(base, random_controlnet(base, 1), {"image": "Img2Img", "inpaint": "Inpaint"}[task])
    arguments = {**task_arguments(task, 5.0), "control_image": photo(5), "height": 64, "width": 64}
    arguments["controlnet_conditioning_scale"] = 0.8
    assert_same(ours(pipeline, arguments), theirs(pipeline, arguments))


def test_two_controlnets_steer_together_as_in_diffusers(tmp_path):
    base = random_pipeline(tmp_path)
    pipeline = with_controlnet(base, [random_controlnet(base, 1), random_controlnet(base, 2)])
    arguments = {**RUN, "controlnet_conditioning_scale": [0.5, 0.9], "height": 64, "width": 64}
    controls = [photo(5), photo(6)]
    reference = by_diffusers(pipeline, reference_scheduler("ddim", pipeline), [7], image=controls, **arguments)
    assert_same(ours(pipeline, arguments, control_image=controls), reference)
    with pytest.raises(ValueError, match="control_image must be a list of 2, one for each ControlNet"):
        ours(pipeline, RUN, control_image=photo(5))


def test_what_steered_a_picture_is_asked_for_when_it_is_rerun(tmp_path):
    base = random_pipeline(tmp_path)
    pipeline = with_controlnet(base, random_controlnet(base, 1))
    (path,) = ours(pipeline, RUN, control_image=photo(5)).save(tmp_path / "out.png")
    with pytest.raises(ValueError, match="was made from control_image; give that picture as control_image"):
        sdkit.rerun(path, model=pipeline)
    (again,) = sdkit.rerun(path, model=pipeline, control_image=photo(5)).save(tmp_path / "again.png")
    assert again.read_bytes() == path.read_bytes()
    with pytest.warns(UserWarning, match="control_image was"):
        sdkit.rerun(path, model=pipeline, control_image=photo(6))


@pytest.mark.parametrize("family", MAKERS)
def test_attention_is_seen_beside_a_lora_and_an_ip_adapter_and_changes_no_bit(family, tmp_path):
    peft = pytest.importorskip("peft")
    pipeline = with_ip_adapter(MAKERS[family](tmp_path))
    pipeline.unet.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_k"], init_lora_weights=False))
    arguments = {**RUN, "ip_adapter_image": photo(3), "height": 96, "width": 64, "num_images_per_prompt": 2}
    maps, trace = sdkit.AttentionMaps(), sdkit.Trace(["attention", "self_attention", "block"])
    processors = {name: type(one) for name, one in pipeline.unet.attn_processors.items()}
    seen = ours(pipeline, arguments, hooks=[maps, trace])
    assert torch.equal(seen.latents, ours(pipeline, arguments).latents)
    assert maps.words == ["a", "red", "star"]
    assert maps.heat("star", picture=1).shape == (96, 64)
    attention = trace["attention"][0].value
    assert torch.allclose(attention.sum(-1), torch.ones(attention.shape[:-1]), atol=1e-5)
    assert {type(one) for one in pipeline.unet.attn_processors.values()} == set(processors.values())


# ---------------------------------------------------------------------------------------------------------------------
# The record of what acts


def test_whatever_acts_beside_the_weights_is_recorded_and_its_change_is_said(tmp_path):
    peft = pytest.importorskip("peft")
    pipeline = random_pipeline(tmp_path)
    options = {"model": pipeline, "seed": 1, "num_inference_steps": 2, "height": 64, "width": 64}
    assert sdkit.text_to_image("a star", **options).settings["extras"] == {}
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"]), "wc")
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    result = sdkit.text_to_image("a star", **options)
    assert result.settings["extras"]["freeu"] == {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}
    assert list(result.settings["extras"]["adapters"]["unet"]) == ["wc"]
    (path,) = result.save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(sdkit.rerun(path, model=pipeline).latents, result.latents)

    def said():
        with pytest.warns(UserWarning, match="may come out otherwise") as caught:
            again = sdkit.rerun(path, model=pipeline)
        assert not torch.equal(again.latents, result.latents)
        return str(caught[0].message)

    pipeline.unet.set_adapters(["wc"], [0.3])
    assert "adapters was {'unet': {'wc': " in said()
    pipeline.unet.disable_adapters()
    assert "and is {'unet': {'wc': 'off'}}" in said()
    pipeline.unet.enable_adapters()
    pipeline.unet.set_adapters(["wc"], [1.0])
    pipeline.disable_freeu()
    assert "freeu was {'s1': 0.9, 's2': 0.2, 'b1': 1.5, 'b2': 1.6} and is None" in said()


def test_another_embedding_under_the_same_token_is_said(tmp_path):
    pipeline = random_pipeline(tmp_path)
    options = {"model": pipeline, "seed": 1, "num_inference_steps": 2, "height": 64, "width": 64}
    pipeline.load_textual_inversion({"<mine>": torch.randn(32)}, token="<mine>")
    result = sdkit.text_to_image("a <mine> star", **options)
    (path,) = result.save(tmp_path / "a.png")
    number = pipeline.tokenizer.convert_tokens_to_ids("<mine>")
    with torch.no_grad():
        pipeline.text_encoder.get_input_embeddings().weight[number] += 1
    with pytest.warns(UserWarning, match="tokens was {'tokenizer: <mine>'"):
        again = sdkit.rerun(path, model=pipeline)
    assert not torch.equal(again.latents, result.latents)


def test_an_inverted_word_of_several_vectors_is_asked_for_by_its_name(tmp_path):
    pipeline = random_pipeline(tmp_path)
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    pipeline.load_textual_inversion(vectors, token="<toy>")
    reading = sdkit.read_prompt("a <toy> star", model=pipeline)
    assert [(word.text, len(word.places)) for word in reading.words] == [("a", 1), ("<toy>", 3), ("star", 1)]
    maps = sdkit.AttentionMaps(words=["<toy>"])
    sdkit.text_to_image(model=pipeline, seed=7, hooks=[maps], **RUN | {"prompt": "a <toy> star"})
    assert maps.heat("<toy>").ndim == 2


def test_a_word_is_found_in_whatever_unicode_form_it_is_written(tmp_path):
    model = sdkit.load(random_pipeline(tmp_path))
    words = sdkit.read_prompt("a caf\u00e9 star", model=model).words
    places = [word.places for word in words if word.text.startswith("caf")]
    from sdkit.model.tokens import find

    for wanted in ("caf\u00e9", "cafe\u0301", "CAFE\u0301", "\uff43\uff41\uff46\u00e9"):
        assert tuple(find(words, wanted)) == places[0]
    with pytest.raises(ValueError, match="begin, end and padding are asked for by their place"):
        find(words, "<|startoftext|>")
