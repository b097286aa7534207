"""A model that is broken says so: in one sentence, whichever way it comes in, and none draws with what was made up."""

import json
import shutil

import pytest
import torch
from conftest import random_pipeline, random_text_encoder, random_unet, random_vae, random_xl_pipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from original_layout import save as save_original
from safetensors.torch import load_file, save_file
from test_single_file import small
from transformers import BertConfig, BertModel

import sdkit

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in diffusers' layout."""
    path = tmp_path_factory.mktemp("model")
    random_pipeline(tmp_path_factory.mktemp("tokenizer")).save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


@pytest.fixture
def own(tmp_path):
    """A pipeline that a test may change."""
    return random_pipeline(tmp_path / "tokenizer")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """One file in the original layout, beside the folder that describes it."""
    place = tmp_path_factory.mktemp("original")
    pipeline = small("sd1", place / "tokenizer")
    pipeline.save_pretrained(place / "folder")
    return save_original(pipeline, place / "model.safetensors")


def sentence_of(model, **options):
    options = options if model is None or hasattr(model, "unet") else {"device": "cpu"} | options
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        sdkit.load(model, **options)
    assert caught.type in (ValueError, FileNotFoundError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_the_same_weights(one, other):
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(model, name).state_dict() for model in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[weight]) for weight, value in ours.items()), name


def edit_json(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in {**content, **values}.items() if value != "gone"}))


def edit_weights(path, change):
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def lacking(share):
    return lambda weights: dict(list(weights.items())[int(len(weights) * share) :])


def with_a_shape(weights):
    name = min(weights)
    return {**weights, name: torch.zeros(3, 5)}


# ---------------------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lacking(0.5), " more; fetch"),
        (lambda _: {"foo": torch.zeros(2)}, "they lack "),
        (lambda weights: {**weights, "foo": torch.zeros(2)}, "they have beside them foo"),
        (with_a_shape, "they have in another shape "),
    ],
    ids=["half", "none", "more", "shape"],
)
def test_weights_that_are_missing_foreign_or_of_another_shape_are_listed(copy, part, change, words):
    edit_weights(copy / WEIGHTS[part], change)
    said = sentence_of(copy)
    assert f"the weights in {str(copy / part)!r} are not those of its " in said
    assert words in said


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("length", [0, -100, None], ids=str)
def test_weights_that_are_cut_short_or_gone_are_said(copy, part, length):
    file = copy / WEIGHTS[part]
    whole = file.read_bytes()
    file.unlink()
    if length is not None:
        file.write_bytes(whole[:length])
    said = sentence_of(copy)
    assert f"{str(copy / part)!r} is incomplete or damaged (" in said
    assert said.endswith("; fetch it again")


def test_weights_in_several_files_are_one_model_and_one_of_them_is_missed(folder, copy):
    pipeline = sdkit.load(folder, device="cpu").pipeline
    for part in ("unet", "text_encoder"):
        shutil.rmtree(copy / part)
        getattr(pipeline, part).save_pretrained(copy / part, max_shard_size="100KB")
        assert len(list((copy / part).glob("*.safetensors"))) > 1
    assert sdkit.load(copy, device="cpu").fingerprint() == sdkit.load(folder, device="cpu").fingerprint()
    for part in ("unet", "text_encoder"):
        max((copy / part).glob("*.safetensors")).unlink()
        assert str(copy) in sentence_of(copy)


def test_a_leftover_of_older_libraries_is_no_fault(folder, copy):
    places = {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    edit_weights(copy / WEIGHTS["text_encoder"], lambda weights: weights | places)
    assert sdkit.load(copy, device="cpu").fingerprint() == sdkit.load(folder, device="cpu").fingerprint()


def test_the_second_text_encoder_and_a_controlnet_are_read_with_the_same_care(tmp_path):
    from diffusers import ControlNetModel, MultiControlNetModel, StableDiffusionControlNetPipeline

    random_xl_pipeline(tmp_path / "tokenizer").save_pretrained(tmp_path / "xl")
    assert sdkit.load(tmp_path / "xl", device="cpu").is_xl
    edit_weights(tmp_path / "xl" / "text_encoder_2" / "model.safetensors", lacking(0.5))
    assert "text_encoder_2' are not those of its CLIPTextModelWithProjection" in sentence_of(tmp_path / "xl")
    pipeline = random_pipeline(tmp_path / "tokenizer")
    nets = [ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4, 8)) for _ in range(2)]
    steered = StableDiffusionControlNetPipeline(
        **{**pipeline.components, "controlnet": MultiControlNetModel(nets)}, requires_safety_checker=False
    )
    steered.save_pretrained(tmp_path / "steered")
    model = sdkit.load(tmp_path / "steered", device="cpu")
    assert model.fingerprint() == sdkit.load(steered).fingerprint()
    edit_weights(tmp_path / "steered/controlnet_1/diffusion_pytorch_model.safetensors", lacking(0.1))
    assert "controlnet_1' are not those of its ControlNetModel" in sentence_of(tmp_path / "steered")


# ---------------------------------------------------------------------------------------------------------------------
# Configurations and vocabularies

CONFIGS = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "model": "model_index.json",
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("content", ["{", "[1]", "\x00\xff", "{}", None, '{"_class_name": "BertModel"}'])
def test_a_configuration_that_is_none_is_said(copy, config, content):
    (copy / config).unlink()
    if content is not None:
        (copy / config).write_text(content, encoding="latin-1")
    assert str(copy) in sentence_of(copy)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ("unet", {"block_out_channels": "x"}),
        ("unet", {"block_out_channels": [16, 64]}),
        ("unet", {"cross_attention_dim": 48}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"norm_eps": "x"}),
        ("unet", {"act_fn": 5}),
        ("unet", {"downsample_padding": ["x"]}),
        ("unet", {"mid_block_scale_factor": float("nan")}),
        ("unet", {"down_block_types": ["X", "Y"]}),
        ("unet", {"sample_size": "x"}),
        ("unet", {"sample_size": None}),
        ("unet", {"in_channels": 5}),
        ("vae", {"latent_channels": 8}),
        ("vae", {"scaling_factor": "x"}),
        ("vae", {"_class_name": "AutoencoderKLWan"}),
        ("text_encoder", {"hidden_size": 64}),
        ("text_encoder", {"hidden_size": "x"}),
        ("text_encoder", {"num_hidden_layers": 5}),
        ("text_encoder", {"num_attention_heads": 7}),
        ("text_encoder", {"vocab_size": 10**4}),
        ("text_encoder", {"model_type": "bert"}),
        ("text_encoder", {"hidden_act": "x"}),
        ("text_encoder", {"layer_norm_eps": "x"}),
        ("scheduler", {"beta_start": "x"}),
        ("scheduler", {"beta_end": 7.0}),
        ("scheduler", {"beta_schedule": "x"}),
        ("scheduler", {"num_train_timesteps": 10**12}),
        ("scheduler", {"num_train_timesteps": "x"}),
        ("scheduler", {"num_train_timesteps": -1}),
        ("scheduler", {"trained_betas": ["x"]}),
        ("scheduler", {"prediction_type": "x"}),
        ("scheduler", {"_class_name": "X"}),
        ("model", {"text_encoder": ["transformers", "BertModel"]}),
        ("model", {"text_encoder": [None, None]}),
        ("model", {"unet": "gone"}),
        ("model", {"unet": []}),
        ("model", {"vae": "x"}),
        ("model", {"_class_name": ["x", "y"]}),
    ],
    ids=str,
)
def test_a_configuration_with_nonsense_is_said(copy, config, values):
    edit_json(copy / CONFIGS[config], **values)
    assert str(copy) in sentence_of(copy)


def cut_merges(place):
    content = json.loads((place / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:10]
    (place / "tokenizer.json").write_text(json.dumps(content))


VOCABULARIES = {
    "no folder": shutil.rmtree,
    "no vocabulary": lambda place: (place / "tokenizer.json").unlink(),
    "nothing in it": lambda place: (place / "tokenizer.json").write_bytes(b""),
    "cut short": lambda place: (place / "tokenizer.json").write_bytes((place / "tokenizer.json").read_bytes()[:9000]),
    "no object": lambda place: (place / "tokenizer.json").write_text("[]"),
    "no settings": lambda place: (place / "tokenizer_config.json").unlink(),
    "settings that are none": lambda place: (place / "tokenizer_config.json").write_text("["),
    "windows that are none": lambda place: edit_json(place / "tokenizer_config.json", model_max_length={}),
    "long windows": lambda place: edit_json(place / "tokenizer_config.json", model_max_length=10**9),
    "no merges": cut_merges,
}


@pytest.mark.parametrize("damage", VOCABULARIES.values(), ids=VOCABULARIES)
def test_a_damaged_tokenizer_is_said(copy, damage):
    damage(copy / "tokenizer")
    assert "tokenizer" in sentence_of(copy)


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit together, in a folder and in a pipeline


def a_bert(pipeline):
    pipeline.text_encoder = BertModel(
        BertConfig(
            vocab_size=len(pipeline.tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )


def more_tokens(pipeline):
    pipeline.tokenizer.add_tokens(["<cat>", "<dog>"])


def two_tokens(pipeline):
    pipeline.tokenizer = type(pipeline.tokenizer)()
    pipeline.tokenizer.model_max_length = 32


def put(name, make):
    return lambda pipeline: setattr(pipeline, name, make(pipeline))


MISFITS = {
    "its text_encoder is a BertModel": a_bert,
    "its tokenizer has 696 tokens and its text_encoder 694": more_tokens,
    "its tokenizer has 2 tokens and its text_encoder 694": two_tokens,
    "windows of 77 tokens": lambda pipeline: setattr(pipeline.tokenizer, "model_max_length", 77),
    "32 wide and its text encoders make 64": put("text_encoder", lambda own: random_text_encoder(own.tokenizer, 64)),
    "its U-Net sees 8 channels": put("unet", lambda _: random_unet(in_channels=8)),
    "its U-Net predicts 8 channels": put("unet", lambda _: random_unet(out_channels=8)),
    "its tokenizer is a NoneType": put("tokenizer", lambda _: None),
    "its U-Net is a NoneType": put("unet", lambda _: None),
    "its U-Net is a AutoencoderKL": put("unet", lambda _: random_vae()),
}


@pytest.mark.parametrize(("words", "change"), MISFITS.items(), ids=MISFITS)
def test_parts_that_do_not_fit_together_are_said(own, words, change):
    change(own)
    assert words in sentence_of(own)


@pytest.mark.parametrize("words", list(MISFITS)[1:7])
def test_parts_of_a_folder_that_do_not_fit_together_are_said(own, tmp_path, words):
    MISFITS[words](own)
    own.save_pretrained(tmp_path / "model")
    said = sentence_of(tmp_path / "model")
    assert words in said or "tokenizer" in said


def test_sdxl_needs_a_pooled_embedding_of_its_width(tmp_path):
    pipeline = random_xl_pipeline(tmp_path, projection_class_embeddings_input_dim=100)
    assert "takes a pooled text embedding of another width" in sentence_of(pipeline)


def test_a_learned_token_fits(own):
    own.tokenizer.add_tokens(["<cat>"])
    own.text_encoder.resize_token_embeddings(len(own.tokenizer))
    assert sdkit.load(own).pipeline is own


# ---------------------------------------------------------------------------------------------------------------------
# One file in the original layout

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


@pytest.mark.parametrize("prefix", [UNET, VAE, TEXT])
@pytest.mark.parametrize("fault", ["all", "first", "middle", "last", "shape", "more"])
def test_a_file_that_is_not_whole_is_said(original, tmp_path, prefix, fault):
    weights = load_file(original)
    names = sorted(name for name in weights if name.startswith(prefix))
    chosen = {"all": names, "first": names[:1], "middle": names[40:41], "last": names[-1:]}.get(fault, [])
    weights = {name: value for name, value in weights.items() if name not in chosen}
    weights |= {"shape": {names[40]: torch.zeros(3, 5)}, "more": {f"{prefix}foo": torch.zeros(1)}}.get(fault, {})
    save_file(weights, tmp_path / "model.safetensors")
    if (prefix, fault) == (TEXT, "more"):  # where OpenCLIP's files hold more than is used, CLIP's may
        assert sdkit.load(tmp_path / "model.safetensors", config=original.parent / "folder", device="cpu")
        return
    said = sentence_of(tmp_path / "model.safetensors", config=original.parent / "folder")
    assert str(tmp_path / "model.safetensors") in said


def test_a_file_takes_no_weights_from_the_folder_that_describes_it(original, tmp_path):
    save_file({n: v for n, v in load_file(original).items() if not n.startswith(TEXT)}, tmp_path / "a.safetensors")
    said = sentence_of(tmp_path / "a.safetensors", config=original.parent / "folder")
    assert "a.safetensors' holds no text_encoder; expected a checkpoint of U-Net" in said


def test_the_configurations_that_sdkit_carries_do_not_make_up_for_what_a_file_is_not(original):
    assert str(original) in sentence_of(original)


@pytest.mark.parametrize("length", [0, 7, -100])
def test_a_file_that_is_cut_short_is_said(original, tmp_path, length):
    (tmp_path / "model.safetensors").write_bytes(original.read_bytes()[:length])
    assert "model.safetensors' is incomplete or damaged" in sentence_of(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "content",
    [[], 5, torch.zeros(2), {}, {1: 2}, {"state_dict": 5}, {"state_dict": {"a": "b"}}, {1: torch.zeros(1)}],
    ids=str,
)
def test_an_odd_pickle_is_said(tmp_path, content):
    torch.save(content, tmp_path / "model.ckpt")
    assert "model.ckpt'" in sentence_of(tmp_path / "model.ckpt", allow_pickle=True)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", b"\x80\x04.", b"cos\nsystem\n(S'true'\ntR."])
def test_what_is_no_pickle_of_weights_is_said(tmp_path, content):
    (tmp_path / "model.ckpt").write_bytes(content)
    assert "model.ckpt' is incomplete or damaged" in sentence_of(tmp_path / "model.ckpt", allow_pickle=True)


@pytest.mark.parametrize("damage", ["tokenizer/tokenizer.json", *CONFIGS.values()])
def test_a_damaged_description_of_a_file_is_said(original, tmp_path, damage):
    described = shutil.copytree(original.parent / "folder", tmp_path / "folder")
    (described / damage).write_text("[")
    assert str(described) in sentence_of(original, config=described)
    (described / damage).unlink()
    assert str(described) in sentence_of(original, config=described)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments and the hub

GIVEN = {
    "variant": "fp16",
    "revision": "main",
    "token": "hf_x",
    "config": "a/b",
    "local_files_only": True,
    "allow_pickle": True,
    "prediction_type": "nonsense",
}


@pytest.mark.parametrize("name", GIVEN)
def test_an_argument_that_means_nothing_for_what_is_loaded_is_refused(sd1, folder, original, name):
    for model in (None, "sdkit/tiny", sd1, sdkit.load(sd1)):
        assert f"{name} would mean nothing for " in sentence_of(model, **{name: GIVEN[name]})
    if name in ("revision", "token", "config", "prediction_type"):
        assert f"{name} would mean nothing for a folder" in sentence_of(folder, **{name: GIVEN[name]})
    if name in ("revision", "token", "variant"):
        assert f"{name} would mean nothing for one file" in sentence_of(original, **{name: GIVEN[name]})
    if name in ("config", "prediction_type"):
        assert f"{name} would mean nothing for an id" in sentence_of("owner/name", **{name: GIVEN[name]})
    defaults = dict.fromkeys(GIVEN) | {"local_files_only": False, "allow_pickle": False, "token": False}
    assert sdkit.load(sd1, **defaults).pipeline is sd1


def test_arguments_of_one_file_are_checked(original):
    assert "unknown prediction_type 'nonsense'" in sentence_of(original, prediction_type="nonsense")
    assert "'a/b/model_index.json' is missing" in sentence_of(original, config="a/b")


def test_a_variant_that_a_folder_lacks_is_said(folder):
    assert "has no weights of the variant 'fp16'; leave variant out" in sentence_of(folder, variant="fp16")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("LocalEntryNotFoundError", "the hub could not be reached"),
        ("OfflineModeIsEnabled", "the hub could not be reached"),
        ("RepositoryNotFoundError", "check the id, or log in"),
        ("GatedRepoError", "log in with `hf auth login`"),
        ("RevisionNotFoundError", "it has no such revision; leave revision out"),
        ("RemoteEntryNotFoundError", "it has no model_index.json"),
        ("HfHubHTTPError", "the hub says '503 Server Error'; try again later"),
        ("HFValidationError", "503 Server Error"),
    ],
)
def test_why_the_hub_gave_nothing_is_said(monkeypatch, kind, words):
    import huggingface_hub

    def fails(*names, **options):
        kind_of_error = getattr(huggingface_hub.errors, kind)
        error = kind_of_error.__new__(kind_of_error)
        error.args = ("503 Server Error. For url: x",)
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    said = sentence_of("owner/name")
    assert "'owner/name' could not be fetched: " in said
    assert words in said
    assert ("check the id" in said) == (kind == "RepositoryNotFoundError")


def test_a_model_in_the_hubs_cache_is_read_with_the_same_care(folder, tmp_path, monkeypatch):
    cached = tmp_path / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    snapshot = shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for options in ({}, {"local_files_only": True}):
        model = sdkit.load("owner/name", device="cpu", **options)
        assert (model.name, model.fingerprint()) == ("owner/name", sdkit.load(folder, device="cpu").fingerprint())
    edit_weights(snapshot / WEIGHTS["text_encoder"], lacking(0.5))
    assert "text_encoder' are not those of its CLIPTextModel" in sentence_of("owner/name")


# ---------------------------------------------------------------------------------------------------------------------
# At random


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_folder_with_any_damage_is_one_sentence_or_the_same_weights(folder, tmp_path_factory, data):
    model = shutil.copytree(folder, tmp_path_factory.mktemp("damaged") / "model")
    files = sorted(path for path in model.rglob("*") if path.is_file())
    for _ in range(data.draw(st.integers(1, 2))):
        file = data.draw(st.sampled_from(files))
        whole = file.read_bytes() if file.exists() else b""
        how = data.draw(st.sampled_from(["gone", "cut", "other", "changed", "noise"]))
        if how == "gone":
            file.unlink(missing_ok=True)
        elif how == "cut":
            file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
        elif how == "other":
            shutil.copy(data.draw(st.sampled_from([one for one in files if one.exists() and one != file])), file)
        elif how == "changed":
            at = data.draw(st.integers(0, min(len(whole), 2000)))
            file.write_bytes(whole[:at] + data.draw(st.binary(min_size=1, max_size=3)) + whole[at + 1 :])
        else:
            file.write_bytes(data.draw(st.binary(max_size=20)))
    loaded = said = None
    try:
        loaded = sdkit.load(model, device="cpu")
    except (ValueError, FileNotFoundError) as error:
        said = error
    shutil.rmtree(model.parent)
    if loaded is None:
        assert type(said) in (ValueError, FileNotFoundError)
        assert "\n" not in str(said)
    else:
        assert_the_same_weights(loaded, sdkit.load(folder, device="cpu"))
