"""The commands that make pictures: `sdkit generate` and `sdkit rerun`."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdkit.cli.shared import (
    add_arguments,
    add_model,
    busy,
    check_model,
    check_pictures,
    load_model,
    own_warnings,
    settings_of,
)
from sdkit.inputs import paths
from sdkit.inputs.arguments import GIVEN, FromPicture, Settings
from sdkit.inputs.checks import pick
from sdkit.inputs.signatures import Stages
from sdkit.model.schedulers import SCHEDULERS

GROUPS = {  # of the options, as --help has them
    "what to draw": ("negative_prompt", "height", "width", "num_images_per_prompt", "seed"),
    "a picture to start from": ("image", "mask_image", "strength", "padding_mask_crop", "denoising_start"),
    "how to draw it": (
        *("num_inference_steps", "guidance_scale", "guidance_rescale", "eta", "timesteps", "sigmas"),
        *("denoising_end", "original_inference_steps"),
    ),
    "how the words are read": ("long_prompt", "clip_skip", "clip_skip_negative"),
    "for Stable Diffusion XL": (
        *("prompt_2", "negative_prompt_2", "original_size", "crops_coords_top_left", "target_size"),
        *("negative_original_size", "negative_crops_coords_top_left", "negative_target_size"),
        *("aesthetic_score", "negative_aesthetic_score"),
    ),
    "for a ControlNet": (
        *("control_image", "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"),
        "guess_mode",
    ),
    "for an IP-Adapter": ("ip_adapter_image",),
}


def add_generate(generate: argparse.ArgumentParser) -> None:
    """The options of `sdkit generate`."""
    generate.description = (
        "Generate pictures from words, or from a picture and words. Options are named as in diffusers."
    )
    generate.epilog = 'example: sdkit generate "a red star on a blue background" --seed 7 -o star.png'
    generate.argument_default = argparse.SUPPRESS  # what is not given is left to the functions' own defaults
    generate.add_argument("prompt", nargs="+", help="what to draw; several prompts make several pictures")
    add = generate.add_argument_group("files").add_argument
    add(
        *("-o", "--output"),
        default=None,
        metavar="FILE",
        help="PNG, or JPEG or WebP, to write, numbered if several (default: out.png, or a name that is not taken)",
    )
    add("--contact-sheet", default=None, metavar="FILE", help="also write all pictures on one page, as PNG")
    add("--report", default=None, metavar="FILE", help="also write a page (.html) for each that shows every step")
    add("--json", action="store_true", default=False, help="print what was made as JSON")
    for title, names in GROUPS.items():
        group = generate.add_argument_group(title)
        add_arguments(group, Stages, names)
        if "num_inference_steps" in names:
            group.add_argument(
                "--scheduler", metavar="NAME", help=f"one of {', '.join(SCHEDULERS)} (default: the model's own)"
            )
    add_model(generate)
    generate.set_defaults(do=_generate)


def add_rerun(again: argparse.ArgumentParser) -> None:
    """The options of `sdkit rerun`."""
    again.description = "Generate a picture that sdkit saved again, and say what differs if anything does."
    again.add_argument("png", metavar="picture", help="a PNG, JPEG or WebP that sdkit saved")
    again.add_argument(
        "-o", "--output", metavar="FILE", help="picture to write (default: again.png, or a name that is not taken)"
    )
    again.add_argument("--image", metavar="FILE", help="the picture that it started from, if it started from one")
    again.add_argument(
        "--mask-image", metavar="FILE", help="the mask under which it was painted anew, if there was one"
    )
    again.add_argument("--control-image", metavar="FILE", help="the picture that its ControlNet went by")
    again.add_argument("--ip-adapter-image", metavar="FILE", help="the picture that its IP-Adapter went by")
    add_model(again, default="what the picture names")
    again.set_defaults(do=_rerun)


def _rerun(options: argparse.Namespace) -> None:
    (path,) = paths.picture_paths(paths.chosen(options.output, "again.png"), 1, paths.PICTURES)
    given = [picture for name in GIVEN if (picture := getattr(options, name)) is not None]
    paths.apart([path], [options.png], "the picture to make again")
    paths.apart([path], given)
    check_model(options)
    check_pictures(*given)

    from sdkit.files import settings_text

    settings_text(options.png)

    with own_warnings():
        with busy("getting ready"):
            from sdkit import read_settings, rerun
            from sdkit.pictures import same_pixels

        model = options.model
        named = read_settings(options.png).get("model")
        if model is not None or named == paths.TINY:  # otherwise `rerun` says what to do
            model = load_model(options)
        result = rerun(
            options.png,
            image=options.image,
            mask_image=options.mask_image,
            control_image=options.control_image,
            ip_adapter_image=options.ip_adapter_image,
            model=model,
        )
    result.save(path)
    if path.read_bytes() == Path(options.png).expanduser().read_bytes():
        how = "the same bytes as"
    else:
        how = "the same pixels as" if same_pixels(options.png, result.image) else "not the same pixels as"
    print(f"{path}  {how} {options.png}")


def _generate(options: argparse.Namespace) -> None:
    asked = settings_of(options)
    asked["prompt"] = options.prompt[0] if len(options.prompt) == 1 else options.prompt
    scheduler = getattr(options, "scheduler", None)
    # Everything that can be known to be wrong is said here, before the seconds that torch takes to import.
    many = Settings(**asked).pictures
    output = paths.chosen(options.output, "out.png", many)
    made = paths.picture_paths(output, many, paths.PICTURES)
    sheet = [] if options.contact_sheet is None else paths.picture_paths(options.contact_sheet, 1)
    pages = [] if options.report is None else paths.numbered(paths.report_path(options.report), many)
    if scheduler is not None:
        pick("scheduler", scheduler, SCHEDULERS)
    pictures = {name: getattr(options, name) for name in GIVEN if hasattr(options, name)}
    for name in ("mask_image", *(one.name for one in fields(FromPicture))):
        if "image" not in pictures and hasattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} was given without --image, the picture that it is about")
    paths.apart([*made, *sheet, *pages], pictures.values())
    check_model(options)
    check_pictures(*pictures.values())

    model = load_model(options)

    from sdkit import image_to_image, text_to_image
    from sdkit.pictures import contact_sheet, save_picture

    with own_warnings():
        hooks: list[Any] = []
        if pages:
            from sdkit import AttentionMaps, Trace

            hooks = [Trace(), AttentionMaps()]
        make = image_to_image if "image" in pictures else text_to_image
        result = make(**asked, **pictures, model=model, scheduler=scheduler, hooks=hooks)
    result.save(output)
    for place in sheet:
        save_picture(contact_sheet(result.images), place)
    for index, page in enumerate(pages):
        trace, maps = hooks
        trace.report(page, maps=maps, picture=index)
    _report(options, result, made, pages)


def _report(options: argparse.Namespace, result: Any, made: list[Path], pages: list[Path]) -> None:
    each = result.settings["num_images_per_prompt"]
    written = [
        {"path": str(path), "prompt": options.prompt[i // each], "seed": seed}
        for i, (path, seed) in enumerate(zip(made, result.seeds, strict=True))
    ]
    if options.json:
        said = {"pictures": written, "contact_sheet": options.contact_sheet, "reports": [str(page) for page in pages]}
        print(json.dumps({**said, "settings": result.settings}, indent=2))
        return
    for picture in written:
        print(f"{picture['path']}  {picture['prompt']!r}, seed {picture['seed']}")
    if options.contact_sheet is not None:
        print(f"{options.contact_sheet}  all on one page")
    for page in pages:
        print(f"{page}  every step, to be opened in a browser")
