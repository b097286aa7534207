"""The commands that make pictures: `sdkit generate` and `sdkit rerun`."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdkit.cli.shared import (
    Commands,
    add_arguments,
    add_model,
    check_model,
    check_picture,
    own_warnings,
    progress,
    settings_of,
)
from sdkit.inputs.arguments import STRENGTH, Settings
from sdkit.inputs.checks import pick
from sdkit.inputs.paths import picture_paths, report_path
from sdkit.inputs.signatures import Stages
from sdkit.model.schedulers import SCHEDULERS

PICTURES = ("image", "mask_image", "control_image")  # options that are files


def add_to(commands: Commands) -> None:
    """Add the commands to the command line."""
    generate = commands.add_parser(
        "generate",
        help="generate pictures from words, or from a picture and words",
        description="Generate pictures from words, or from a picture and words. Options are named as in diffusers.",
        epilog='example: sdkit generate "a red star on a blue background" --seed 7 -o star.png',
        argument_default=argparse.SUPPRESS,  # what is not given is left to the functions' own defaults
    )
    add = generate.add_argument
    add("prompt", nargs="+", help="what to draw; several prompts make several pictures")
    add(
        "-o", "--output", default="out.png", metavar="FILE", help="PNG to write, numbered if several (default: out.png)"
    )
    add("--scheduler", metavar="NAME", help=f"one of {', '.join(SCHEDULERS)} (default: the model's own)")
    add_arguments(generate, Stages, PICTURES)
    add_arguments(generate, Settings, {one.name for one in fields(Settings)} - {"prompt"})
    add_model(generate)
    add("--contact-sheet", default=None, metavar="FILE", help="also write all pictures on one page, as PNG")
    add("--report", default=None, metavar="FILE", help="also write a page (.html) that shows every step of the run")
    add("--json", action="store_true", default=False, help="print what was made as JSON")
    generate.set_defaults(do=_generate)
    again = commands.add_parser(
        "rerun",
        help="generate the picture of a PNG again",
        description="Generate the picture of a PNG that sdkit saved again, and say what differs if anything does.",
    )
    again.add_argument("png", help="a PNG that sdkit saved")
    again.add_argument("-o", "--output", default="again.png", metavar="FILE", help="PNG to write (default: again.png)")
    again.add_argument("--image", metavar="FILE", help="the picture that it started from, if it started from one")
    again.add_argument(
        "--mask-image", metavar="FILE", help="the mask under which it was painted anew, if there was one"
    )
    again.add_argument("--control-image", metavar="FILE", help="the picture that its ControlNet went by")
    add_model(again, default="what the PNG names")
    again.set_defaults(do=_rerun)


def _rerun(options: argparse.Namespace) -> None:
    (path,) = picture_paths(options.output, 1)
    check_picture(options.png)
    if path.resolve() == Path(options.png).expanduser().resolve():
        raise ValueError(f"{options.output!r} is the picture to make again; give the new one another name with -o")
    check_model(options)

    from sdkit import load, read_settings, rerun
    from sdkit.model.loading import TINY

    with own_warnings():
        model = options.model
        if model is not None or read_settings(options.png).get("model") == TINY:  # otherwise `rerun` says what to do
            model = load(model, device=options.device, dtype=options.dtype)
        result = rerun(
            options.png,
            image=options.image,
            mask_image=options.mask_image,
            control_image=options.control_image,
            model=model,
        )
    result.save(path)
    same = path.read_bytes() == Path(options.png).expanduser().read_bytes()
    print(f"{path}  {'the same bytes as' if same else 'not the same bytes as'} {options.png}")


def _generate(options: argparse.Namespace) -> None:
    asked = settings_of(options)
    asked["prompt"] = options.prompt[0] if len(options.prompt) == 1 else options.prompt
    scheduler = getattr(options, "scheduler", None)
    # Everything that can be known to be wrong is said here, before the seconds that torch takes to import.
    paths = picture_paths(options.output, Settings(**asked).pictures)
    sheet = None if options.contact_sheet is None else picture_paths(options.contact_sheet, 1)[0]
    if sheet in paths:
        raise ValueError(f"the contact sheet would overwrite the picture {str(sheet)!r}; give it another name")
    if options.report is not None:
        report_path(options.report)
    if scheduler is not None:
        pick("scheduler", scheduler, SCHEDULERS)
    pictures = {name: getattr(options, name) for name in PICTURES if hasattr(options, name)}
    for picture in pictures.values():
        check_picture(picture)
    if "image" not in pictures and "strength" in asked:
        raise ValueError("--strength was given without --image; it says how far to noise a picture")
    if "image" not in pictures and "mask_image" in pictures:
        raise ValueError("--mask-image was given without --image; it says where to paint a picture anew")
    check_model(options)

    from sdkit import AttentionMaps, Trace, contact_sheet, image_to_image, load, text_to_image
    from sdkit.pictures import save_png

    model = load(options.model, device=options.device, dtype=options.dtype)
    custom = asked.get("timesteps") or asked.get("sigmas", [])[:-1]
    steps = len(custom) or asked.get("num_inference_steps", model.num_inference_steps)
    if "image" in pictures:
        steps = int(steps * asked.get("strength", STRENGTH))
    with progress(steps) as advance:
        trace, maps = Trace(), AttentionMaps()
        hooks = [advance] if options.report is None else [advance, trace, maps]
        make = image_to_image if "image" in pictures else text_to_image
        result = make(**asked, **pictures, model=model, scheduler=scheduler, hooks=hooks)
    result.save(options.output)
    if sheet is not None:
        save_png(contact_sheet(result.images), sheet)
    if options.report is not None:
        trace.report(options.report, maps=maps)
    _report(options, result, paths)


def _report(options: argparse.Namespace, result: Any, paths: list[Path]) -> None:
    each = result.settings["num_images_per_prompt"]
    written = [
        {"path": str(path), "prompt": options.prompt[i // each], "seed": seed}
        for i, (path, seed) in enumerate(zip(paths, result.seeds, strict=True))
    ]
    if options.json:
        print(
            json.dumps(
                {"pictures": written, "contact_sheet": options.contact_sheet, "settings": result.settings}, indent=2
            )
        )
        return
    for picture in written:
        print(f"{picture['path']}  {picture['prompt']!r}, seed {picture['seed']}")
    if options.contact_sheet is not None:
        print(f"{options.contact_sheet}  all on one page")
    if options.report is not None:
        print(f"{options.report}  every step, to be opened in a browser")
