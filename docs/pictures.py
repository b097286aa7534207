"""The pictures of the documentation, made anew from the embedded model: `python docs/pictures.py`.

Each comes light and dark where it has a paper of its own. Pages are photographed by Chromium.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from torch import Tensor

import sdkit
from sdkit import Stage, hooks, plots
from sdkit.pictures import to_pixels
from sdkit.show.style import DARK, LIGHT, drawn
from sdkit.show.view import colours, noise_share, spread_out, standard

HERE = Path(__file__).parent / "pictures"
PROMPT = "a red mushroom left of a green tree on a yellow background"
SEED, WORDS, COLUMNS = 6, ("mushroom", "tree"), 6
WIDE = 1760  # pixels of a full-width picture, twice what a page shows


def main() -> None:
    """Make them all."""
    HERE.mkdir(exist_ok=True)
    trace, maps = sdkit.Trace(), sdkit.AttentionMaps()
    made = sdkit.text_to_image(PROMPT, seed=SEED, hooks=[trace, maps])
    branch = trace.branch(6, prompt=PROMPT.replace("red", "blue"))
    walk = sdkit.diffuse(made.image, 6, seed=1)
    for dark in (False, True):
        both(run(trace, maps, dark), "run", dark)
        both(plots.word_maps(trace, maps, ["red", "mushroom", "green", "tree", "background"], dark=dark), "words", dark)
        both(plots.compare(trace, branch, dark=dark), "branch", dark)
        both(plots.journey(walk, trace, dark=dark), "journey", dark)
        both(plots.film_strip(trace, dark=dark), "film_strip", dark)
        both(plots.channels(trace, dark=dark), "channels", dark)
        both(plots.noise_schedule(trace, dark=dark), "noise_schedule", dark)
        both(plots.guidance(trace, dark=dark), "guidance", dark)
        both(plots.words_over_time(trace, maps, WORDS, dark=dark), "words_over_time", dark)
        both(plots.histograms(trace, dark=dark), "histograms", dark)
        both(plots.trajectory(trace, branch, dark=dark), "trajectory", dark)
    strips()
    photograph(trace, maps)
    photograph_live()
    for path in sorted(HERE.iterdir()):
        print(f"{path.stat().st_size / 1000:6.0f} KB  {path.name}")


def both(figure: Any, name: str, dark: bool) -> None:
    """Write a figure in one of its two looks, as wide as the others."""
    path = HERE / f"{name}-{'dark' if dark else 'light'}.png"
    figure.savefig(path, dpi=WIDE / figure.get_figwidth())
    smaller(Image.open(path), path)


def smaller(picture: Image.Image, path: Path) -> None:
    """Write a picture in the 256 colours that suit it best: a third of the bytes, and nobody sees it."""
    picture.convert("RGB").quantize(256, kmeans=3).save(path, optimize=True)


# ---------------------------------------------------------------------------------------------------------------------
# The whole run in one picture


def run(trace: sdkit.Trace, maps: sdkit.AttentionMaps, dark: bool) -> Any:
    """Words, tokens and embeddings; then step by step x_t, the prediction, x0 and where two words look; the picture."""
    paint = colours(trace)
    steps = spread_out(trace.steps, COLUMNS)
    ink = DARK if dark else LIGHT
    hues = dict(zip(WORDS, (ink.second, ink.main), strict=True))
    predicted = {step: as_colours(trace.at(step)[Stage.DENOISED].value) for step in steps}
    with drawn(11, 6.5, "", dark=dark) as figure:
        figure.set_layout_engine("none")
        words(figure, trace, hues)
        left, size, gap = 1.62, 0.96, 0.1  # inches
        rows = {
            "latent": (
                3.52,
                "what each step\nis given, $x_t$",
                lambda s: paint(standard(trace, trace.at(s)[Stage.LATENT])[None])[0],
            ),
            "guided": (2.36, "what the U-Net\npredicts, guided", lambda s: paint(trace.at(s)[Stage.GUIDED].value)[0]),
            "denoised": (1.2, "the picture it\npredicts, $x_0$", lambda s: predicted[s]),
            "attention": (0.04, "its attention\nto two words", lambda s: tinted(predicted[s], maps, s, hues)),
        }
        for name, (bottom, text, show) in rows.items():
            label(figure, bottom + size / 2, name, text)
            for column, step in enumerate(steps):
                axis = place(figure, left + column * (size + gap), bottom, size, size)
                axis.imshow(show(step).movedim(0, -1).numpy())
                if name == "latent":
                    title = f"step {step}, t = {trace.levels[step].t}\n{noise_share(trace, step)}"
                    axis.set_title(title, fontsize=8.5, color=ink.quiet)
        x = left + COLUMNS * (size + gap) + 0.16
        axis = place(figure, x, 1.2, 11 - x - 0.06, 11 - x - 0.06)
        axis.imshow(trace.images[0])
        axis.set_title(r"$\mathtt{image}$, decoded", fontsize=11, loc="left")
        figure.text(
            x / 11,
            1.02 / 6.5,
            "Every value above is an event:\nto see, to record, to replace.",
            va="top",
            color=ink.quiet,
            fontsize=9.5,
        )
    return figure


def words(figure: Any, trace: sdkit.Trace, hues: dict[str, str]) -> None:
    """The tokens of the prompt as boxes, and under each its embedding as a field of 8 by 16 numbers."""
    row = trace.tokens[-1]
    last = next(i for i, token in enumerate(row) if token.word is None and i > 0)
    text = trace[Stage.TEXT][0].value[-1]  # (L, D)
    label(figure, 6.2, "tokens", "")
    label(figure, 5.3, "text", "what the text\nencoder says")
    wide, gap = 0.7, 0.076
    for i, token in enumerate(row[1:last]):
        x = 1.62 + i * (wide + gap)
        hue = hues.get(token.text)
        box = FancyBboxPatch(
            (x / 11, 6.04 / 6.5),
            wide / 11,
            0.32 / 6.5,
            boxstyle="round,pad=0,rounding_size=0.006",
            mutation_aspect=11 / 6.5,
            fc=hue or "none",
            ec=hue or figure.ink.quiet,
            lw=0.9,
            transform=figure.transFigure,
        )
        figure.add_artist(box)
        ink = figure.ink.paper if hue else figure.ink.text
        figure.text(
            (x + wide / 2) / 11,
            6.2 / 6.5,
            token.text,
            ha="center",
            va="center",
            fontsize=9.5 if len(token.text) < 8 else 7.8,
            color=ink,
        )
        axis = place(figure, x, 4.98, wide, wide)
        axis.imshow(text[i + 1].view(8, -1).numpy(), cmap=figure.ink.signed, vmin=-3, vmax=3, aspect="auto")


def place(figure: Any, x: float, y: float, w: float, h: float) -> Any:
    """Axes without ticks at so many inches from the left and from below."""
    axis = figure.add_axes((x / 11, y / 6.5, w / 11, h / 6.5))
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    return axis


def label(figure: Any, y: float, name: str, text: str) -> None:
    """The name of a stage at the left, and what it is."""
    figure.text(
        0.06 / 11,
        (y + (0.2 if text else 0)) / 6.5,
        name,
        family="DejaVu Sans Mono",
        fontsize=11,
        va="center",
        fontweight="bold",
    )
    figure.text(0.06 / 11, (y - 0.14) / 6.5, text, fontsize=9, va="center", color=figure.ink.quiet)


def as_colours(latents: Tensor) -> Tensor:
    """Latents (1, C, h, w) as the picture (3, H, W) in [0, 1] that the decoder makes of them."""
    return to_pixels(sdkit.decode(latents), signed=False)[0]


def tinted(picture: Tensor, maps: sdkit.AttentionMaps, step: int, hues: dict[str, str]) -> Tensor:
    """A picture (3, H, W) in pale grey, each word's heat over it in the word's colour."""
    shown = picture.mean(0, keepdim=True).expand(3, -1, -1) * 0.7 + 0.1
    for word, hue in hues.items():
        heat = maps.heat(word, step=step)[None] * 0.85
        shown = torch.lerp(shown, torch.tensor(to_rgb(hue))[:, None, None].expand_as(shown), heat)
    return shown


# ---------------------------------------------------------------------------------------------------------------------
# Strips of pictures, which have no paper, and the page of the report


def strips() -> None:
    """What image to image, masks, edits of attention and a walk make of a picture."""
    source = sdkit.Trace(["tokens", "attention"])
    picture = sdkit.text_to_image(PROMPT, seed=SEED, hooks=[source]).image
    mask = Image.new("L", picture.size)
    mask.paste(255, (64, 24, 128, 112))  # around the tree
    side_by_side(
        [
            picture,
            sdkit.image_to_image(picture, PROMPT.replace("red", "blue"), strength=0.7, seed=1).image,
            sdkit.image_to_image(picture, PROMPT.replace("mushroom", "flower"), strength=0.7, seed=1).image,
            *(
                sdkit.image_to_image(
                    picture, PROMPT.replace("a green tree", other), mask_image=mask, strength=0.95, seed=seed
                ).image
                for other, seed in (("a blue boat", 2), ("an orange cat", 2), ("a pink flower", 4))
            ),
        ],
        "variations.png",
    )
    purple = PROMPT.replace("green", "purple")
    side_by_side(
        [
            picture,
            sdkit.text_to_image(purple, seed=SEED).image,
            sdkit.text_to_image(purple, seed=SEED, hooks=[hooks.keep_layout(source)]).image,
            *(
                sdkit.text_to_image(PROMPT, seed=SEED, hooks=[hook]).image
                for hook in (
                    hooks.reweight("tree", 0),
                    hooks.mix_words("tree", "boat", 1.0),
                    hooks.hear_only("words"),
                )
            ),
        ],
        "edits.png",
    )
    ends = "a red heart on a pink background", "a green tree on a blue background"
    side_by_side(sdkit.interpolate(*ends, frames=8, seed=2, even=True).images, "walk.png")


def side_by_side(pictures: list[Image.Image], name: str) -> None:
    """Pictures in one row, point for point, nothing between them but transparency."""
    gap, side = 8, max(picture.width for picture in pictures)
    page = Image.new("RGBA", (len(pictures) * (side + gap) - gap, side))
    for i, picture in enumerate(pictures):
        page.paste(picture, (i * (side + gap), 0))
    page.save(HERE / name, optimize=True)


def photograph(trace: sdkit.Trace, maps: sdkit.AttentionMaps) -> None:
    """The report, where a step begins, as a browser shows it."""
    driver = browser()
    with tempfile.TemporaryDirectory() as folder:
        page = trace.report(Path(folder) / "run.html", maps=maps)
        for look in ("light", "dark"):
            scheme = {"name": "prefers-color-scheme", "value": look}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            driver.get(page.as_uri())
            driver.execute_script(
                "const top = document.getElementById('latent').getBoundingClientRect().top + scrollY;"
                "scrollTo({top: top + 60, behavior: 'instant'})"
            )
            time.sleep(1)  # until what slides has come to rest
            path = HERE / f"report-{look}.png"
            driver.save_screenshot(str(path))
            smaller(Image.open(path), path)
    driver.quit()


def photograph_live() -> None:
    """The live page: a run, and beside it the one that goes on from its step 6 under other words."""
    driver, wait = browser(), "!document.getElementById('steer').hidden"
    driver.get(sdkit.app())
    until(driver, "document.body.dataset.ready === 'yes'")
    write = "const [where, text] = arguments; document.querySelector(where).value = text"
    driver.execute_script(write, "#form-text [name=prompt]", PROMPT)
    driver.execute_script(write, "#form-text [name=seed]", str(SEED))
    driver.execute_script("document.querySelector('#form-text .solid').click()")
    until(driver, wait)
    move = "const to = document.querySelector('.track input'); to.value = 6; to.dispatchEvent(new Event('input'))"
    driver.execute_script(move)
    driver.execute_script(write, "#form-steer [name=prompt]", PROMPT.replace("red", "blue"))
    driver.execute_script("document.querySelector('#form-steer .solid').click()")
    until(driver, f"document.querySelectorAll('.lane').length === 2 && {wait}")
    driver.set_window_size(1180, 1500)
    driver.execute_script("scrollTo({top: 0, behavior: 'instant'})")
    time.sleep(1)
    path = HERE / "live.png"
    driver.save_screenshot(str(path))
    smaller(Image.open(path), path)
    driver.quit()


def until(driver: Any, condition: str) -> None:
    """Wait for a condition of the page."""
    while not driver.execute_script(f"return {condition}"):
        time.sleep(0.1)


def browser() -> Any:
    """Chromium without a window."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless=new",
        "no-sandbox",
        "hide-scrollbars",
        "window-size=1180,700",
        "force-device-scale-factor=1.5",
    ):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


if __name__ == "__main__":
    main()
