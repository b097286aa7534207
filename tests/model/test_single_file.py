"""One file in the original layout gives the picture of its folder, offline; and what sdkit carries for it is right."""

import json
from importlib.resources import files

import diffusers
import original_layout
import pytest
import torch
import transformers
from conftest import NOISE, random_text_encoder, random_unet, random_vae
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

import sdkit
from sdkit.model.single_file import _tokenizers
from sdkit.tiny import anatomy

FOUR = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "sample_size": 8,
}
THREE = {
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "transformer_layers_per_block": (1, 2, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "sample_size": 8,
}


def small(family, folder):
    """A pipeline with the anatomy of a family, as narrow as it may be for its file to be told from others'."""
    torch.manual_seed(0)
    tokenizer, other = anatomy.tokenizer(folder), anatomy.tokenizer(folder)
    other.pad_token = "!"
    parts = {"vae": random_vae(scaling_factor=0.18215), "tokenizer": tokenizer}
    parts["scheduler"] = diffusers.DDIMScheduler(**NOISE)
    plain = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if family in ("sd1", "inpainting"):
        parts |= {"text_encoder": random_text_encoder(tokenizer), "unet": random_unet(**FOUR)}
        if family == "inpainting":
            parts["unet"] = random_unet(**FOUR, in_channels=9)
            return diffusers.StableDiffusionInpaintPipeline(**parts, **plain)
        return diffusers.StableDiffusionPipeline(**parts, **plain)
    if family == "sd2":
        parts["text_encoder"] = random_text_encoder(tokenizer, 1024)
        parts["unet"] = random_unet(**FOUR, cross_attention_dim=1024, use_linear_projection=True)
        parts["scheduler"] = diffusers.DDIMScheduler(**NOISE, prediction_type="v_prediction")
        return diffusers.StableDiffusionPipeline(**parts, **plain)
    second = random_text_encoder(other, 24, CLIPTextModelWithProjection, layers=10)
    parts |= {"text_encoder_2": second, "tokenizer_2": other, "text_encoder": random_text_encoder(tokenizer)}
    if family == "sdxl":
        parts["unet"] = random_unet(**THREE, cross_attention_dim=56, projection_class_embeddings_input_dim=24 + 48)
        return diffusers.StableDiffusionXLPipeline(**parts)
    parts |= {"text_encoder": None, "tokenizer": None}
    parts["unet"] = random_unet(**THREE, cross_attention_dim=24, projection_class_embeddings_input_dim=24 + 40)
    return diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("sd2", "inpainting", "refiner")]


@pytest.mark.parametrize("family", ["sd1", "sdxl", *OTHERS])
def test_a_file_gives_the_picture_of_its_folder(family, tmp_path):
    pipeline = small(family, tmp_path / "tokenizer")
    pipeline.save_pretrained(tmp_path / "folder")
    path = original_layout.save(pipeline, tmp_path / "model.safetensors")
    pictures = []
    for model in (
        sdkit.load(tmp_path / "folder", device="cpu"),
        sdkit.load(path, device="cpu", config=tmp_path / "folder"),
    ):
        options = {"model": model, "seed": 3, "num_inference_steps": 3, "guidance_scale": 5.0}
        if family in ("inpainting", "refiner"):
            masks = {"mask_image": torch.ones(1, 64, 64)} if family == "inpainting" else {}
            photo = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
            pictures.append(sdkit.image_to_image(photo, "a red star", **masks, **options))
        else:
            pictures.append(sdkit.text_to_image("a red star", **options))
        assert type(model.pipeline) is type(pipeline)
    assert torch.equal(pictures[0].latents, pictures[1].latents)
    assert pictures[0].image.tobytes() == pictures[1].image.tobytes()


# Parameters of the published models, as their safetensors count them.
COUNTS = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "sdxl_refiner": {"vae": 83_653_863, "text_encoder_2": 694_659_840},
}


@pytest.mark.parametrize("family", COUNTS)
def test_the_configurations_that_sdkit_carries_have_the_size_of_the_published_models(family):
    contents = json.loads((files("sdkit.model") / "checkpoints" / f"{family}.json").read_text())
    index = contents["model_index.json"]
    for name, count in COUNTS[family].items():
        library, kind = index[name]
        config = contents[f"{name}/config.json"]
        with torch.device("meta"):
            if library == "diffusers":
                part = getattr(diffusers, kind).from_config(config)
            else:
                part = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
        assert sum(p.numel() for p in part.parameters()) == count, name
    scheduler = contents["scheduler/scheduler_config.json"]
    assert getattr(diffusers, scheduler["_class_name"]).from_config(scheduler).alphas_cumprod[-1] == pytest.approx(
        0.00466, abs=1e-5
    )


def test_the_vocabulary_that_sdkit_carries_is_clips():
    tokenizers = _tokenizers("sdxl")
    ids = tokenizers["tokenizer"]("a photo of a cat").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(tokenizers["tokenizer"]) == 49408
    padded = [
        t("a cat", padding="max_length").input_ids for t in (*tokenizers.values(), _tokenizers("sd2")["tokenizer"])
    ]
    assert [(len(row), row[-1]) for row in padded] == [(77, 49407), (77, 0), (77, 0)]


@pytest.mark.slow
def test_a_file_is_told_or_tells_by_a_key_that_it_predicts_v(tmp_path):
    pipeline = small("sd1", tmp_path / "tokenizer")
    pipeline.save_pretrained(tmp_path / "folder")
    path = original_layout.save(pipeline, tmp_path / "model.safetensors")
    tells = tmp_path / "tells.safetensors"
    save_file({**load_file(path), "v_pred": torch.zeros(0)}, tells)
    for file, options, expected in (
        (path, {}, "epsilon"),
        (path, {"prediction_type": "v_prediction"}, "v_prediction"),
        (tells, {}, "v_prediction"),
        (tells, {"prediction_type": "epsilon"}, "epsilon"),
    ):
        model = sdkit.load(file, device="cpu", config=tmp_path / "folder", **options)
        assert model.scheduler.config.prediction_type == expected
        assert not model.scheduler.config.get("rescale_betas_zero_snr")
    save_file({**load_file(path), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tells)
    model = sdkit.load(tells, device="cpu", config=tmp_path / "folder")
    config = sdkit.text_to_image("a star", model=model, scheduler="ddim", num_inference_steps=1, seed=1).settings
    assert config["scheduler"]["rescale_betas_zero_snr"]
    assert config["scheduler"]["prediction_type"] == "v_prediction"
    assert config["start"]["t"] == 999
    assert model.guidance_scale == 7.5  # no Turbo for that


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("lora.safetensors", {"lora_unet.down.weight": torch.zeros(2)}, "holds no whole Stable Diffusion model"),
        (
            "flux.safetensors",
            {"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(2)},
            "is a flux-schnell model",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, name, weights, words):
    save_file(weights, tmp_path / name)
    with pytest.raises(ValueError, match=words):
        sdkit.load(tmp_path / name)


def test_a_damaged_file_and_a_pickle_are_refused(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"1234567890")
    with pytest.raises(ValueError, match="is incomplete or damaged"):
        sdkit.load(tmp_path / "cut.safetensors")
    torch.save({}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="is a pickle, which may run code when it is read"):
        sdkit.load(tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="holds no whole Stable Diffusion model"):
        sdkit.load(tmp_path / "model.ckpt", allow_pickle=True)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        sdkit.load(tmp_path / "none.safetensors")


def test_a_checkpoint_that_may_be_unpickled_gives_the_same_picture(tmp_path):
    pipeline = small("sd1", tmp_path / "tokenizer")
    pipeline.save_pretrained(tmp_path / "folder")
    path = original_layout.save(pipeline, tmp_path / "model.safetensors")
    torch.save({"state_dict": load_file(path)}, tmp_path / "model.ckpt")
    options = {"device": "cpu", "config": tmp_path / "folder"}
    models = sdkit.load(path, **options), sdkit.load(tmp_path / "model.ckpt", allow_pickle=True, **options)
    assert models[0].fingerprint() == models[1].fingerprint()
