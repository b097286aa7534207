"""A model is what a diffusers pipeline is made of, with one verb for each thing that a process asks of it."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
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

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids (P, L), padded to the window. Words beyond it are not heard, which is said in a warning."""
        prompts = self.pipeline.maybe_convert_prompt(prompts, self.tokenizer)  # textual inversion of several vectors
        window = self.tokenizer.model_max_length
        for prompt in prompts:
            ids = self.tokenizer(prompt, verbose=False).input_ids
            if len(ids) > window:
                unheard = self.tokenizer.decode(ids[window - 1 : -1])
                warnings.warn(f"the prompt is longer than {window} tokens; not heard: {unheard!r}", stacklevel=2)
        padded = self.tokenizer(prompts, padding="max_length", max_length=window, truncation=True, return_tensors="pt")
        ids_of_all: Tensor = padded.input_ids
        return ids_of_all.to(self.device)

    @torch.no_grad()
    def encode_text(self, ids: Tensor) -> Tensor:
        """Text embeddings (P, L, D) of token ids (P, L)."""
        embeddings: Tensor = self.text_encoder(ids)[0]
        return embeddings.to(self.dtype)

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
