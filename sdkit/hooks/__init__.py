"""Ready-made hooks by family, each a dozen lines, which are also the examples of how to write your own.

Imports `trace`, `unet`, `model`, `inputs` and the files at the top. Read `guidance` first, which
is the simplest, then `perturbed` and `concepts`; `trajectories`, `gradients`, `placing`, `words`, `attention` and
`looking` change or show other stages.
"""

from sdkit.hooks.attention import keep_layout, keep_self_attention, local_blend, paint_with_words, reweight
from sdkit.hooks.callbacks import from_diffusers
from sdkit.hooks.concepts import compose, ledits, sega
from sdkit.hooks.features import ablate, deep_cache, free_u, h_space, t_gate
from sdkit.hooks.gradients import dps, freedom, steer
from sdkit.hooks.guidance import (
    apg,
    cads,
    cfg_plus_plus,
    cfg_zero,
    dynamic_threshold,
    from_guider,
    guidance_interval,
)
from sdkit.hooks.inversions import edit_friendly, null_text
from sdkit.hooks.looking import attention_entropy, fit_probe, preview, preview_halves, probe, sparse_autoencoder
from sdkit.hooks.perturbed import autoguidance, pag, sag, seg
from sdkit.hooks.placing import attend_and_excite, layout, self_guidance
from sdkit.hooks.sharing import masactrl, plug_and_play, style_aligned
from sdkit.hooks.trajectories import blend, inject_noise, multidiffusion, repaint, restart, stop_after
from sdkit.hooks.words import hear_only, mix_words

__all__ = [
    "ablate",
    "apg",
    "attend_and_excite",
    "attention_entropy",
    "autoguidance",
    "blend",
    "cads",
    "cfg_plus_plus",
    "cfg_zero",
    "compose",
    "deep_cache",
    "dps",
    "dynamic_threshold",
    "edit_friendly",
    "fit_probe",
    "free_u",
    "freedom",
    "from_diffusers",
    "from_guider",
    "guidance_interval",
    "h_space",
    "hear_only",
    "inject_noise",
    "keep_layout",
    "keep_self_attention",
    "layout",
    "ledits",
    "local_blend",
    "masactrl",
    "mix_words",
    "multidiffusion",
    "null_text",
    "pag",
    "paint_with_words",
    "plug_and_play",
    "preview",
    "preview_halves",
    "probe",
    "repaint",
    "restart",
    "reweight",
    "sag",
    "seg",
    "sega",
    "self_guidance",
    "sparse_autoencoder",
    "steer",
    "stop_after",
    "style_aligned",
    "t_gate",
]


def __dir__() -> list[str]:
    return __all__
