"""Looking: what a run shows, and what probes and autoencoders of yours read in it, mostly without changing it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdkit.events import Event, Hook, Stage, on
from sdkit.hooks.guidance import halves
from sdkit.inputs.checks import instance, pick, typed
from sdkit.pictures import contact_sheet, to_pil
from sdkit.trace.trace import Trace


@typed(every=(1, math.inf))
def preview(show: Callable[[int, list[Image.Image]], Any] | None = None, every: int = 1) -> Hook:
    """Decode the x0 of each n-th step, and see the picture form.

    Args:
        show: called with the step and the pictures; by default they appear below the cell of a notebook, each in the
            place of the one before.

    Raises:
        ValueError: this is no notebook, and `show` is not given.

    Example:
        >>> def show(step, pictures):
        ...     print(step, pictures[0].size)
        >>> result = sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.preview(show, every=10)])
        0 (128, 128)
        10 (128, 128)
    """
    notebook = sys.modules.get("IPython")  # which nothing but a notebook, or its kin, has imported
    if show is None and (notebook is None or notebook.get_ipython() is None):
        raise ValueError("there is no notebook to show pictures in; give show, a function of (step, pictures)")

    @on(Stage.DENOISED)
    def preview(event: Event) -> None:
        if event.step is None or event.step % every:
            return
        pictures = to_pil(event.run.model.decode(event.value))
        if show is not None:
            show(event.step, pictures)
            return

        from IPython.display import display

        page = pictures[0] if len(pictures) == 1 else contact_sheet(pictures)
        cell: Any = event.run.keep(preview, lambda: display(page, display_id=True))  # type: ignore[no-untyped-call]
        cell.update(page)

    return preview


@typed(every=(1, math.inf))
def preview_halves(show: Callable[[int, list[Image.Image], list[Image.Image]], Any], every: int = 1) -> Hook:
    """Decode the x0 that each half of guidance stands for: what the model sees without the words, and with them. What
    guidance makes of the two lies on the line through both.

    Args:
        show: called with each n-th step, the pictures without the words and those with them.

    Example:
        >>> pairs = {}
        >>> def show(step, without, with_words):
        ...     pairs[step] = sdkit.contact_sheet([without[0], with_words[0]])
        >>> result = sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.preview_halves(show, every=10)])
        >>> sorted(pairs)
        [0, 10]
    """

    @on(Stage.NOISE)
    def preview_halves(event: Any) -> None:
        run = event.run
        if event.step % every == 0:
            x0 = halves(run, run.x0_of(event.value))
            show(event.step, *(to_pil(run.model.decode(one)) for one in x0))

    return preview_halves


@typed()
def attention_entropy(show: Callable[[int, str, Tensor], Any], stage: str = "attention") -> Hook:
    """How widely each head looks: the entropy of its attention, as a share of the largest there can be, the mean over
    all places. 0 is to look at one token or place alone, 1 at all of them alike.

    Args:
        show: called at each step with each layer and its entropies (B, heads), of the half that hears the prompts.
        stage: "attention" or "self_attention".

    Example:
        >>> course = {}
        >>> def show(step, layer, entropy):
        ...     course.setdefault(step, []).append(float(entropy.mean()))
        >>> result = sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.attention_entropy(show)])
        >>> len(course)
        20
    """
    pick("stage", stage, (Stage.ATTENTION, Stage.SELF_ATTENTION))

    @on(stage)
    def attention_entropy(event: Any) -> None:
        weights = halves(event.run, event.value)[1].float()  # (B, heads, h*w, L)
        entropy = torch.special.entr(weights).sum(-1).mean(-1) / math.log(weights.shape[-1])
        show(event.step, event.layer, entropy)

    return attention_entropy


@typed()
def fit_probe(traces: list[Trace], labels: Tensor, layer: str = "mid_block") -> dict[int, Tensor]:
    """Fit a linear probe of a block for each step: what its output, averaged over the quarters of the picture, tells of
    labels of yours, by least squares (Alain and Bengio 2016, arXiv:1610.01644; of diffusion models Chen et al. 2023,
    arXiv:2306.05720).

    Args:
        traces: of runs of as many steps, recorded with "block".
        labels: (n,) whole numbers from 0, one for each picture of the traces in their order.

    Returns:
        The probe's weights (4c + 1, classes) by step, for `probe`.

    Raises:
        ValueError: the traces have nothing of the layer, or the labels are not one for each picture.

    Example:
        >>> places = {"left": 0, "right": 1}
        >>> recorded = sdkit.Trace(["block"])
        >>> prompts = [f"a star on the {place}" for place in places] * 4
        >>> result = sdkit.text_to_image(prompts, seed=1, num_inference_steps=4, hooks=[recorded])
        >>> weights = sdkit.hooks.fit_probe([recorded], torch.tensor([0, 1] * 4))
    """
    rows: dict[Any, list[Tensor]] = {}
    for one in (one for trace in traces for one in trace[Stage.BLOCK] if one.layer == layer):
        rows.setdefault(one.step, []).append(_quarters(one.value))
    if not rows:
        raise ValueError(f"the traces have nothing of {layer!r}; record them with sdkit.Trace(['block'])")
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels) or labels.min() < 0:
        kind = f"a tensor {tuple(labels.shape)} of {labels.dtype}"
        raise ValueError(f"labels must be whole numbers from 0, one for each picture, but are {kind}")
    wanted = F.one_hot(labels.long()).float()  # (n, classes)
    made = {}
    for step, parts in rows.items():
        share = sum(map(len, parts)) / len(wanted)  # 2 with guidance, whose second half hears the prompts
        if share not in (1, 2):
            raise ValueError(f"there are {len(wanted)} labels for {sum(map(len, parts))} rows of {layer!r}")
        known = torch.cat([part[len(part) - int(len(part) / share) :] for part in parts])
        made[step] = torch.linalg.lstsq(known, wanted, driver="gelsd").solution
    return made


@typed(weights=None)
def probe(weights: Mapping[int, Tensor], show: Callable[[int, Tensor], Any], layer: str = "mid_block") -> Hook:
    """Read what a block tells at each step, with the weights that `fit_probe` has made.

    Args:
        show: called with each step and the scores (B, classes); the largest is what is read.

    Example:
        >>> recorded, run, read = sdkit.Trace(["block"]), {"num_inference_steps": 4}, {}
        >>> result = sdkit.text_to_image(["a star on the left", "a star on the right"], seed=1, hooks=[recorded], **run)
        >>> weights = sdkit.hooks.fit_probe([recorded], torch.tensor([0, 1]))
        >>> def show(step, scores):
        ...     read[step] = scores.argmax(1).tolist()
        >>> reader = sdkit.hooks.probe(weights, show)
        >>> result = sdkit.text_to_image("a fish on the left", seed=9, hooks=[reader], **run)
    """
    instance("weights", weights, Mapping)

    @on(Stage.BLOCK, layer=layer)
    def probe(event: Any) -> None:
        if event.step in weights:
            seen = _quarters(halves(event.run, event.value)[1])
            show(event.step, seen @ weights[event.step].to(seen))

    return probe


@typed()
def sparse_autoencoder(autoencoder: Any, edit: Callable[[Tensor], Tensor], layer: str = "mid_block") -> Hook:
    """See and edit the features that a sparse autoencoder of yours finds at each place of a block (Surkov et al. 2024,
    arXiv:2410.22366). What it does not reconstruct is added back, so that only the edit acts.

    Args:
        autoencoder: anything with `encode`, of (..., c) to features (..., k), and `decode`, back.
        edit: takes the features (2B, h, w, k), the unconditional half first; returns others, or the same to look alone.

    Example:
        >>> class Pairs:  # of channels that are above 0 and below
        ...     encode = staticmethod(lambda x: torch.cat([x.relu(), (-x).relu()], dim=-1))
        ...     decode = staticmethod(lambda features: features.chunk(2, dim=-1)[0] - features.chunk(2, dim=-1)[1])
        >>> def strengthen(features):
        ...     return torch.cat([2 * features[..., :1], features[..., 1:]], dim=-1)
        >>> stronger = sdkit.hooks.sparse_autoencoder(Pairs(), strengthen)
        >>> result = sdkit.text_to_image("a red star", seed=7, hooks=[stronger])
    """

    @on(Stage.BLOCK, layer=layer)
    def sparse_autoencoder(event: Any) -> None:
        x = event.value.movedim(1, -1)  # (2B, h, w, c)
        features = autoencoder.encode(x)
        edited = edit(features)
        if edited is not features:
            error = x - autoencoder.decode(features)
            event.value = (autoencoder.decode(edited) + error).movedim(-1, 1)

    return sparse_autoencoder


def _quarters(block: Tensor) -> Tensor:
    """What a probe sees of a block's output (R, c, h, w): its means over four quarters and a constant, (R, 4c + 1)."""
    return F.pad(F.adaptive_avg_pool2d(block.float(), 2).flatten(1), (0, 1), value=1.0)
