"""Callbacks that were written for diffusers, as hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sdkit.events import Event, Hook, Stage, on
from sdkit.noise import guide

_LAYERS = {  # of CONTEXT, by diffusers' names for what a callback may replace
    "prompt_embeds": None,
    "add_text_embeds": "pooled",
    "add_time_ids": "time_ids",
    "w_embedding": "guidance",
    "mask": "mask",
    "masked_image_latents": "masked",
}
_FIRST_HALVES = {  # which a callback may read, and diffusers does not use again
    "negative_prompt_embeds": None,
    "negative_pooled_prompt_embeds": "pooled",
    "negative_add_time_ids": "time_ids",
    "add_neg_time_ids": "time_ids",
}


def from_diffusers(callback: Callable[..., dict[str, Any]], tensor_inputs: Sequence[str] | None = None) -> Hook:
    """A function or an object that was written as diffusers' `callback_on_step_end`, as a hook that acts as it does in
    diffusers, to the bit.

    It is called after every step with the pipeline, the step, the timestep and a dictionary of tensors, and returns
    that dictionary with whatever it replaces. The pipeline is a copy that shares the model's parts: `_guidance_scale`,
    `_interrupt` and whatever else is set on it hold for this run alone; what is done to the parts themselves stays.

    Args:
        tensor_inputs: diffusers' `callback_on_step_end_tensor_inputs`, the tensors to hand over; by default those that
            the callback names itself, as those of `diffusers.callbacks` do, or "latents" alone.

    Raises:
        ValueError: it names a tensor that this run does not have.
        TypeError: it returned something else than a dictionary.

    Example:
        >>> from diffusers.callbacks import SDCFGCutoffCallback
        >>> cutoff = sdkit.hooks.from_diffusers(SDCFGCutoffCallback(cutoff_step_ratio=0.5))
        >>> sdkit.text_to_image("a red star", seed=7, hooks=[cutoff])
    """
    wanted = tuple(tensor_inputs or getattr(callback, "tensor_inputs", None) or ("latents",))

    @on(Stage.LATENT, Stage.CONTEXT, Stage.GUIDED)
    def from_diffusers(event: Event) -> None:
        run = event.run
        call = run.keep(from_diffusers, lambda: _Callback(callback, wanted, run))
        if event.stage is Stage.LATENT:
            call.after_a_step(event)
        elif event.stage is Stage.CONTEXT:
            call.on_context(event)
        else:
            call.on_guided(event)

    return from_diffusers


class _Callback:
    """A callback during one run."""

    def __init__(self, callback: Callable[..., Any], wanted: Sequence[str], run: Any) -> None:
        self.callback, self.wanted = callback, wanted
        self.context: dict[str | None, torch.Tensor] = {}  # what the last step went by, by the layers of CONTEXT
        self.first: dict[str | None, torch.Tensor] = {}  # what the first step went by
        self.replaced: dict[str | None, torch.Tensor] = {}  # by the callback, for all steps to come
        self.ended: int | None = None  # the step that has ended
        settings = run.settings
        self.pipeline = copy.copy(run.model.pipeline)
        self.pipeline.__dict__ |= {
            "scheduler": run.scheduler,
            "_num_timesteps": len(run.visits),
            "_guidance_scale": run.guidance_scale,
            "_guidance_rescale": settings.guidance_rescale,
            "_clip_skip": settings.clip_skip,
            "_cross_attention_kwargs": None,
            "_denoising_start": settings.denoising_start,
            "_denoising_end": settings.denoising_end,
            "_interrupt": False,
        }

    @property
    def guidance(self) -> tuple[float, float]:
        """Scale and rescale, as the callback has left them."""
        return self.pipeline.__dict__["_guidance_scale"], self.pipeline.__dict__["_guidance_rescale"]

    def after_a_step(self, event: Event) -> None:
        run, ended = event.run, self.ended
        self.ended = event.step
        if ended is None or run.stopped:
            return
        given = {name: self._tensor(name, ended, event) for name in self.wanted}
        returned = self.callback(self.pipeline, ended, run.visits[ended].tensor, given)
        if not isinstance(returned, dict):
            raise TypeError(f"the callback must return a dictionary of tensors, but returned {returned!r:.80}")
        self.replaced |= {layer: returned[name] for name, layer in _LAYERS.items() if returned.get(name) is not None}
        for name in ("image", "control_image"):
            each = returned[name] if isinstance(returned.get(name), list) else [returned.get(name)]
            self.replaced |= {f"control.{i}": one for i, one in enumerate(each) if one is not None}
        run.leave_scheduler()
        decoded = "denoised" if event.step is None and run.model.takes_guidance else "latents"  # as LCM's pipelines do
        event.value = returned.get(decoded, event.value)
        if self.pipeline.__dict__["_interrupt"]:
            run.stop()

    def _tensor(self, name: str, ended: int, event: Event) -> Any:
        """What a step that has ended had under one of diffusers' names."""
        run = event.run
        layer = {**_LAYERS, **_FIRST_HALVES}.get(name, name)
        value: Any = self.context.get(layer)
        if name == "latents" or (name == "denoised" and event.step is None):
            return event.value
        if name == "denoised" and run.model.takes_guidance:
            c_skip, c_out = run.scheduler.get_scalings_for_boundary_condition_discrete(run.visits[ended].tensor)
            return c_out * run.seen[Stage.DENOISED] + c_skip * run.seen[Stage.LATENT]
        if name in ("image", "control_image"):
            each = [one for key, one in self.context.items() if str(key).startswith("control.")]
            value = each[0] if len(each) == 1 else each or None
        if value is None:
            raise ValueError(f"the callback asks for {name!r}, which this run does not have")
        if name in _FIRST_HALVES:
            value = self.first[layer]  # which diffusers keeps beside what a callback replaces
            return value[: run.shape[0]] if len(value) > run.shape[0] else None
        return torch.cat([value] * (len(self.context[None]) // len(value))) if layer in ("mask", "masked") else value

    def on_context(self, event: Event) -> None:
        """Have the step go by what was replaced, and by the words alone where guidance has been switched off."""
        value, pictures = self.replaced.get(event.layer, event.value), event.run.shape[0]
        if event.layer is None and self.guidance[0] <= 1 < event.run.guidance_scale:
            value = value[-pictures:]
        if event.layer in ("mask", "masked"):
            value = value[:pictures]
        if value.shape != event.value.shape and event.layer is not None:
            value = value[-len(event.value) :]
        if value is not event.value and not (value.shape == event.value.shape and torch.equal(value, event.value)):
            event.value = value
        self.context[event.layer] = event.value
        self.first.setdefault(event.layer, event.value)

    def on_guided(self, event: Event) -> None:
        """Guide by another scale."""
        run, noise = event.run, event.run.seen[Stage.NOISE]
        if self.guidance != (run.guidance_scale, run.settings.guidance_rescale) and len(noise) == 2 * run.shape[0]:
            uncond, cond = noise.chunk(2)
            event.value = guide(uncond, cond, *self.guidance)
