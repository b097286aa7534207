import functools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import random_pipeline
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.model import loading


def test_threads_that_load_at_once_get_whole_models_and_the_embedded_one_once(tiny, tmp_path, monkeypatch):
    tiny.pipeline.save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "_embedded", functools.cache(loading._embedded.__wrapped__))
    with ThreadPoolExecutor(4) as threads:
        kept = threads.map(lambda _: sdkit.load(device="cpu"), range(3))
        read = threads.map(lambda _: sdkit.load(tmp_path, device="cpu"), range(3))
        own, others = list(kept), list(read)
    assert len(set(map(id, own))) == 1
    assert {one.fingerprint() for one in [*own, *others]} == {tiny.fingerprint()}


def test_the_embedded_model_is_loaded_once(tiny):
    assert sdkit.load(device="cpu") is tiny
    assert sdkit.load("sdkit/tiny", device="cpu") is tiny


def test_a_model_is_returned_as_it_is_and_a_pipeline_is_wrapped(sd1):
    model = sdkit.load(sd1)
    assert model.pipeline is sd1
    assert sdkit.load(model) is model
    assert (model.num_inference_steps, model.guidance_scale) == (50, 7.5)


def test_a_pipeline_from_a_path_has_a_name_that_a_record_can_keep(sd1, tmp_path):
    sd1.save_pretrained(tmp_path)
    result = sdkit.text_to_image("a star", model=type(sd1).from_pretrained(tmp_path), seed=2, num_inference_steps=1)
    assert json.loads(json.dumps(result.settings))["model"] == str(tmp_path)


def test_a_folder_in_diffusers_layout_gives_the_picture_of_its_pipeline(sd1, tmp_path):
    sd1.save_pretrained(tmp_path / "model")
    options = {"seed": 2, "num_inference_steps": 3}
    loaded = sdkit.load(tmp_path / "model", device="cpu")
    from_folder = sdkit.text_to_image("a star", model=loaded, **options)
    assert torch.equal(from_folder.latents, sdkit.text_to_image("a star", model=sd1, **options).latents)
    assert loaded.name == str(tmp_path / "model")


def test_dtype_is_that_of_every_part(sd1, tmp_path):
    sd1.save_pretrained(tmp_path / "model")
    model = sdkit.load(tmp_path / "model", device="cpu", dtype="bfloat16")
    assert {part.dtype for part in (model.unet, model.vae, model.text_encoder)} == {torch.bfloat16}
    result = sdkit.text_to_image("a star", model=model, seed=0, num_inference_steps=2)
    assert result.latents.dtype == torch.bfloat16
    assert np.asarray(result.image).shape == (64, 64, 3)


def test_loading_leaves_the_loudness_of_the_libraries_as_it_was(sd1, tmp_path):
    import logging

    from diffusers.utils import logging as diffusers_logging

    sd1.save_pretrained(tmp_path / "model")
    before = logging.getLogger("transformers").level, diffusers_logging.is_progress_bar_enabled()
    sdkit.load(tmp_path / "model", device="cpu")
    assert (logging.getLogger("transformers").level, diffusers_logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        ("./no/such/folder", {}, FileNotFoundError, "there is no file or folder './no/such/folder'"),
        ("./nowhere", {}, FileNotFoundError, "there is no file or folder './nowhere'"),
        ("no-such-owner/no-such-model", {}, FileNotFoundError, "the hub could not be reached"),
        ("nonsense", {}, FileNotFoundError, "nor is that an id of the form owner/name"),
        (None, {"dtype": "float17"}, ValueError, "unknown dtype 'float17'; did you mean 'float16'"),
        (None, {"storage_dtype": "float32"}, ValueError, "unknown storage_dtype 'float32'; "),
        (None, {"dtype": "float16", "storage_dtype": "float16"}, ValueError, "for computing in float32, not in"),
        (
            7,
            {},
            TypeError,
            "model must be a name, a folder, a file, a Stable Diffusion pipeline or an sdkit Model, but is a int",
        ),
        (None, {"device": "cuda:99"}, ValueError, "device 'cuda:99' is not to be had here; the best that is"),
    ],
)
def test_what_cannot_be_loaded_is_said(model, options, error, words):
    with pytest.raises(error, match=words):
        sdkit.load(model, **options)


def test_a_folder_without_a_model_and_a_model_of_another_family_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model_index\.json"):
        sdkit.load(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="is a FluxPipeline; expected a Stable Diffusion model"):
        sdkit.load(tmp_path)


@pytest.mark.parametrize(
    ("unet", "words"),
    [
        ({"in_channels": 5}, "its U-Net sees 5 channels"),
        ({"class_embed_type": "timestep"}, "its U-Net is conditioned on something else than text and sizes"),
    ],
)
def test_parts_that_sdkit_cannot_drive_are_named(tmp_path, unet, words):
    with pytest.raises(ValueError, match=f"StableDiffusionPipeline cannot be driven: {words}; expected a Stable"):
        sdkit.load(random_pipeline(tmp_path, **unet))


def test_a_pipeline_without_a_unet_is_no_stable_diffusion():
    class FluxPipeline:
        transformer = None

    with pytest.raises(ValueError, match="FluxPipeline cannot be driven: it lacks a U-Net"):
        sdkit.load(FluxPipeline())


def test_what_was_distilled_takes_few_steps_by_default(sd1, sdxl, tmp_path):
    assert (sdkit.load(sdxl).num_inference_steps, sdkit.load(sdxl).guidance_scale) == (50, 5.0)
    sdxl.save_pretrained(tmp_path / "turbo_lab")
    assert sdkit.load(tmp_path / "turbo_lab", device="cpu").guidance_scale == 5.0  # a path decides nothing
    config = tmp_path / "turbo_lab" / "scheduler" / "scheduler_config.json"
    written = json.loads(config.read_text()) | {"timestep_spacing": "trailing"}
    for other in ({"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}):  # as no Turbo has it
        config.write_text(json.dumps(written | other))
        assert sdkit.load(tmp_path / "turbo_lab", device="cpu").num_inference_steps == 50
    config.write_text(json.dumps(written))
    turbo = sdkit.load(tmp_path / "turbo_lab", device="cpu")
    assert (turbo.num_inference_steps, turbo.guidance_scale) == (1, 0.0)
    result = sdkit.text_to_image("a star", model=turbo, seed=1)
    assert (result.settings["num_inference_steps"], result.settings["guidance_scale"]) == (1, 0.0)


def test_pickled_weights_are_refused_unless_they_are_asked_for(sd1, tmp_path):
    sd1.save_pretrained(tmp_path / "model", safe_serialization=False)
    with pytest.raises(ValueError, match="holds pickled weights"):
        sdkit.load(tmp_path / "model", device="cpu")
    loaded = sdkit.load(tmp_path / "model", device="cpu", allow_pickle=True)
    options = {"seed": 2, "num_inference_steps": 2}
    ours, theirs = (sdkit.text_to_image("a star", model=model, **options).latents for model in (loaded, sd1))
    assert torch.equal(ours, theirs)


def test_a_variant_is_that_of_the_folder(sd1, tmp_path):
    sd1.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(FileNotFoundError, match="is incomplete or damaged"):
        sdkit.load(tmp_path, device="cpu")
    assert sdkit.load(tmp_path, device="cpu", variant="fp16").fingerprint() == sdkit.load(sd1).fingerprint()


def test_a_damaged_folder_is_not_mistaken_for_the_hub(sd1, tmp_path):
    sd1.save_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="is incomplete or damaged"):
        sdkit.load(tmp_path)


def test_a_pipeline_is_not_moved_behind_its_owners_back(sd1):
    with pytest.raises(ValueError, match=r"pipeline.to\(...\)"):
        sdkit.load(sd1, dtype="float16")


def without_name(config):
    return {
        name: value for name, value in dict(config).items() if name not in ("_name_or_path", "transformers_version")
    }


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parts_are_those_that_diffusers_would_have_loaded(pipelines, family, dtype, tmp_path):
    pipelines[family].save_pretrained(tmp_path)
    theirs = type(pipelines[family]).from_pretrained(tmp_path, dtype=dtype)
    ours = sdkit.load(tmp_path, device="cpu", dtype=dtype).pipeline
    for name, part in theirs.components.items():
        if isinstance(part, torch.nn.Module):
            other = ours.components[name]
            assert type(other) is type(part)
            assert not other.training
            known = part.config.to_dict() if hasattr(part.config, "to_dict") else part.config
            assert without_name(getattr(other.config, "to_dict", lambda: other.config)()) == without_name(known)  # noqa: B023
            for (key, weight), (same, read) in zip(tensors(part), tensors(other), strict=True):
                assert (key, weight.dtype, weight.requires_grad) == (same, read.dtype, read.requires_grad)
                assert torch.equal(weight, read), key


def tensors(part):
    return [*part.named_parameters(), *part.named_buffers()]


def test_weights_under_older_names_are_still_read(sd1, tmp_path):
    sd1.save_pretrained(tmp_path)
    file = tmp_path / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights["embeddings.position_ids"] = torch.arange(32)[None]  # as older files have it
    save_file({f"text_model.{name.removeprefix('text_model.')}": one for name, one in weights.items()}, file)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for name in list(weights):
        if "mid_block.attentions" in name:
            layer, _, end = name.rpartition(".")
            for new, before in old.items():
                layer = layer.removesuffix(new) + before if layer.endswith(f".{new}") else layer
            weights[f"{layer}.{end}"] = weights.pop(name)
    assert any("proj_attn" in name for name in weights)
    save_file(weights, file)
    assert sdkit.load(tmp_path, device="cpu").fingerprint() == sdkit.load(sd1).fingerprint()


def test_large_weights_stay_in_the_pages_of_their_file_and_others_lie_at_even_addresses(tmp_path, sd1, monkeypatch):
    sd1.save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(file).items()}
    for letters in range(64):  # until the header ends so that the weights begin at an odd address
        save_file(weights, file, {"of": "x" * letters})
        if int.from_bytes(file.read_bytes()[:8], "little") % 64 == 0:
            break
    monkeypatch.setattr(loading, "SMALL", 4096)
    unet = sdkit.load(tmp_path, device="cpu").unet
    odd = {name for name, weight in unet.named_parameters() if weight.data_ptr() % 64}
    assert odd
    assert all(unet.get_parameter(name).nbytes >= 4096 for name in odd)
    assert not [name for name in odd if "time_emb" in name]


def test_weights_kept_in_half_precision_draw_the_picture_of_the_same_files_in_float32_in_half_the_memory(tiny):
    kept = sdkit.load(device="cpu", storage_dtype="float16")
    options = {"seed": 3, "num_inference_steps": 3, "progress": False}
    ours, plain = (sdkit.text_to_image("a red star", model=model, **options) for model in (kept, tiny))
    assert torch.equal(ours.latents, plain.latents)
    assert ours.image.tobytes() == plain.image.tobytes()
    assert kept.fingerprint() == tiny.fingerprint()
    assert "float32" in repr(kept)
    assert size_of(kept) < 0.52 * size_of(tiny)


def size_of(model):
    parts = (model.unet, model.vae, model.text_encoder)
    return sum(weight.nbytes for part in parts for weight in part.parameters())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_weights_kept_in_half_precision_are_those_of_diffusers_in_float32(family, request, tmp_path):
    kind = type(request.getfixturevalue(family))
    request.getfixturevalue(family).save_pretrained(tmp_path)
    kind.from_pretrained(tmp_path, dtype=torch.float16).save_pretrained(tmp_path)
    kept = sdkit.load(tmp_path, device="cpu", storage_dtype=torch.float16)
    options = {"seed": 3, "num_inference_steps": 2, "progress": False}
    plain = sdkit.load(kind.from_pretrained(tmp_path, dtype=torch.float32))
    results = [sdkit.text_to_image("a star", model=model, **options) for model in (kept, plain)]
    assert torch.equal(results[0].latents, results[1].latents)
    assert results[0].image.tobytes() == results[1].image.tobytes()
    assert size_of(kept) < 0.75 * size_of(plain)  # of words, which such small parts mostly are, all are widened


def test_hooks_inside_a_unet_of_narrow_weights_hear_and_change_what_they_do_in_float32(tiny):
    kept = sdkit.load(device="cpu", storage_dtype="float16")
    options = {"seed": 3, "num_inference_steps": 2, "progress": False}
    found = []
    for model in (kept, tiny):
        trace = sdkit.Trace(["block", "key"])
        hooks = [trace, sdkit.hooks.free_u(b1=1.2)]
        result = sdkit.text_to_image("a red star", model=model, hooks=hooks, **options)
        found.append((result.latents, [record.value for record in trace.records]))
    (latents, seen), (others, seen_by_others) = found
    assert torch.equal(latents, others)
    assert len(seen) == len(seen_by_others) > 0
    assert all(torch.equal(a, b) for a, b in zip(seen, seen_by_others, strict=True))
