"""What inversion, even walks and previews reach on the embedded model, on drawings whose truth is known:
`python benchmarks/latents.py`."""

from __future__ import annotations

import torch

import sdkit
from benchmarks.embedded import judge
from sdkit import Stage, Trace, hooks
from sdkit.measure import psnr
from sdkit.pictures import to_pixels
from sdkit.tiny import drawing
from sdkit.tiny.grammar import COLOURS, KINDS

CHANGES = [("purple", "red"), ("blue", "orange"), ("green", "blue")]
WORDS = [(f"a {a} {kind} on a white background", b) for kind, (a, b) in zip(KINDS, CHANGES * 4, strict=True)]
BEFORE, COLOURED = [words for words, _ in WORDS], [colour for _, colour in WORDS]
AFTER = [words.replace(words.split()[1], colour, 1) for words, colour in WORDS]


WAY = {"guidance_scale": 1, "scheduler": "ddim", "num_inference_steps": 50, "seed": 0}


def there_and_back(pictures, refinements: int) -> Trace:
    found = sdkit.invert(pictures, BEFORE, refinements=refinements)
    back = Trace()
    sdkit.text_to_image(BEFORE, latents=found.latents, hooks=[back], **WAY)
    return back


def with_attention(pictures):
    """Other words from the first step on, that look where the words of the way back looked."""
    found = sdkit.invert(pictures, BEFORE)
    back = Trace(["tokens", "attention", "self_attention"], budget="4GB")
    sdkit.text_to_image(BEFORE, latents=found.latents, hooks=[back], **WAY)
    kept = [hooks.keep_layout(back, until=1), hooks.keep_self_attention(back, until=0.8)]
    return sdkit.text_to_image(AFTER, latents=found.latents, hooks=kept, **WAY).images


def edited(images, drawn) -> str:
    """Share of the right colour and kind, cover of the true mask, and how far the rest stayed as it was."""
    read = judge.trained_eye().read(images)
    colour = (read[:, 1] == torch.tensor([COLOURS.index(c) + 1 for c in COLOURED])).float().mean()
    kind = (read[:, 0] == torch.tensor([KINDS.index(k) + 1 for k in KINDS])).float().mean()
    covers, errors = [], []
    for image, one in zip(images, drawn, strict=True):
        pixels, mask = to_pixels(image)[0], torch.from_numpy(one.masks[0]) > 0.5
        thing = (pixels - pixels.flatten(1).median(1).values.view(3, 1, 1)).norm(dim=0) > 0.5
        covers.append((thing & mask).sum() / (thing | mask).sum())
        errors.append((pixels - to_pixels(one.image)[0])[:, ~mask].square().mean())
    rest = 10 * torch.log10(4 / torch.stack(errors).mean())
    return f"colour {colour:5.1%}  kind {kind:5.1%}  cover {torch.stack(covers).mean():.3f}  rest {rest:5.2f} dB"


def main() -> None:
    drawn = [drawing.draw_with_facts(words, seed=200 + i) for i, words in enumerate(BEFORE)]
    pictures = [one.image for one in drawn]
    alone = torch.tensor(sdkit.round_trip(pictures).psnr)
    print(f"{len(pictures)} drawings; the autoencoder alone keeps {alone.mean():.2f} dB")
    for refinements in (0, 1, 10):
        back = there_and_back(pictures, refinements)
        loss = alone - torch.tensor(psnr(to_pixels(pictures), to_pixels(back.images)))
        print(f"inversion and back, {refinements:2} refinements: loses {loss.mean():.3f} dB, at most {loss.max():.3f}")

    print(f"\nanother colour, the same drawing\n{'drawings themselves':28} {edited(pictures, drawn)}")
    for step, guidance in ((5, 1), (15, 3), (20, 3), (25, 3), (25, 5)):
        images = back.branch(step, prompt=AFTER, guidance_scale=guidance).images
        print(f"{f'words at step {step}, guidance {guidance}':28} {edited(images, drawn)}")
    images = sdkit.image_to_image(pictures, AFTER, strength=0.5, seed=0).images
    print(f"{'image to image, 0.5':28} {edited(images, drawn)}")

    images = with_attention(pictures)
    print(f"{'with the attention kept':28} {edited(images, drawn)}")

    print("\nlongest step of a walk of 8 frames over the mean")
    for ends, asked in (((1, 2), {"prompt": "a red star"}), (("a red star", "a blue fish"), {"seed": 3})):
        plain, even = (sdkit.interpolate(*ends, **asked, frames=8, even=even).evenness for even in (False, True))
        print(f"{ends[0]!r} to {ends[1]!r}: {plain:.2f}, even {even:.2f}")

    rgb = sdkit.latent_to_rgb()
    decoded = torch.nn.functional.avg_pool2d(sdkit.load().decode(sdkit.encode(pictures).tensor).clamp(-1, 1), 8)
    error = (rgb.pixels(sdkit.encode(pictures)) - decoded).square().mean()
    r2 = 1 - error / (decoded - decoded.mean((0, 2, 3), keepdim=True)).square().mean()
    print(f"\npreviews: R2 {rgb.r2:.3f} and {rgb.psnr:.1f} dB by their own account; on these drawings R2 {r2:.3f}")

    run = Trace([Stage.DENOISED, Stage.LATENT])
    sdkit.text_to_image([f"a {kind}" for kind in KINDS], seed=1, hooks=[run])
    print(f"\na run of 20 steps\n{sdkit.describe(run)}\n\n{sdkit.cost()}")


if __name__ == "__main__":
    main()
