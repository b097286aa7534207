"""The one table of arguments: signatures, documentation and the command line say the same, in diffusers' own names."""

import argparse
import inspect
from dataclasses import fields

import diffusers
import pytest

import sdkit
from sdkit.cli import parser
from sdkit.inputs.arguments import Settings
from sdkit.inputs.signatures import ImageToImage, Stages, TextToImage

FUNCTIONS = {"text_to_image": TextToImage, "image_to_image": ImageToImage, "stages": Stages}
OURS = {  # names that diffusers does not have, or has elsewhere than in a pipeline's call
    "clip_skip_negative",
    "hooks",
    "long_prompt",
    "model",
    "progress",
    "scheduler",
    "seed",
}
PIPELINES = [
    diffusers.LatentConsistencyModelPipeline,
    *(
        getattr(diffusers, f"StableDiffusion{size}{control}{what}Pipeline")
        for size in ("", "XL")
        for control in ("", "ControlNet")
        for what in ("", "Img2Img", "Inpaint")
    ),
]


def defaults_of_diffusers(name):
    """The defaults that diffusers' pipelines give an argument."""
    found = [inspect.signature(kind.__call__).parameters.get(name) for kind in PIPELINES]
    return [parameter.default for parameter in found if parameter is not None]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_and_documentation_list_the_fields_of_the_table(name):
    function, table = getattr(sdkit, name), {one.name: one for one in fields(FUNCTIONS[name])}
    parameters = inspect.signature(function).parameters
    assert set(parameters) == set(table)
    text = " ".join(inspect.getdoc(function).split())
    for one in table.values():
        assert parameters[one.name].default == one.default
        assert f"{one.name}: {one.metadata['meaning']}." in text
    assert inspect.signature(function).return_annotation != inspect.Signature.empty


def test_every_name_is_one_of_diffusers():
    names = {one.name for table in FUNCTIONS.values() for one in fields(table)} | {one.name for one in fields(Settings)}
    assert {name for name in names if not defaults_of_diffusers(name)} == OURS


@pytest.mark.parametrize("name", sorted({one.name for one in fields(Settings)} - OURS))
def test_a_default_is_that_of_a_pipeline_or_left_to_the_model(name):
    (default,) = (one.default for one in fields(Settings) if one.name == name)
    assert default in (None, "") or default in defaults_of_diffusers(name)


def test_the_command_line_has_an_option_for_every_setting_with_the_same_words():
    (commands,) = (one for one in parser()._actions if isinstance(one, argparse._SubParsersAction))
    options = {one.dest: one for one in commands.choices["generate"]._actions}
    for one in fields(Settings):
        help_text = " ".join(options[one.name].help.replace("%%", "%").split())
        assert one.name == "prompt" or help_text.startswith(one.metadata["meaning"])


def test_an_argument_that_there_is_not_gets_the_nearest_one():
    with pytest.raises(TypeError, match=r"no argument 'sed' here; did you mean 'seed'\?"):
        sdkit.text_to_image("a star", sed=7)
    with pytest.raises(TypeError, match=r"no argument 'strength' here; sdkit\.image_to_image takes it"):
        sdkit.text_to_image("a star", strength=0.5)
    with pytest.raises(TypeError, match="image_to_image needs the picture to start from"):
        sdkit.image_to_image()
