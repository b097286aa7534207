"""Ready-made hooks by family, each a dozen lines, which are also the examples of how to write your own.

Imports `unet`, `model`, `inputs` and the files at the top. Read `guidance` first, which
is the simplest; `trajectories`, `gradients`, `words`, `attention` and `looking` change or show other stages.
"""

from sdkit.hooks.attention import keep_layout, keep_self_attention, local_blend, reweight
from sdkit.hooks.gradients import steer
from sdkit.hooks.guidance import dynamic_threshold, guidance_interval
from sdkit.hooks.looking import preview
from sdkit.hooks.trajectories import blend, from_diffusers, inject_noise, stop_after
from sdkit.hooks.words import hear_only, mix_words

__all__ = [
    "blend",
    "dynamic_threshold",
    "from_diffusers",
    "guidance_interval",
    "hear_only",
    "inject_noise",
    "keep_layout",
    "keep_self_attention",
    "local_blend",
    "mix_words",
    "preview",
    "reweight",
    "steer",
    "stop_after",
]
