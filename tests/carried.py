"""What a pipeline may carry, random: ControlNets and IP-Adapters."""

import diffusers
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection


def random_controlnet(pipeline, seed, **options):
    torch.manual_seed(seed)
    net = diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4, 8, 8, 16))
    for weight in net.parameters():  # its last layers start at zero, and would add nothing
        weight.data.normal_(std=0.1)
    net.register_to_config(**options)
    return net.eval()


def with_controlnet(pipeline, net, what=""):
    family = "StableDiffusionXL" if hasattr(pipeline, "text_encoder_2") else "StableDiffusion"
    kind = getattr(diffusers, f"{family}ControlNet{what}Pipeline")
    plain = {} if hasattr(pipeline, "text_encoder_2") else {"requires_safety_checker": False}
    made = kind(**pipeline.components, controlnet=net, **plain)
    made.set_progress_bar_config(disable=True)
    return made


def image_encoder():
    """A random one, and what prepares its pictures."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )
    return CLIPVisionModelWithProjection(vision).eval(), CLIPImageProcessor(size=32, crop_size=32)


def ip_adapter(pipeline):
    """The weights of a random IP-Adapter of four tokens a picture."""
    width = pipeline.unet.config.cross_attention_dim
    layers = [name for name in pipeline.unet.attn_processors if "attn2" in name]
    keys = {}
    for i, name in enumerate(layers):
        hidden = pipeline.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        keys |= {f"{2 * i + 1}.to_{part}_ip.weight": torch.randn(hidden, width) * 0.3 for part in "kv"}
    projection = {
        "proj.weight": torch.randn(4 * width, 16) * 0.3,
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": keys}


def with_ip_adapter(pipeline):
    torch.manual_seed(1)
    encoder, extractor = image_encoder()
    pipeline.register_modules(image_encoder=encoder, feature_extractor=extractor)
    pipeline.load_ip_adapter(ip_adapter(pipeline), subfolder=None, weight_name=None, image_encoder_folder=None)
    return pipeline


def save_ip_adapter(pipeline, path):
    """Lay one over the pipeline from a file, which has its image encoder in a folder beside it."""
    torch.manual_seed(1)
    encoder, _ = image_encoder()
    encoder.save_pretrained(path.parent / "image_encoder")
    weights = ip_adapter(pipeline)
    save_file({f"{part}.{name}": value for part, values in weights.items() for name, value in values.items()}, path)
    pipeline.load_ip_adapter(str(path.parent), subfolder="", weight_name=path.name)
