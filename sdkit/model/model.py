"""A model is what a diffusers pipeline is made of, with one verb for each thing that a process asks of it.

It is longer than other files because it has many such verbs, and each says what it takes and gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor

from sdkit.door import Shown
from sdkit.inputs.arguments import Settings
from sdkit.model import latents as latents_of
from sdkit.model import text, weights
from sdkit.model.allowed import uncompiled
from sdkit.model.condition import Condition, Control
from sdkit.model.vocabulary import unknown_words, vocabulary_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, eq=False)
class Model(Shown):
    """The components of a pipeline, with the defaults that suit them.

    The pipeline stays whole, so whatever it carries (LoRA, textual inversion, IP-Adapter, ControlNet, offloading) keeps
    working. Nothing here changes it.
    """

    pipeline: DiffusionPipeline
    name: str
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    engine: str = "torch"  # what computes the U-Net and the decoder in runs; one of `ENGINES`

    def weakly(self) -> Callable[[], Model | None]:
        """What gives the model again for as long as somebody holds its pipeline."""
        held = ref(self.pipeline)
        rest = (self.name, self.num_inference_steps, self.guidance_scale, self.engine)
        return lambda: None if (pipeline := held()) is None else Model(pipeline, *rest)

    def __repr__(self) -> str:
        kind, (height, width), dtype = type(self.pipeline).__name__, self.size, str(self.dtype).removeprefix("torch.")
        by = "" if self.engine == "torch" else f" by {self.engine}"
        return f"<Model {self.name!r}: {kind} for {width}x{height}, {dtype} on {self.device}{by}>"

    @property
    def unet(self) -> Any:
        return self.pipeline.unet

    @property
    def vae(self) -> Any:
        return self.pipeline.vae

    @property
    def text_encoder(self) -> Any:
        """The only text encoder, or the first of SDXL's two; of SDXL's refiner the only one too. None if there is
        none."""
        return self.encoders[0][2] if self.encoders else None

    @property
    def tokenizer(self) -> Any:
        return self.encoders[0][1] if self.encoders else None

    @property
    def encoders(self) -> list[tuple[str, Any, Any]]:
        """Name, tokenizer and text encoder of each of the text encoders."""
        parts = [(name, getattr(self.pipeline, name, None)) for name in ("text_encoder", "text_encoder_2")]
        return [
            (name, getattr(self.pipeline, name.replace("text_encoder", "tokenizer")), encoder)
            for name, encoder in parts
            if encoder is not None
        ]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words that the model knows; empty for checkpoints, which know more than they could list.

        Example:
            >>> "star" in sdkit.load().vocabulary
            True
        """
        return vocabulary_of(self.tokenizer)

    def unknown_words(self, *prompts: str) -> list[str]:
        """The words of prompts that the vocabulary lacks; none where there is no vocabulary.

        Example:
            >>> sdkit.load().unknown_words("a red dragon")
            ['dragon']
        """
        return unknown_words(prompts, self.tokenizer)

    @property
    def controlnets(self) -> list[Any]:
        """The ControlNets that the pipeline carries."""
        net = getattr(self.pipeline, "controlnet", None)
        return [] if net is None else list(getattr(net, "nets", [net]))

    @property
    def scheduler(self) -> Any:
        """The scheduler that the model came with: its noise schedule and prediction type. Runs step a fresh copy."""
        return self.pipeline.scheduler

    @property
    def is_xl(self) -> bool:
        """Whether the U-Net takes a pooled text embedding and picture sizes, as SDXL's does."""
        return bool(self.unet.config.addition_embed_type == "text_time")

    @property
    def encodes_in(self) -> torch.dtype:
        """The autoencoder's precision when it encodes: SDXL's overflows in half precision."""
        dtype: torch.dtype = torch.float32 if self.is_xl and self.vae.config.force_upcast else self.vae.dtype
        return dtype

    @property
    def takes_guidance(self) -> bool:
        """Whether the U-Net was distilled to take the guidance scale as an input, as latent consistency models do."""
        return self.unet.config.time_cond_proj_dim is not None

    @property
    def samples(self) -> bool:
        """Whether the encoder gives a distribution to sample; a tiny autoencoder gives latents."""
        return type(uncompiled(self.vae)).__name__ != "AutoencoderTiny"

    @property
    def sees_around(self) -> bool:
        """Whether the decoder takes what is to be kept of a picture, where diffusers' pipeline gives it that."""
        return type(uncompiled(self.vae)).__name__ == "AsymmetricAutoencoderKL" and not self.is_xl

    @property
    def paints(self) -> bool:
        """Whether the U-Net sees mask and masked picture beside the latents, as inpainting models do."""
        return bool(self.unet.config.in_channels == 9)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the weights: of up to 16 values of each parameter, evenly spaced."""
        return weights.fingerprint(
            [encoder for *_, encoder in self.encoders] + [self.unet, self.vae, *self.controlnets]
        )

    @property
    def device(self) -> torch.device:
        """Where the components run, also while the pipeline offloads them."""
        device: torch.device = self.pipeline._execution_device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of text embeddings and latents."""
        dtype: torch.dtype = self.encoders[-1][2].dtype if self.encoders else self.unet.dtype
        return dtype

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the U-Net was trained on."""
        latent = self.unet.config.sample_size
        h, w = (latent, latent) if isinstance(latent, int) else latent
        return h * self.pipeline.vae_scale_factor, w * self.pipeline.vae_scale_factor

    def latent_shape(self, pictures: int, height: int, width: int) -> tuple[int, int, int, int]:
        scale = self.pipeline.vae_scale_factor
        return pictures, self.vae.config.latent_channels, height // scale, width // scale  # (B, C, h, w)

    @property
    def text_width(self) -> int:
        """D, the width of the text embeddings that the U-Net attends to."""
        width: int = self.unet.config.cross_attention_dim
        return width

    @property
    def pooled_width(self) -> int:
        """D', the width of SDXL's pooled text embeddings."""
        if self.encoders:
            width: int = self.encoders[-1][2].config.projection_dim
            return width
        numbers = 5 if self.pipeline.config.get("requires_aesthetics_score") else 6
        return int(self.unet.add_embedding.linear_1.in_features - numbers * self.unet.config.addition_time_embed_dim)

    def tokenize(
        self,
        prompts: Sequence[str],
        tokenizer: Any = None,
        *,
        split: bool = False,
        length: int = 0,
        device: torch.device | None = None,
    ) -> Tensor:
        """Token ids (P, L) in windows of the text encoder's size, each with its begin, end and padding.

        Args:
            tokenizer: one of `encoders`; by default the first.
            split: take as many windows as the longest prompt needs, broken at ends of words; otherwise there is one,
                and a warning names the words beyond it, which are left out.
            length: at least so many tokens, filled up with windows of the empty prompt; less than a window is exact.
            device: where to put them; by default where the model computes, which takes a while to find out.
        """
        tokenizer = tokenizer or self.tokenizer
        whole = self.pipeline.maybe_convert_prompt(list(prompts), tokenizer)  # textual inversion of several vectors
        return text.tokenize(whole, tokenizer, split=split, length=length).to(device or self.device)

    def encode_text(self, ids: Tensor | Sequence[Tensor], clip_skip: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Text embeddings (P, L, D) of token ids (P, L), and the pooled one (P, D').

        The ids are those of the first text encoder, or a list of those of each.

        Each window of the ids is encoded by itself; the pooled embedding, which SDXL alone uses, is that of the first.
        With `clip_skip`, the output of the layers before the last so many, normalised as the last one's is; SDXL takes
        the last but one, without that normalisation, and counts from there.
        """
        encoders = self.encoders
        each = text.ids_for_all(ids, encoders) if isinstance(ids, Tensor) else ids
        embeddings, pooled = text.encode_text(encoders, each, clip_skip, is_xl=self.is_xl)
        return embeddings.to(self.dtype), pooled

    def time_ids(self, settings: Settings, *, from_picture: bool) -> tuple[Tensor, Tensor]:
        """What SDXL takes as numbers beside its words, (1, 6), or its refiner, (1, 5): for the unconditional half and
        for the conditional one."""
        width = self.unet.add_embedding.linear_1.in_features - self.pooled_width
        numbers = width // self.unet.config.addition_time_embed_dim
        both = text.time_ids(settings, numbers, from_picture=from_picture)
        uncond, cond = (torch.tensor([ids], dtype=self.dtype) for ids in both)
        return uncond, cond

    def embed_guidance(self, guidance_scale: float, pictures: int) -> Tensor:
        """The guidance scale as the input (B, E) that a distilled U-Net takes it as."""
        scales = torch.tensor(guidance_scale - 1).repeat(pictures)
        width = self.unet.config.time_cond_proj_dim
        embedding: Tensor = self.pipeline.get_guidance_scale_embedding(scales, embedding_dim=width)
        return embedding.to(self.dtype)

    def encode(self, pixels: Tensor) -> Tensor:
        """Mean and log-variance (B, 2C, h, w) of what the VAE makes of pictures (B, 3, H, W) in [-1, 1]."""
        return latents_of.encode(self.vae, pixels, self.encodes_in)

    def moments(self, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, C, h, w) of a posterior (B, 2C, h, w), scaled as the U-Net knows latents."""
        return latents_of.moments(self.vae, posterior)

    def decode(self, latents: Tensor, vae: Any = None, **kept: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), in [-1, 1] up to what the decoder overshoots, of latents (B, C, h, w).

        Where the decoder overflows in half precision, it decodes again in float32, which a warning says.

        Args:
            vae: to decode with instead of the model's own, such as an engine's.
            kept: for an asymmetric autoencoder image (N, 3, H, W) and mask (N, 1, H, W), what is to be kept around it.
        """
        overflows = self.is_xl and self.vae.config.force_upcast
        return latents_of.decode(self.vae if vae is None else vae, latents, overflows=overflows, **kept)

    def predict(
        self, x: Tensor, t: Tensor, condition: Condition, progress: tuple[int, int] = (0, 1), unet: Any = None
    ) -> Tensor:
        """What the U-Net predicts for x (B, C, h, w) at timestep t: one prediction for each row of `condition.text`.

        With the 2B rows of guidance, x is seen twice, in one call. Gradients flow where they are enabled.

        Args:
            progress: the step and how many there are, for ControlNets with an interval.
            unet: to call instead of the model's own, such as a run's view of it.
        """
        # cat, not repeat, which would change the memory layout and with it the last bit of what convolutions round
        seen = x if len(condition.text) == len(x) else torch.cat([x] * (len(condition.text) // len(x)))  # (2B, C, h, w)
        residuals = {} if condition.control is None else self._control(seen, t, condition, condition.control, progress)
        if condition.painted is not None:
            seen = torch.cat([seen, condition.painted], dim=1)  # (2B, 9, h, w)
        prediction: Tensor = (self.unet if unet is None else unet)(
            seen,
            t,
            encoder_hidden_states=condition.text,
            timestep_cond=condition.guidance,
            added_cond_kwargs=condition.added,
            cross_attention_kwargs=condition.attention,
            return_dict=False,
            **residuals,
        )[0]
        return prediction

    def _control(
        self, seen: Tensor, t: Tensor, condition: Condition, control: Control, progress: tuple[int, int]
    ) -> dict[str, Any]:
        """What the ControlNets add to the U-Net's blocks."""
        embeddings, added = condition.text, condition.added
        free = len(seen) - len(control.pictures[0])  # in guess mode the unconditional rows are not steered
        if free:
            seen, embeddings = seen[free:], embeddings[free:]
            added = added and {name: value[free:] for name, value in added.items() if name != "image_embeds"}
        many = hasattr(self.pipeline.controlnet, "nets")
        scales = control.scales(*progress)
        down, middle = self.pipeline.controlnet(
            seen,
            t,
            encoder_hidden_states=embeddings,
            controlnet_cond=control.pictures if many else control.pictures[0],
            conditioning_scale=scales if many else scales[0],
            guess_mode=control.guess_mode,
            added_cond_kwargs=added,
            return_dict=False,
        )
        if free:
            down, middle = [_after_zeros(one, free) for one in down], _after_zeros(middle, free)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def _after_zeros(values: Tensor, rows: int) -> Tensor:
    return torch.cat([torch.zeros_like(values[:1]).expand(rows, *values.shape[1:]), values])
