"""The commands that make pictures: `sdkit generate` and `sdkit rerun`."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdkit.cli.shared import Commands, add_model, check_model, check_picture, progress
from sdkit.schedulers import SCHEDULERS
from sdkit.settings import STRENGTH, Settings, output_paths, pick, report_path

# What only some models take: type, letter and help of each.
_FURTHER: dict[str, tuple[type, str, str]] = {
    "denoising-start": (float, "S", "0 to 1, share of the noise schedule that --image has behind it"),
    "denoising-end": (float, "S", "0 to 1, share of the noise schedule after which to stop"),
    "prompt-2": (str, "TEXT", "for SDXL's second text encoder (default: the prompt)"),
    "negative-prompt-2": (str, "TEXT", "the same for the negative prompt"),
    "original-size": (int, "", "size that SDXL is told the picture once had (default: its own)"),
    "crops-coords-top-left": (int, "", "where SDXL is told it was cropped (default: 0 0)"),
    "target-size": (int, "", "size that SDXL is told it is to have (default: its own)"),
    "negative-original-size": (int, "", "the same to steer away from"),
    "negative-crops-coords-top-left": (int, "", "the same to steer away from"),
    "negative-target-size": (int, "", "the same to steer away from"),
    "aesthetic-score": (float, "A", "what SDXL's refiner is told (default: 6)"),
    "negative-aesthetic-score": (float, "A", "the same to steer away from (default: 2.5)"),
    "controlnet-conditioning-scale": (float, "S", "how strongly the ControlNet steers (default: 1)"),
    "control-guidance-start": (float, "S", "0 to 1, share of the steps before it steers (default: 0)"),
    "control-guidance-end": (float, "S", "0 to 1, share of the steps after which it does not (default: 1)"),
}


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
    add("--image", metavar="FILE", help="a picture to start from instead of noise alone")
    add("--strength", type=float, metavar="S", help=f"0 to 1, how far to noise that picture (default: {STRENGTH})")
    add("--negative-prompt", metavar="TEXT", help="what to steer away from")
    add("--seed", type=int, metavar="N", help="start of the noise; several pictures count up from it")
    add("--num-images-per-prompt", type=int, metavar="N", help="pictures of each prompt (default: 1)")
    add("--num-inference-steps", type=int, metavar="N", help="denoising steps (default: the model's own)")
    add("--guidance-scale", type=float, metavar="G", help="how strictly to follow the words (default: the model's own)")
    add("--guidance-rescale", type=float, metavar="R", help="0 to 1, against overexposure (default: 0)")
    add("--eta", type=float, help="0 to 1, noise put back in each step of ddim (default: 0)")
    add("--height", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's own)")
    add("--width", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's own)")
    add("--scheduler", metavar="NAME", help=f"one of {', '.join(SCHEDULERS)} (default: the model's own)")
    add("--timesteps", type=int, nargs="+", metavar="T", help="falling timesteps instead of the scheduler's own")
    add("--sigmas", type=float, nargs="+", metavar="S", help="falling noise levels instead of the scheduler's own")
    add("--clip-skip", type=int, metavar="N", help="layers of the text encoder left out at its end (default: none)")
    add(
        "--clip-skip-negative", action=argparse.BooleanOptionalAction, help="for the negative prompt too (default: yes)"
    )
    add("--long-prompt", metavar="HOW", help="cut (default) or split, for prompts beyond the text encoder's window")
    add("--mask-image", metavar="FILE", help="white where to paint the picture of --image anew")
    add("--control-image", metavar="FILE", help="a picture for the ControlNet that the model carries")
    for name, (kind, letter, told) in _FURTHER.items():
        size = {"nargs": 2, "metavar": ("H", "W")} if kind is int else {"metavar": letter}
        add(f"--{name}", type=kind, help=told, **size)
    add("--guess-mode", action="store_true", help="the ControlNet steers the conditional half alone")
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


def _rerun(given: argparse.Namespace) -> None:
    (path,) = output_paths(given.output, 1)
    check_picture(given.png)
    check_model(given)

    from sdkit import load, read_settings, rerun

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        warnings.filterwarnings("always", message=".*may come out otherwise")
        warnings.showwarning = lambda message, *_args, **_rest: print(f"sdkit: {message}", file=sys.stderr)
        model = given.model
        if given.device or given.dtype:  # otherwise `rerun` loads it, once it has seen that all pictures are there
            model = load(model or read_settings(given.png)["model"], device=given.device, dtype=given.dtype)
        result = rerun(
            given.png,
            image=given.image,
            mask_image=given.mask_image,
            control_image=given.control_image,
            model=model,
        )
    result.save(path)
    same = path.read_bytes() == Path(given.png).expanduser().read_bytes()
    print(f"{path}  {'the same bytes as' if same else 'not the same bytes as'} {given.png}")


def _generate(given: argparse.Namespace) -> None:
    asked = {field.name: getattr(given, field.name) for field in fields(Settings) if hasattr(given, field.name)}
    asked["prompt"] = given.prompt[0] if len(given.prompt) == 1 else given.prompt
    scheduler = getattr(given, "scheduler", None)
    image = getattr(given, "image", None)
    # Everything that can be known to be wrong is said here, before the seconds that torch takes to import.
    paths = output_paths(given.output, Settings(**asked).pictures)
    sheet = None if given.contact_sheet is None else output_paths(given.contact_sheet, 1)[0]
    if sheet in paths:
        raise ValueError(f"the contact sheet would overwrite the picture {str(sheet)!r}; give it another name")
    if given.report is not None:
        report_path(given.report)
    if scheduler is not None:
        pick("scheduler", scheduler, SCHEDULERS)
    pictures = {name: getattr(given, name) for name in ("mask_image", "control_image") if hasattr(given, name)}
    for picture in (image, *pictures.values()):
        if picture is not None:
            check_picture(picture)
    if image is None and "strength" in asked:
        raise ValueError("--strength was given without --image; it says how far to noise a picture")
    if image is None and "mask_image" in pictures:
        raise ValueError("--mask-image was given without --image; it says where to paint a picture anew")
    check_model(given)

    from sdkit import AttentionMaps, Trace, contact_sheet, image_to_image, load, text_to_image

    model = load(given.model, device=given.device, dtype=given.dtype)
    custom = asked.get("timesteps") or asked.get("sigmas", [])[:-1]
    steps = len(custom) or asked.get("num_inference_steps", model.num_inference_steps)
    if image is not None:
        steps = int(steps * asked.get("strength", STRENGTH))
    with progress(steps) as advance:
        trace, maps = Trace(), AttentionMaps()
        hooks = [advance] if given.report is None else [advance, trace, maps]
        if image is None:
            result = text_to_image(**asked, **pictures, model=model, scheduler=scheduler, hooks=hooks)
        else:
            result = image_to_image(image, **asked, **pictures, model=model, scheduler=scheduler, hooks=hooks)
    result.save(given.output)
    if sheet is not None:
        contact_sheet(result.images).save(sheet)
    if given.report is not None:
        trace.report(given.report, maps=maps)
    _report(given, result, paths)


def _report(given: argparse.Namespace, result: Any, paths: list[Path]) -> None:
    each = result.settings["num_images_per_prompt"]
    made = [
        {"path": str(path), "prompt": given.prompt[i // each], "seed": seed}
        for i, (path, seed) in enumerate(zip(paths, result.seeds, strict=True))
    ]
    if given.json:
        print(
            json.dumps({"pictures": made, "contact_sheet": given.contact_sheet, "settings": result.settings}, indent=2)
        )
        return
    for picture in made:
        print(f"{picture['path']}  {picture['prompt']!r}, seed {picture['seed']}")
    if given.contact_sheet is not None:
        print(f"{given.contact_sheet}  all on one page")
    if given.report is not None:
        print(f"{given.report}  every step, to be opened in a browser")
