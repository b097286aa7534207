"""The command that says where time and memory go: `sdkit profile`."""

from __future__ import annotations

import argparse

from sdkit.cli.shared import add_arguments, add_model, check_model, load_model, own_warnings, settings_of
from sdkit.inputs.arguments import Settings
from sdkit.inputs.checks import installed
from sdkit.inputs.paths import picture_paths
from sdkit.inputs.signatures import Stages


def add_profile(profile: argparse.ArgumentParser) -> None:
    """The options of `sdkit profile`."""
    profile.description = (
        "Make a picture twice, to warm up and to measure, and print what each stage of the second run took, and how "
        "far memory rose in the first."
    )
    profile.epilog = "example: sdkit profile --num-inference-steps 10 -o profile.png"
    profile.argument_default = argparse.SUPPRESS  # what is not given is left to the function's own defaults
    words = "a red star on a blue background"
    profile.add_argument("prompt", nargs="?", default=words, help=f"what to draw (default: {words})")
    meaning = 'also draw it, as PNG, which needs the extra "plots"'
    profile.add_argument("-o", "--output", default=None, metavar="FILE", help=meaning)
    names = ("height", "width", "num_images_per_prompt", "num_inference_steps", "guidance_scale")
    add_arguments(profile, Stages, names)
    add_model(profile)
    profile.set_defaults(do=_profile)


def _profile(options: argparse.Namespace) -> None:
    asked = settings_of(options)
    Settings(**asked)
    paths = [] if options.output is None else picture_paths(options.output, 1)
    if paths:
        installed("matplotlib", "figures need matplotlib", "plots")
    check_model(options)

    model = load_model(options)

    from dataclasses import replace

    from sdkit import profile

    with own_warnings():
        first = profile(**asked, seed=0, model=model)
        second = profile(**asked, seed=0, model=model)
    rose = {one.stage: one.memory for one in first.spent}
    measured = replace(second, spent=[replace(one, memory=rose[one.stage]) for one in second.spent])
    print(measured)
    for path in paths:
        measured.figure().savefig(path)
        print(f"{path}  the same as a figure")
