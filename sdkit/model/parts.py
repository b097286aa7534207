"""The parts of a model, each read from its own folder: what is missing, foreign or damaged is said in one sentence, and
nothing is made up for it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file

from sdkit.inputs.checks import pick
from sdkit.model.allowed import is_a
from sdkit.model.schedulers import KNOWN, rebuilt

AGAIN = "fetch it again"


@contextmanager
def one_sentence(place: object, expected: str) -> Iterator[None]:
    """Whatever a library makes of a damaged file, in one sentence that names the file."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(
            f"{str(place)!r} is incomplete or damaged ({said_by(error)}); expected {expected}; {AGAIN}"
        ) from error


def said_by(error: BaseException) -> str:
    """The first sentence of an error, which in libraries has many, on one line."""
    said = str(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
    return shorten(said.split(". ")[0].strip(" .:") or type(error).__name__, 250, placeholder=" ...")


@contextmanager
def reaching(source: str, first: Exception | None) -> Iterator[None]:
    """Say why a model did not come from the hub: each reason asks for something else."""
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:
        root = error.__cause__ if type(error) is OSError and error.__cause__ else error
        if isinstance(root, errors.LocalEntryNotFoundError):
            root = first or root
        reasons: dict[type[Exception], str] = {
            errors.GatedRepoError: "its owner asks who uses it; agree on its page, and log in with `hf auth login`",
            errors.RepositoryNotFoundError: "the hub has no such model, or it is private; check the id, or log in",
            errors.RevisionNotFoundError: "it has no such revision; leave revision out",
            errors.RemoteEntryNotFoundError: "it has no model_index.json; expected a model in diffusers' layout",
            errors.HfHubHTTPError: f"the hub says {said_by(root)!r}; try again later",
            ValueError: said_by(root),  # such as a variant that it does not have
        }
        away = "it is not in the cache, and the hub could not be reached, or may not be; check the network"
        why = next((words for kind, words in reasons.items() if isinstance(root, kind)), away)
        raise FileNotFoundError(f"{source!r} could not be fetched: {why}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A file with one object of JSON."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; expected a folder in diffusers' layout; {AGAIN}")
    with one_sentence(path, "an object of JSON"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    return content


def read_parts(
    folder: Path,
    index: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """Every part that a model's index names, but for some, of the class that it names and whole.

    Raises:
        FileNotFoundError: a folder or a file is missing.
        ValueError: a part is damaged, or its weights are not those of its class.
    """
    import diffusers
    import transformers

    if variant is not None and not list(folder.glob(f"*/*.{variant}*")):
        raise FileNotFoundError(f"{str(folder)!r} has no weights of the variant {variant!r}; leave variant out")
    parts: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_") or name in without or not isinstance(value, list | tuple) or not any(value):
            continue
        place, (library, kind) = folder / name, value
        if kind == "MultiControlNetModel":
            places = [place, *sorted(folder.glob(f"{name}_[0-9]*"), key=lambda one: int(one.name[len(name) + 1 :]))]
            nets = [_weights(one, diffusers.ControlNetModel, dtype, variant, allow_pickle) for one in places]
            parts[name] = diffusers.MultiControlNetModel(nets)
        elif name.startswith("tokenizer"):
            parts[name] = _tokenizer(place, getattr(transformers, kind))
        elif name == "scheduler":
            parts[name] = _scheduler(place, getattr(diffusers, kind))
        else:
            made_by = transformers if library == "transformers" else diffusers
            parts[name] = _weights(place, getattr(made_by, kind), dtype, variant, allow_pickle)
    return parts


def _weights(place: Path, kind: Any, dtype: torch.dtype, variant: str | None, allow_pickle: bool) -> Any:
    check_config(place / "config.json", kind)
    if not allow_pickle and list(place.glob("*.bin")) and not list(place.glob("*.safetensors")):
        raise ValueError(
            f"{str(place)!r} holds pickled weights (.bin), which may run code when they are read; convert them to "
            "safetensors, or pass allow_pickle=True if you trust them"
        )
    with one_sentence(place, f"the weights of {kind.__name__}"):
        if part := _assigned(place, kind, dtype, variant):
            return part
        part, told = kind.from_pretrained(
            str(place),
            dtype=dtype,
            variant=variant if variant and list(place.glob(f"*.{variant}*")) else None,
            use_safetensors=None if allow_pickle else True,
            ignore_mismatched_sizes=True,  # they are listed then, as what is missing is
            output_loading_info=True,
            local_files_only=True,
        )
    faults = {
        "lack": told["missing_keys"],
        "have in another shape": [name for name, *_ in told["mismatched_keys"]],
        "have beside them": told["unexpected_keys"],
    }
    check_weights(place, kind.__name__, faults)
    return part


def _assigned(place: Path, kind: Any, dtype: torch.dtype, variant: str | None) -> Any:
    """The part, if one file holds just the weights of its class under their own names, put where they belong as they
    lie in the file. Otherwise None: the libraries know older names, shards and quantized weights, and try them all,
    which takes twice as long."""
    of_transformers = hasattr(kind, "config_class")
    file = place / ("model.safetensors" if of_transformers else "diffusion_pytorch_model.safetensors")
    if variant and (other := file.with_suffix(f".{variant}.safetensors")).is_file():
        file = other
    if not file.is_file() or kind._keep_in_fp32_modules:
        return None
    from transformers.initialization import no_init_weights

    with no_init_weights(), init_empty_weights():
        config = kind.config_class.from_pretrained(str(place)) if of_transformers else kind.load_config(str(place))
        part = kind(config) if of_transformers else kind.from_config(config)
    needed, held = part.state_dict(), load_file(file)
    prefix = "" if "text_model" in dict(part.named_children()) else "text_model."  # transformers 5.6 took a level away
    found = {name.removeprefix(prefix): weight for name, weight in held.items()}
    found.pop("embeddings.position_ids", None)  # which older files have, and the class makes
    if {name: weight.shape for name, weight in found.items()} != {name: one.shape for name, one in needed.items()}:
        return None
    part.load_state_dict(
        {name: one.to(dtype) if one.is_floating_point() else one for name, one in found.items()}, assign=True
    )
    if of_transformers:
        part.config.dtype = dtype
    else:
        part.register_to_config(_name_or_path=str(place))
    return part.eval()


def check_weights(place: object, kind: str, faults: Mapping[str, Collection[str]]) -> None:
    """Say which weights are not those of a class, by what is wrong with them."""
    if any(faults.values()):
        said = ", and ".join(f"{what} {_listed(names)}" for what, names in faults.items() if names)
        raise ValueError(f"the weights in {str(place)!r} are not those of its {kind}: they {said}; {AGAIN}")


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def check_config(path: Path, kind: Any) -> dict[str, Any]:
    """The configuration of a part, if it is one of this class."""
    config = read_json(path)
    known: tuple[str, ...] = KNOWN if kind.__name__ in KNOWN else (kind.__name__,)
    said = config.get("_class_name")
    if hasattr(kind, "config_class"):  # of transformers, where "clip" has both halves
        said, known = config.get("model_type"), (kind.config_class.model_type, "clip")
    if said not in known:
        raise ValueError(
            f"{str(path)!r} describes a {said or 'part without a name'}; expected {kind.__name__}; {AGAIN}"
        )
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        value, default = config.get(name), parameter.default
        if value is not None and not _like(value, default):
            raise ValueError(f"{str(path)!r} has {value!r} as {name}; expected a value such as {default!r}; {AGAIN}")
    return config


def _like(value: Any, default: Any) -> bool:
    """Whether a value may stand where a number, several, or a word is the default."""
    if isinstance(default, str):
        return isinstance(value, str)
    if not isinstance(default, int | float):
        return True
    each = value if isinstance(value, list) else [value]
    return not any(
        isinstance(one, str | dict) or (isinstance(one, float) and isfinite(default) and not isfinite(one))
        for one in each
    )


def _scheduler(place: Path, kind: Any) -> Any:
    config = check_config(place / "scheduler_config.json", kind)
    with one_sentence(place, f"the configuration of {kind.__name__}"):
        scheduler = rebuilt(config | {"class": kind.__name__})
        pick(
            "prediction_type", scheduler.config.get("prediction_type", "epsilon"), ("epsilon", "v_prediction", "sample")
        )
        levels = scheduler.alphas_cumprod
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ValueError("its betas are no noise schedule")
    return scheduler


def _tokenizer(place: Path, kind: Any) -> Any:
    def has(name: str) -> bool:
        return (place / name).is_file() and (place / name).stat().st_size > 0

    if not has("tokenizer.json") and not (has("vocab.json") and has("merges.txt")):
        raise FileNotFoundError(
            f"{str(place)!r} holds no vocabulary; expected tokenizer.json, or vocab.json and merges.txt; {AGAIN}"
        )
    with one_sentence(place, f"the vocabulary of {kind.__name__}"):
        tokenizer = kind.from_pretrained(str(place), local_files_only=True)
        # The words of CLIP's vocabulary, its tokens that end one, are one token each, or nearly all of them are.
        some = tokenizer.convert_ids_to_tokens(range(0, len(tokenizer), max(1, len(tokenizer) // 100)))
        words = [token[:-4] for token in some if token.endswith("</w>") and token[:-4].isalpha() and token.isascii()]
        ids = tokenizer(words, add_special_tokens=False).input_ids if words else []
        if sum(len(one) > 1 for one in ids) > len(ids) / 4:
            raise ValueError("it takes words of its own to pieces, as where merges are missing")
    return tokenizer


def disagreements(pipeline: Any) -> Iterator[str]:
    """What does not fit together in a pipeline of known U-Net and autoencoder: classes and sizes of the other parts."""
    config, width = pipeline.unet.config, 0
    for name in ("text_encoder", "text_encoder_2"):
        named = name.replace("text_encoder", "tokenizer")
        encoder: Any = getattr(pipeline, name, None)
        tokenizer: Any = getattr(pipeline, named, None)
        if encoder is None:
            continue
        for what, part in ((name, encoder), (named, tokenizer)):
            if not is_a(part, what):
                yield f"its {what} is a {type(part).__name__}"
        rows, places = encoder.get_input_embeddings().num_embeddings, encoder.config.max_position_embeddings
        if not rows / 2 < len(tokenizer) <= rows:
            yield f"its {named} has {len(tokenizer)} tokens and its {name} {rows}"
        window = tokenizer.model_max_length
        if not isinstance(window, int) or not 2 < window <= places:
            yield f"its {named} makes windows of {window!r} tokens and its {name} has {places} places"
        width += encoder.config.hidden_size
        last = encoder
    if not width:
        return  # whoever runs it gives embeddings
    if config.cross_attention_dim != width:
        yield f"its U-Net attends to embeddings {config.cross_attention_dim} wide and its text encoders make {width}"
    if config.addition_embed_type == "text_time":
        numbers = config.projection_class_embeddings_input_dim - last.config.projection_dim
        if numbers not in (5 * config.addition_time_embed_dim, 6 * config.addition_time_embed_dim):
            yield "its U-Net takes a pooled text embedding of another width than its text encoder makes"
    if config.out_channels != pipeline.vae.config.latent_channels:
        yield f"its U-Net predicts {config.out_channels} channels and its autoencoder has another number"
    sizes = config.sample_size if isinstance(config.sample_size, list | tuple) else [config.sample_size] * 2
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        yield f"its U-Net is of the size {config.sample_size!r}, which is none"
