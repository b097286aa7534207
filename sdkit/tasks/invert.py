"""The very noise from which the model would draw a picture: `invert`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from sdkit.events import Hook, checked
from sdkit.inputs.arguments import Settings
from sdkit.inputs.checks import told, typed
from sdkit.model import schedulers
from sdkit.model.loading import load
from sdkit.process.inverse import inverse
from sdkit.process.materials import pictures_for
from sdkit.process.prepare import prepare
from sdkit.process.run import begin
from sdkit.progress import driven
from sdkit.trace.trace import Trace


@typed(num_inference_steps=(1, 1000), refinements=(0, 1000), height=(8, 16384), width=(8, 16384))
def invert(
    image: Any,
    prompt: str | Sequence[str] = "",
    *,
    model: Any = None,
    num_inference_steps: int = 50,
    refinements: int = 10,
    height: int | None = None,
    width: int | None = None,
    hooks: Iterable[Hook] = (),
) -> Trace:
    """Find the noise from which DDIM would draw these pictures under these words at guidance 1, as a `Trace`.

    It records TOKENS, TEXT, PIXELS and POSTERIOR, then for each step, from the least noisy timestep t up, NOISE (what
    the U-Net predicts there), DENOISED and LATENT (x_t); `trace.latents` is the last x_t, the noise. The way back is

        sdkit.text_to_image(prompt, latents=trace.latents, guidance_scale=1, scheduler="ddim", num_inference_steps=50)

    with the same number of steps. An edit keeps the more of the picture the later the words change on that way: record
    it with a `Trace` of its own, and `branch` it half-way, say, with another prompt and guidance_scale=3.

    Args:
        image: a picture or a list of such, as for `image_to_image`. Its latents are the posterior's mean.
        prompt: what the picture shows; "" leaves it to the U-Net.
        model: what `load` takes; the embedded model by default.
        num_inference_steps: steps of DDIM each way.
        refinements: the way back asks the U-Net about the noisier end of each step, which is not known here. It is
            guessed from the cleaner end, then at most so many times anew from the guess before, each for one more call
            of the U-Net, until the guess moves by less than 1e-5 of its norm. 0 is plain DDIM inversion.
            `trace.settings["residuals"]` has how far the last guess moved in each step.
        height, width: to fit the picture to, multiples of 8.
        hooks: called with every `Event`; assigning `event.value` edits what follows.

    Returns:
        The trace, from the picture's latents to their noise, (B, C, h, w) each.

    Raises:
        ValueError: the model's DDIM clips what the model predicts, so that its steps cannot be undone.

    Example:
        >>> trace = sdkit.invert(picture, "a red star on a blue background", num_inference_steps=10)
        >>> trace.latents.shape
        torch.Size([1, 4, 16, 16])
    """
    if image is None or (isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] != 3):
        raise TypeError(f"image must be a picture, such as sdkit.decode makes of latents, but is {told(image)}")
    settings = Settings(
        prompt, num_inference_steps=num_inference_steps, guidance_scale=1.0, height=height, width=width, seed=0
    )
    model, trace = load(model), Trace()
    one = prepare(
        settings,
        model,
        "ddim",
        hooks=[*checked(hooks), trace],
        pictures=pictures_for(model, settings, image=image),
        inversion={"process": "inversion", "refinements": refinements, "residuals": []},
    )
    schedulers.alpha_sigma_after(one.scheduler, one.visits[0])  # said before the first step if it cannot be
    driven(begin(one, inverse(one, refinements)))
    return trace
