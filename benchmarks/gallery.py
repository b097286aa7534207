"""Each published method before and after, with its lines: `python -m benchmarks.gallery` draws the pictures of
docs/methods.md from the embedded model, or some of them by name, and writes the part of the page that shows them.

Prompts and seeds are chosen so that one sees what a method is for; what shows nothing here is said to.
"""

from __future__ import annotations

import argparse
import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import sdkit
from benchmarks.claims import worse_than
from sdkit import Trace, hooks, load, text_to_image
from sdkit.tiny.drawing import BACKDROPS, draw

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
PICTURES = PAGE.parent / "pictures" / "methods"
BETWEEN = "<!-- gallery -->", "<!-- /gallery -->"
COLOURS = 128  # of a picture's own; what follows them is clear
GAP, BETWEEN_HALVES = 4, 24  # pixels
Pictures = list[Image.Image]
STAR, PAIR = "a red star on a blue background", "a red mushroom left of a green tree on a yellow background"
FAINT = "a white mushroom below a red heart on a white background"


@dataclass(frozen=True)
class Shown:
    """What one sees of a method."""

    says: str
    make: Callable[[], tuple[Pictures, Pictures]]  # before and after


def pair(prompt: Any, *chosen: Any, before: Any = None, **settings: Any) -> tuple[Pictures, Pictures]:
    """Without hooks and with them."""
    run = {"seed": 7, "num_inference_steps": 20, **settings}
    return text_to_image(before or prompt, **run).images, text_to_image(prompt, hooks=chosen, **run).images


def shown() -> dict[str, dict[str, Shown]]:
    """All, by family."""
    left = torch.zeros(16, 16)
    left[:, 8:] = 1  # what lies at the right is painted anew
    where = torch.full((16, 16), -1.0)
    where[:, 10:] = 1
    return {
        "Guidance": {
            "apg": Shown("at guidance 12", lambda: pair(PAIR, hooks.apg(momentum=0.0), guidance_scale=12)),
            "cfg_plus_plus": Shown("at guidance 12", lambda: pair(PAIR, hooks.cfg_plus_plus(), guidance_scale=12)),
            "cfg_zero": Shown("at guidance 12", lambda: pair(PAIR, hooks.cfg_zero(), guidance_scale=12)),
            "dynamic_threshold": Shown(
                "at guidance 12", lambda: pair(PAIR, hooks.dynamic_threshold(), guidance_scale=12)
            ),
            "guidance_interval": Shown(
                "at guidance 12", lambda: pair(PAIR, hooks.guidance_interval(200, 800), guidance_scale=12)
            ),
            "cads": Shown(
                'three pictures of "a star", whose colours and backgrounds become others',
                lambda: pair(["a star"] * 3, hooks.cads(1.0), seed=8),
            ),
            "pag": Shown(
                "without guidance: here the background goes astray",
                lambda: pair(FAINT, hooks.pag(2.0), seed=2, guidance_scale=1),
            ),
            "seg": Shown(
                "without guidance: here the background goes astray",
                lambda: pair(FAINT, hooks.seg(3.0), seed=2, guidance_scale=1),
            ),
            "sag": Shown(
                "without guidance: hardly a change here", lambda: pair(FAINT, hooks.sag(), seed=2, guidance_scale=1)
            ),
            "autoguidance": Shown(
                "without guidance, away from a noisier copy: hardly a change here",
                lambda: pair(FAINT, hooks.autoguidance(worse_than(load()), 2.0), seed=2, guidance_scale=1),
            ),
            "compose": Shown(
                '"a fish", and "a pink background" of weight 2',
                lambda: pair("a fish", hooks.compose("a pink background", weights=[2.0])),
            ),
            "sega": Shown(
                '"a green background" from step 1 on',
                lambda: pair(STAR, hooks.sega("a green background", scale=8.0, warmup=1, threshold=0.3)),
            ),
        },
        "Gradients": {
            "freedom": Shown(
                "a loss that asks for a pink rim, which no word does: at this strength it comes half-way",
                lambda: pair("a cat", pink_rim()),
            ),
            "dps": Shown("of a drawing the upper half is given", upper_half),
            "attend_and_excite": Shown(
                "at guidance 1.5: nothing, as this model looks at every noun already",
                lambda: pair(FAINT, hooks.attend_and_excite("mushroom", "heart"), seed=2, guidance_scale=1.5),
            ),
            "layout": Shown(
                "the star in a box at the upper left",
                lambda: pair("a red star", hooks.layout({"star": (0.05, 0.05, 0.5, 0.5)}, scale=300.0)),
            ),
            "self_guidance": Shown(
                "the star's centre at the lower right",
                lambda: pair("a red star", hooks.self_guidance("star", centre=(0.7, 0.7))),
            ),
        },
        "Features": {
            "free_u": Shown(
                "at gentler factors than those for SD 1.5, which spoil this model: hardly a change",
                lambda: pair(PAIR, hooks.free_u(0.95, 0.9, 1.1, 1.1)),
            ),
            "h_space": Shown("from red to blue: nothing, as this model keeps no colours there", from_red_to_blue),
            "ablate": Shown("without the last up block but one", lambda: pair(STAR, hooks.ablate("up_blocks.1"))),
            "deep_cache": Shown("the deep blocks at every third step", lambda: pair(PAIR, hooks.deep_cache())),
            "t_gate": Shown("no cross-attention from step 10 on", lambda: pair(PAIR, hooks.t_gate(10))),
        },
        "Attention and words": {
            "keep_layout": Shown('"red" and then "blue", from one seed', lambda: recoloured("keep_layout")),
            "keep_self_attention": Shown(
                '"red" and then "blue": here it keeps little', lambda: recoloured("keep_self_attention")
            ),
            "plug_and_play": Shown('"red" and then "blue"', lambda: recoloured("plug_and_play")),
            "local_blend": Shown('"tree" becomes "boat", the rest stays', blended),
            "reweight": Shown('"tree" at four times its attention', lambda: pair(PAIR, hooks.reweight("tree", 4.0))),
            "paint_with_words": Shown(
                '"star" painted on the right', lambda: pair("a red star", hooks.paint_with_words("star", where, 6.0))
            ),
            "mix_words": Shown(
                "half a star, half a flower: here a star still",
                lambda: pair("a red star", hooks.mix_words("star", "flower")),
            ),
            "hear_only": Shown("the words alone, no padding", lambda: pair(STAR, hooks.hear_only("begin", "words"))),
            "masactrl": Shown(
                "the second takes what it is made of from the first",
                lambda: pair(["a cat on the left", "a cat on the right"], hooks.masactrl(2)),
            ),
            "style_aligned": Shown(
                "three kinds, no colour said", lambda: pair(["a house", "a fish", "a tree"], hooks.style_aligned())
            ),
        },
        "Trajectories": {
            "blend": Shown(
                "the left half is kept of the picture before",
                lambda: kept(lambda latents: hooks.blend(left, latents)),
            ),
            "repaint": Shown(
                "the left half is kept of the picture before",
                lambda: kept(lambda latents: hooks.repaint(left, latents, seed=1)),
            ),
            "restart": Shown("steps 5 to 10 three times over", lambda: pair(PAIR, hooks.restart(5, 10, seed=1))),
            "multidiffusion": Shown(
                "twice as wide as the model was trained on, which this one can draw without it as well",
                lambda: pair("a green tree", hooks.multidiffusion(stride=4), width=256),
            ),
        },
        "Inversions of a drawing": {
            "edit_friendly": Shown('"red" becomes "green"', lambda: inverted("edit_friendly")),
            "ledits": Shown('along "a green star", from its noises', lambda: inverted("ledits")),
            "null_text": Shown("back at guidance 5: without it, and with it", lambda: inverted("null_text")),
        },
        "Looking": {
            "preview_halves": Shown("x0 of step 0, 4 and 8: without the words, and with them", both_halves),
            "sparse_autoencoder": Shown(
                "one channel of the middle block, as a feature, 6 stronger: hardly a change in this model",
                lambda: pair(STAR, stronger()),
            ),
        },
    }


# ---------------------------------------------------------------------------------------------------------------------
# What takes more than a line


def pink_rim() -> Any:
    rim = torch.ones(128, 128)
    rim[12:-12, 12:-12] = 0
    pink = torch.tensor(BACKDROPS["pink"]).view(1, 3, 1, 1) / 127.5 - 1
    return hooks.freedom(lambda pictures: ((pictures - pink).square() * rim).sum(), 0.1, decoded=True)


def upper_half() -> tuple[Pictures, Pictures]:
    picture = draw("a large red house in the centre on a blue background", seed=4)

    def upper(x0: Tensor) -> Tensor:
        return x0[:, :, :9]

    hook = hooks.dps(upper, upper(sdkit.encode(picture).mean), 3.0)
    plain, made = pair("a house", hook)
    picture.paste((255, 255, 255), (0, 72, 128, 128))
    return [picture, *plain], made


def from_red_to_blue() -> tuple[Pictures, Pictures]:
    inside = Trace(["block"])
    text_to_image(["a red star", "a blue star"], seed=[7, 7], hooks=[inside])
    means = torch.stack([one.value for one in inside if one.layer == "mid_block"]).mean(0)  # (4, c, h, w)
    return pair("a red star", hooks.h_space(means[3] - means[2], 1.5))


def recoloured(how: str) -> tuple[Pictures, Pictures]:
    stages = {"keep_self_attention": ["self_attention"], "plug_and_play": ["block", "query", "key"]}
    source, run = Trace(stages.get(how, ["tokens", "attention"])), {"seed": 3, "num_inference_steps": 20}
    first = text_to_image("a red boat", hooks=[source], **run).images
    plain, made = pair("a blue boat", getattr(hooks, how)(source), **run)
    return [*first, *plain], made


def blended() -> tuple[Pictures, Pictures]:
    source, maps = Trace(["tokens", "attention", "denoised"]), sdkit.AttentionMaps()
    run = {"seed": 6, "num_inference_steps": 20}
    first = text_to_image(PAIR, hooks=[source, maps], **run).images
    words = PAIR.replace("tree", "boat")
    plain, made = pair(words, hooks.keep_layout(source, 0.4), hooks.local_blend(source, maps, "tree"), **run)
    return [*first, *plain], made


def kept(make: Callable[[Tensor], Any]) -> tuple[Pictures, Pictures]:
    first = text_to_image("a red cat on the left on a green background", seed=2)
    words = "a red cat left of a blue fish on a green background"
    made = text_to_image(words, seed=2, num_inference_steps=20, hooks=[make(first.latents)])
    return first.images, made.images


def inverted(how: str) -> tuple[Pictures, Pictures]:
    words, drawing = STAR, draw(STAR, seed=3)
    run: dict[str, Any] = {"scheduler": "ddim", "num_inference_steps": 20}
    if how == "null_text":
        way = sdkit.invert(drawing, words, num_inference_steps=20)
        run |= {"latents": way.latents, "guidance_scale": 5.0}
        plain, made = pair(words, hooks.null_text(way), seed=None, **run)
        return [drawing, *plain], made
    noises: list[Tensor] = []
    back = hooks.edit_friendly(sdkit.encode(drawing).mean, noises, seed=7)
    text_to_image(words, seed=7, hooks=[back], **run)
    if how == "edit_friendly":
        return [drawing], text_to_image(words.replace("red", "green"), seed=7, hooks=[back], **run).images
    along = hooks.ledits("a green star", scale=8.0, threshold=0.6)
    return [drawing], text_to_image(words, seed=7, hooks=[back, along], **run).images


def both_halves() -> tuple[Pictures, Pictures]:
    found: tuple[Pictures, Pictures] = ([], [])

    def show(step: int, without: Pictures, with_words: Pictures) -> None:
        if step <= 8:
            for pictures, more in zip(found, (without, with_words), strict=True):
                pictures.extend(more)

    text_to_image(STAR, seed=7, num_inference_steps=20, hooks=[hooks.preview_halves(show, every=4)])
    return found


class Channels:
    """The plainest autoencoder: each channel a feature."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    decode = encode


def stronger() -> Any:
    def edit(features: Tensor) -> Tensor:
        return features + 6 * torch.eye(features.shape[-1])[0]

    return hooks.sparse_autoencoder(Channels(), edit)


# ---------------------------------------------------------------------------------------------------------------------
# The page


def source_of(name: str) -> tuple[str, str]:
    """The first sentence of a method's documentation, and its lines without that documentation."""
    function = inspect.unwrap(getattr(hooks, name))
    lines, tree = inspect.getsource(function).splitlines(), ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    documentation = tree.body[0]
    code = lines[tree.lineno - 1 : documentation.lineno - 1] + lines[documentation.end_lineno :]
    return " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split()), "\n".join(code)


def sheet(before: Pictures, after: Pictures) -> Image.Image:
    """Two groups of pictures in one row, in colours of their own, on a transparent ground."""
    pictures, height = [*before, *after], max(one.height for one in (*before, *after))
    strip, x = Image.new("RGB", (sum(one.width for one in pictures), height), "white"), 0
    for one in pictures:
        strip.paste(one, (x, 0))
        x += one.width
    strip = strip.quantize(COLOURS, kmeans=3, dither=Image.Dither.NONE)
    page = Image.new("P", (strip.width + GAP * (len(pictures) - 2) + BETWEEN_HALVES, height), COLOURS)
    page.putpalette([*(strip.getpalette() or [])[: 3 * COLOURS], 255, 255, 255])
    x = at = 0
    for i, one in enumerate(pictures):
        at += 0 if not i else BETWEEN_HALVES if i == len(before) else GAP
        page.paste(strip.crop((x, 0, x + one.width, one.height)), (at, 0))
        x, at = x + one.width, at + one.width
    return page


def written() -> str:
    """The part of the page."""
    parts = []
    for family, methods in shown().items():
        parts.append(f"### {family}")
        for name, one in methods.items():
            says, code = source_of(name)
            picture = f"![{name}: before and after](pictures/methods/{name}.png)"
            # Not marked as Python to be run, as the pages' other code is.
            code = f"<details markdown><summary>Its lines</summary>\n\n```py\n{code}\n```\n\n</details>"
            parts.append(f"**`{name}`** {says}\n\n{picture}\n\n*{one.says[0].upper()}{one.says[1:]}.*\n\n{code}")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=(__doc__ or "").split(":")[0])
    known = {name: one for methods in shown().values() for name, one in methods.items()}
    parser.add_argument("methods", nargs="*", help="by default all of them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in given.methods or known:
        path = PICTURES / f"{name}.png"
        sheet(*known[name].make()).save(path, optimize=True, transparency=COLOURS)
        print(f"{path.stat().st_size / 1000:6.1f} KB  {path.name}", flush=True)
    page = PAGE.read_text(encoding="utf-8")
    first, rest = page.split(BETWEEN[0])
    PAGE.write_text(f"{first}{BETWEEN[0]}\n{written()}\n{BETWEEN[1]}{rest.split(BETWEEN[1])[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
