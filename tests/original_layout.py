"""Diffusers' parts back into one file of the original layout, as checkpoints of Stable Diffusion come, for tests.

The names are those of CompVis' and Stability's repositories."""

import re

import torch
from safetensors.torch import save_file

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


def save(pipeline, path):
    """Write a pipeline's weights to one file; returns the path."""
    weights = {f"model.diffusion_model.{k}": v for k, v in unet(pipeline.unet).items()}
    weights |= {f"first_stage_model.{k}": v for k, v in vae(pipeline.vae).items()}
    xl = hasattr(pipeline, "text_encoder_2")
    first, second = getattr(pipeline, "text_encoder", None), getattr(pipeline, "text_encoder_2", None)
    if second is not None:
        weights |= open_clip(second, f"conditioner.embedders.{int(first is not None)}.model.")
    if first is not None and xl:
        weights |= clip(first, "conditioner.embedders.0.transformer.")
    elif first is not None and first.config.hidden_size == 1024:
        weights |= open_clip(first, "cond_stage_model.model.")
    elif first is not None:
        weights |= clip(first, "cond_stage_model.transformer.")
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


def unet(model):
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "middle_block.1": "mid_block.attentions.0",
    }
    layers, levels = model.config.layers_per_block, len(model.config.block_out_channels)
    residual = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    for level in range(levels):
        for j in range(layers):
            place = f"input_blocks.{level * (layers + 1) + j + 1}"
            residual[f"{place}.0"] = f"down_blocks.{level}.resnets.{j}"
            names[f"{place}.1"] = f"down_blocks.{level}.attentions.{j}"
        names[f"input_blocks.{(level + 1) * (layers + 1)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for j in range(layers + 1):
            place = f"output_blocks.{level * (layers + 1) + j}"
            residual[f"{place}.0"] = f"up_blocks.{level}.resnets.{j}"
            names[f"{place}.1"] = f"up_blocks.{level}.attentions.{j}"
        attends = hasattr(model.up_blocks[level], "attentions")
        upsampler = f"output_blocks.{level * (layers + 1) + layers}.{2 if attends else 1}.conv"
        names[upsampler] = f"up_blocks.{level}.upsamplers.0.conv"
    for theirs, ours in residual.items():
        names |= {f"{theirs}.{a}": f"{ours}.{b}" for a, b in RESNET.items()}
    return renamed(model.state_dict(), {ours: theirs for theirs, ours in names.items()})


def vae(model):
    names = {"encoder.norm_out": "encoder.conv_norm_out", "decoder.norm_out": "decoder.conv_norm_out"}
    levels, layers = len(model.config.block_out_channels), model.config.layers_per_block
    for level in range(levels):
        for j in range(layers):
            names[f"encoder.down.{level}.block.{j}"] = f"encoder.down_blocks.{level}.resnets.{j}"
        names[f"encoder.down.{level}.downsample"] = f"encoder.down_blocks.{level}.downsamplers.0"
        for j in range(layers + 1):
            names[f"decoder.up.{levels - 1 - level}.block.{j}"] = f"decoder.up_blocks.{level}.resnets.{j}"
        names[f"decoder.up.{levels - 1 - level}.upsample"] = f"decoder.up_blocks.{level}.upsamplers.0"
    for side in ("encoder", "decoder"):
        names |= {f"{side}.mid.block_{i + 1}": f"{side}.mid_block.resnets.{i}" for i in range(2)}
        names[f"{side}.mid.attn_1"] = f"{side}.mid_block.attentions.0"
    found = {}
    for name, value in renamed(model.state_dict(), {ours: theirs for theirs, ours in names.items()}).items():
        if ".mid.attn_1." in name:  # linear layers there, convolutions of one pixel here
            for ours, theirs in (
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ):
                name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
            value = value[..., None, None] if value.ndim == 2 else value
        found[name.replace("conv_shortcut", "nin_shortcut")] = value
    return found


def clip(model, prefix):
    """A CLIP text encoder, whose names stayed those of transformers before 5.6."""
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": value for name, value in model.state_dict().items()
    }


def open_clip(model, prefix):
    found, parts = {}, {}
    outer = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inner["self_attn.out_proj"] = "attn.out_proj"
    for name, value in model.state_dict().items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = value.T
        elif name in outer:
            found[prefix + outer[name]] = value
        elif layer := re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)$", name):
            number, part, kind = layer.groups()
            place = f"{prefix}transformer.resblocks.{number}."
            if part.endswith(("q_proj", "k_proj", "v_proj")):
                parts.setdefault(f"{place}attn.in_proj_{kind}", {})[part[-6]] = value
            else:
                found[f"{place}{inner[part]}.{kind}"] = value
    found |= {name: torch.cat([some[letter] for letter in "qkv"]) for name, some in parts.items()}
    return found


def renamed(weights, names):
    """Weights with the beginnings of their names replaced, the longest first."""
    ordered = sorted(names, key=len, reverse=True)
    found = {}
    for name, value in weights.items():
        ours = next((prefix for prefix in ordered if name.startswith(f"{prefix}.")), "")
        found[(names[ours] if ours else "") + name[len(ours) :]] = value
    return found
