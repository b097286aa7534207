"""What acts beside the weights of a model: adapters and how strongly, FreeU, attention processors, learned tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

PLAIN = {"AttnProcessor", "AttnProcessor2_0"}  # the attention that a U-Net comes with


def extras_of(pipeline: Any) -> dict[str, Any]:
    """As plain JSON values, each entry only where there is something to say:

    adapters: the scale of each active LoRA adapter, or "off", by the name of the part and of the adapter;
    freeu: its factors (Si et al. 2023, arXiv:2309.11497);
    ip_adapter_scale: of each IP-Adapter, as the first attention layer has it;
    attention: the classes of attention processors that are not those that a U-Net comes with;
    tokens: of each token that was added to the tokenizer, a hash of its embedding.
    """
    parts = {name: getattr(pipeline, name, None) for name in ("unet", "text_encoder", "text_encoder_2")}
    entries = {
        "adapters": {name: found for name, part in parts.items() if part is not None and (found := _adapters(part))},
        "freeu": _freeu(parts["unet"]),
        **_attention(parts["unet"]),
        "tokens": _tokens(pipeline),
    }
    return {name: value for name, value in entries.items() if value}


def adapter_layers(part: Any) -> Iterator[tuple[Any, dict[str, float]]]:
    """The layers that peft has put into a part, each with the scales of its adapters by name."""
    for module in part.modules():
        scaling = module.__dict__.get("scaling")  # asking the module itself takes ten times as long where there is none
        if isinstance(scaling, dict) and hasattr(module, "active_adapters"):
            yield module, scaling


def _adapters(part: Any) -> dict[str, float | str]:
    """LoRA as peft puts it into a part: every layer of an adapter has the same scale."""
    scales: dict[str, float | str] = {}
    for module, scaling in adapter_layers(part):
        active = () if module.disable_adapters else tuple(module.active_adapters) or tuple(module.merged_adapters)
        scales |= {name: float(scale) if name in active else "off" for name, scale in scaling.items()}
    return scales


def _freeu(unet: Any) -> dict[str, float]:
    factors = ("s1", "s2", "b1", "b2")
    blocks = [block for block in unet.up_blocks if all(getattr(block, name, None) is not None for name in factors)]
    return {name: float(getattr(blocks[0], name)) for name in factors} if blocks else {}


def _attention(unet: Any) -> dict[str, Any]:
    processors = list(unet.attn_processors.values())
    scales = [getattr(one, "scale", None) for one in processors]
    return {
        "attention": sorted({type(one).__name__ for one in processors} - PLAIN),
        "ip_adapter_scale": next((list(map(str, scale)) for scale in scales if isinstance(scale, list)), []),
    }


def _tokens(pipeline: Any) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer, encoder = (
            getattr(pipeline, part, None) for part in (name, name.replace("tokenizer", "text_encoder"))
        )
        if tokenizer is None or encoder is None:
            continue
        rows = encoder.get_input_embeddings().weight
        special = set(tokenizer.all_special_tokens)
        for token, number in tokenizer.get_added_vocab().items():
            if token not in special and number < len(rows) and rows.device.type != "meta":
                digest = hashlib.sha256(rows[number].detach().float().cpu().numpy().tobytes())
                hashes[f"{name}: {token}"] = digest.hexdigest()[:16]
    return hashes
