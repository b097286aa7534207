"""A model is what a diffusers pipeline is made of, with one verb for each thing that a process asks of it."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True, eq=False)
class Model:
    """The components of a pipeline, with the defaults that suit them.

    The pipeline stays whole, so whatever it carries (LoRA, textual inversion, offloading) keeps working. Nothing here
    changes it.
    """

    pipeline: StableDiffusionPipeline
    name: str
    num_inference_steps: int = 50
    guidance_scale: float = 7.5

    @property
    def unet(self) -> Any:
        return self.pipeline.unet

    @property
    def vae(self) -> Any:
        return self.pipeline.vae

    @property
    def text_encoder(self) -> Any:
        return self.pipeline.text_encoder

    @property
    def tokenizer(self) -> Any:
        return self.pipeline.tokenizer

    @property
    def scheduler(self) -> Any:
        """The scheduler that the model came with: its noise schedule and prediction type. Runs step a fresh copy."""
        return self.pipeline.scheduler

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the weights: of up to 16 values of each parameter, evenly spaced."""
        digest = hashlib.sha256()
        for part in (self.text_encoder, self.unet, self.vae):
            for name, weight in part.named_parameters():
                digest.update(f"{name} {tuple(weight.shape)}".encode())
                if weight.device.type != "meta":  # where it is while the pipeline offloads it
                    flat = weight.detach().reshape(-1)
                    digest.update(flat[:: max(1, len(flat) // 16)].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """Where the components run, also while the pipeline offloads them."""
        device: torch.device = self.pipeline._execution_device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of text embeddings and latents."""
        dtype: torch.dtype = self.text_encoder.dtype
        return dtype

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the U-Net was trained on."""
        latent = self.unet.config.sample_size
        h, w = (latent, latent) if isinstance(latent, int) else latent
        return h * self.pipeline.vae_scale_factor, w * self.pipeline.vae_scale_factor

    def latent_shape(self, pictures: int, height: int, width: int) -> tuple[int, int, int, int]:
        scale = self.pipeline.vae_scale_factor
        return pictures, self.unet.config.in_channels, height // scale, width // scale  # (B, C, h, w)

    @property
    def text_width(self) -> int:
        """D, the width of the text embeddings that the U-Net attends to."""
        width: int = self.unet.config.cross_attention_dim
        return width

    def tokenize(self, prompts: list[str], *, split: bool = False, length: int = 0) -> Tensor:
        """Token ids (P, L) in windows of the text encoder's size, each with its begin, end and padding.

        Args:
            split: take as many windows as the longest prompt needs, broken at ends of words; otherwise there is one,
                and a warning names the words beyond it, which are not heard.
            length: at least so many tokens, filled up with windows of the empty prompt; less than a window is exact.
        """
        prompts = self.pipeline.maybe_convert_prompt(prompts, self.tokenizer)  # textual inversion of several vectors
        window: int = min(length or math.inf, self.tokenizer.model_max_length)
        (empty,) = self._windows("", window, split)
        parts = [self._windows(prompt, window, split) for prompt in prompts]
        many = max(-(-length // window), *(len(rows) for rows in parts))
        ids = [list(chain(*rows, *[empty] * (many - len(rows)))) for rows in parts]
        return torch.tensor(ids, device=self.device)

    def _windows(self, prompt: str, window: int, split: bool) -> list[list[int]]:
        ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        ends = [token.endswith("</w>") for token in self.tokenizer.convert_ids_to_tokens(ids)]
        parts: list[list[int]] = []
        room = window - 2  # beside begin and end
        while ids or not parts:
            end = len(ids)
            if end > room:
                end = next((i for i in range(room, 0, -1) if ends[i - 1]), room) if split else room
            parts.append(ids[:end])
            ids, ends = ids[end:], ends[end:]
            if ids and not split:
                unheard = self.tokenizer.decode(ids)
                warnings.warn(
                    f"the prompt is longer than {window} tokens; not heard: {unheard!r}; "
                    "long_prompt='split' would hear it",
                    stacklevel=2,
                )
                break
        begin, end_id, pad = (getattr(self.tokenizer, f"{what}_token_id") for what in ("bos", "eos", "pad"))
        return [[begin, *part, end_id, *[pad] * (room - len(part))] for part in parts]

    @torch.no_grad()
    def encode_text(self, ids: Tensor, clip_skip: int | None = None) -> Tensor:
        """Text embeddings (P, L, D) of token ids (P, L), each window of them by itself.

        With `clip_skip`, what the layers before the last so many have made, normalised as the last one's is.
        """
        windows = ids.reshape(-1, min(ids.shape[1], self.tokenizer.model_max_length))
        if clip_skip is None:
            embeddings: Tensor = self.text_encoder(windows)[0]
        else:
            hidden = self.text_encoder(windows, output_hidden_states=True).hidden_states  # the tokens' own, then layers
            if clip_skip >= len(hidden):
                raise ValueError(f"clip_skip {clip_skip} leaves nothing of {len(hidden) - 1} layers; take fewer")
            inner = getattr(self.text_encoder, "text_model", self.text_encoder)  # transformers 5.6 took a level away
            embeddings = inner.final_layer_norm(hidden[-1 - clip_skip])
        return embeddings.to(self.dtype).reshape(len(ids), -1, embeddings.shape[-1])

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Mean and log-variance (B, 2C, h, w) of what the VAE makes of pictures (B, 3, H, W) in [-1, 1]."""
        posterior: Tensor = self.vae.encode(pixels).latent_dist.parameters
        return posterior

    @torch.no_grad()
    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """What the U-Net says about x (B, C, h, w) at timestep t: one prediction for each row of `text`.

        With the 2B rows of guidance, x is seen twice, in one call.
        """
        # cat, not repeat, which would change the memory layout and with it the last bit of what convolutions round
        seen = x if len(text) == len(x) else torch.cat([x] * 2)  # (2B, C, h, w)
        prediction: Tensor = self.unet(seen, t, encoder_hidden_states=text, return_dict=False)[0]
        return prediction

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), in [-1, 1] up to what the decoder overshoots, of latents (B, C, h, w)."""
        image: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return image
