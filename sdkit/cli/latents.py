"""The commands that look into latents: `sdkit inspect`, `sdkit invert` and `sdkit interpolate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sdkit.cli.shared import add_model, busy, check_model, check_pictures, load_model, own_warnings
from sdkit.inputs.arguments import Settings
from sdkit.inputs.checks import number, pick, whole
from sdkit.inputs.paths import FPS, PICTURES, apart, chosen, film_path, picture_paths, trace_path

MORE = (".gif", ".bmp", ".tif", ".tiff", ".avif")  # endings of pictures that are read and not written


def add_inspect(inspect: argparse.ArgumentParser) -> None:
    """The options of `sdkit inspect`."""
    inspect.description = (
        "Encode a picture and decode it, describe its latents, and noise it step by step. The page has the "
        "picture, what came back, the difference and a preview without the decoder; then each noise level, decoded; "
        "then the same levels on pixels."
    )
    inspect.epilog = "example: sdkit inspect photo.png -o page.png"
    add = inspect.add_argument
    add("picture", help="the picture to look into")
    add("-o", "--output", metavar="FILE", help="PNG to write (default: inspect.png, or a name that is not taken)")
    add("--timesteps", type=int, default=8, metavar="N", help="noise levels to show (default: 8)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    add("--tiled", action="store_true", help="encode and decode in tiles, for a large picture")
    add("--json", action="store_true", help="print the numbers as JSON")
    add_model(inspect)
    inspect.set_defaults(do=_inspect)


def add_invert(invert: argparse.ArgumentParser) -> None:
    """The options of `sdkit invert`."""
    invert.description = (
        "Find the noise from which the model would draw a picture, and draw it from there again: the same "
        "picture, or with --edit one that other words change part of the way."
    )
    invert.epilog = 'example: sdkit invert star.png "a red star" --edit "a blue star" -o blue.png'
    add = invert.add_argument
    add("picture", help="the picture to invert")
    add("prompt", nargs="?", default="", help="what it shows (default: no words)")
    add("--edit", metavar="TEXT", help="other words for the later part of the way back")
    add("--keep", type=int, metavar="N", help="with --edit, first steps back under the first words (default: half)")
    add("-o", "--output", metavar="FILE", help="PNG of the way back (default: back.png, or a name that is not taken)")
    add("--trace", metavar="FILE", help="also write the inversion as a trace, .safetensors")
    add("--num-inference-steps", type=int, default=50, metavar="N", help="steps each way (default: 50)")
    add("--guidance-scale", type=float, default=3.0, metavar="G", help="with --edit, of the steps after (default: 3)")
    add_model(invert)
    invert.set_defaults(do=_invert)


def add_interpolate(interpolate: argparse.ArgumentParser) -> None:
    """The options of `sdkit interpolate`."""
    interpolate.description = (
        "A walk between two prompts; between two seeds, with --prompt; or between two pictures, with --pictures."
    )
    interpolate.epilog = 'example: sdkit interpolate "a red star" "a blue fish" --seed 7 -o walk.gif'
    interpolate.argument_default = argparse.SUPPRESS  # what is not given is left to the function's own defaults
    add = interpolate.add_argument
    add("start", help="a prompt, a seed or a picture")
    add("end", help="another of the same kind")
    add(
        "-o",
        "--output",
        default=None,
        metavar="FILE",
        help=".gif, .webp or .mp4 to write (default: walk.gif, or a name that is not taken)",
    )
    add("--prompt", metavar="TEXT", help="the ends are seeds, and this is what to draw")
    add("--pictures", action="store_true", default=False, help="the ends are picture files")
    add("--frames", type=int, metavar="N", help="how many, the ends included (default: 16)")
    add("--seed", type=int, metavar="N", help="of the noise between prompts (default: 0)")
    add("--how", metavar="HOW", help="linear or spherical (default: what fits the space)")
    add("--even", action="store_true", help="steps of equal length in latent space, which takes three times as long")
    add("--num-inference-steps", type=int, metavar="N", help="denoising steps (default: the model's own)")
    add("--guidance-scale", type=float, metavar="G", help="how strictly to follow the words (default: the model's own)")
    add("--fps", type=float, default=8.0, help="frames a second (default: 8)")
    add("--contact-sheet", default=None, metavar="FILE", help="also write all frames on one page, as PNG")
    add_model(interpolate)
    interpolate.set_defaults(do=_interpolate)


def _inspect(options: argparse.Namespace) -> None:
    (path,) = picture_paths(chosen(options.output, "inspect.png"), 1)
    Settings("", seed=options.seed)
    whole("timesteps", options.timesteps, at_least=1)
    apart([path], [options.picture])
    check_model(options)
    check_pictures(options.picture)

    model = load_model(options)

    from sdkit.pictures import save_picture
    from sdkit.tasks.inspect import look_into

    with own_warnings(), busy("looking at the picture"):
        seen = look_into(
            options.picture, timesteps=options.timesteps, seed=options.seed, tiled=options.tiled, model=model
        )
    save_picture(seen.page, path)
    if options.json:
        print(json.dumps({**seen.numbers, "page": str(path)}, indent=2))
        return
    print(f"{seen.trip}\n\n{seen.description}\n\n{'t':>4} {'alpha':>7} {'sigma':>7} {'SNR':>10}")
    for level in seen.levels:
        print(f"{level['t']:4} {level['alpha']:7.4f} {level['sigma']:7.4f} {level['snr']:10.4g}")
    print(f"\n{path}  there and back, and every noise level")


def _invert(options: argparse.Namespace) -> None:
    (path,) = picture_paths(chosen(options.output, "back.png"), 1, PICTURES)
    steps = options.num_inference_steps
    Settings(options.prompt, num_inference_steps=steps, guidance_scale=options.guidance_scale)
    keep = max(1, steps // 2) if options.keep is None else options.keep
    if options.edit is not None and not 1 <= keep < steps:
        raise ValueError(f"--keep must be at least 1 and less than the {steps} steps, but is {keep}")
    traces = [] if options.trace is None else [trace_path(options.trace)]
    apart([path, *traces], [options.picture])
    check_model(options)
    check_pictures(options.picture)

    model = load_model(options)

    from sdkit import Trace, invert, round_trip, text_to_image
    from sdkit.measure import psnr
    from sdkit.pictures import save_picture, to_pixels

    with own_warnings():
        inversion = invert(options.picture, options.prompt, model=model, num_inference_steps=steps)
        back = Trace()
        text_to_image(
            options.prompt,
            latents=inversion.latents,
            model=model,
            scheduler="ddim",
            num_inference_steps=steps,
            guidance_scale=1,
            height=inversion.settings["height"],
            width=inversion.settings["width"],
            seed=0,
            hooks=[back],
        )
        if options.edit is not None:
            drawn = back.branch(keep, prompt=options.edit, guidance_scale=options.guidance_scale)
        else:
            drawn = back
        trip = round_trip(options.picture, model=model)
    save_picture(drawn.images[0], path, {**drawn.settings, "index": 0})
    near = psnr(to_pixels(trip.originals), to_pixels(back.images))[0]
    print(f"{path}  {(options.edit or options.prompt)!r} from the noise of {options.picture}")
    print(f"the way back has a PSNR of {near:.2f} dB to the picture; the autoencoder alone {trip.psnr[0]:.2f} dB")
    for place in traces:
        print(f"{inversion.save(place)}  the inversion, step by step")


def _interpolate(options: argparse.Namespace) -> None:
    path = film_path(chosen(options.output, "walk.gif"))
    sheet = [] if options.contact_sheet is None else picture_paths(options.contact_sheet, 1)
    names = ("prompt", "frames", "seed", "how", "even", "num_inference_steps", "guidance_scale")
    asked = {name: getattr(options, name) for name in names if hasattr(options, name)}
    Settings("", **{name: asked[name] for name in names[5:] if name in asked}, seed=asked.get("seed"))
    number("fps", options.fps, *FPS)
    whole("frames", asked.get("frames", 2), at_least=2)
    pick("way to interpolate", asked.get("how", "linear"), ("linear", "spherical"))
    ends: list[Any] = [options.start, options.end]
    apart([path, *sheet], ends if options.pictures else [])
    check_model(options)
    if options.pictures:
        check_pictures(*ends)
        ends = [Path(end).expanduser() for end in ends]
    elif "prompt" in asked:
        if not all(end.isdecimal() for end in ends):
            raise ValueError(f"with --prompt the ends are seeds, whole numbers, but are {ends[0]!r} and {ends[1]!r}")
        ends = [int(end) for end in ends]
    elif named := [end for end in ends if end.lower().endswith((*PICTURES, *MORE))]:
        raise ValueError(f"{named[0]!r} names a picture, but the ends are prompts; give --pictures if files are meant")

    model = load_model(options)

    from sdkit import contact_sheet, interpolate
    from sdkit.pictures import save_picture

    with own_warnings():
        walk = interpolate(*ends, **asked, model=model)
    walk.save(path, fps=options.fps)
    for place in sheet:
        save_picture(contact_sheet(walk.images), place)
    between = f"{len(walk.images)} frames between {options.start!r} and {options.end!r}"
    print(f"{path}  {between}; the longest step is {walk.evenness:.2f} times the mean")
    for place in sheet:
        print(f"{place}  all on one page")
