"""Odd arguments, one at a time, to all that is public and has no test of its own for them: each is taken, or refused in
one line that sdkit itself says."""

import inspect
import linecache
import math
import signal
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

import sdkit
from sdkit import AttentionMaps, Event, Latents, Stage, Trace, hooks, plots

PROMPT = "a red star"
KEPT = ["tokens", "latent", "noise", "denoised", "image", "attention", "self_attention"]
SECONDS = 20  # until a call counts as one that gives no answer
ODD = {
    "None": None,
    "True": True,
    "-1": -1,
    "0": 0,
    "10**9": 10**9,
    "0.5": 0.5,
    "nan": math.nan,
    "inf": math.inf,
    "''": "",
    "'x'": "x",
    "b'x'": b"x",
    "[]": [],
    "['x']": ["x"],
    "[None]": [None],
    "{}": {},
    "object()": object(),
    "a function": lambda *_, **__: None,
    "an array": np.zeros(3),
    "a tensor of odd shape": torch.zeros(2, 3, 5),
    "a tensor of NaN": torch.full((1, 4, 8, 8), math.nan),
    "a class": int,
    "a path": Path("/nonexistent"),
    "an image": None,  # put in its place by `made`
}
ELSEWHERE = {  # of sdkit's names, with the reason
    "SCHEDULERS": "no function",
    "app": "it serves; tests/live/test_server.py",
    "Batch": "what batch returns",
    "Description": "what describe returns",
    "Edit": "what an event holds",
    "Event": "what a hook is given",
    "Hook": "a type",
    "Model": "what load returns",
    "Profile": "what profile returns",
    "Result": "what text_to_image returns",
    "RoundTrip": "what round_trip returns",
    "Stage": "an enumeration",
    "batch": "tests/many/test_jobs.py",
    "contact_sheet": "tests/test_pictures.py",
    "hooks": "a module, below",
    "image_to_image": "tests/tasks/test_generate.py",
    "load": "tests/model/test_loading.py",
    "plots": "a module, below",
    "profile": "tests/tasks/test_profile.py",
    "read_settings": "tests/tasks/test_generate.py",
    "rerun": "tests/tasks/test_generate.py",
    "stages": "tests/tasks/test_generate.py",
    "text_to_image": "tests/tasks/test_generate.py",
}


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """What valid calls are made of, and traces and maps that lack something."""
    here = SimpleNamespace(model=tiny, folder=tmp_path_factory.mktemp("odd"))
    here.trace, here.maps = draw(hooks=[trace := Trace()], into=trace), AttentionMaps(layers=True, heads=True)
    here.inner = draw(hooks=[inner := Trace(KEPT), here.maps], into=inner)
    here.image, here.latents = here.trace.images[0], sdkit.encode(here.trace.images[0])
    here.plain = draw(hooks=[plain := Trace(KEPT)], into=plain, guidance_scale=1)
    here.blocks = draw(hooks=[blocks := Trace(["block"])], into=blocks)
    here.pair = draw([PROMPT, "a blue cat"], hooks=[pair := Trace(KEPT)], into=pair)
    here.empty_maps, here.star = AttentionMaps(), AttentionMaps(["star"])
    here.wordless, here.joined = AttentionMaps(), AttentionMaps()
    draw(hooks=[here.star, here.joined])
    draw("", hooks=[here.wordless])
    here.walk = sdkit.diffuse(here.image, 2)
    here.rgb, here.reading = sdkit.latent_to_rgb(tiny), sdkit.read_prompt(PROMPT)
    here.frames = sdkit.interpolate(1, 2, prompt=PROMPT, frames=2, num_inference_steps=1)
    here.file = here.trace.save(here.folder / "trace.safetensors")
    here.traces = {
        "a trace of no run": Trace(),
        "a trace of tokens": draw(hooks=[tokens := Trace(["tokens"])], into=tokens),
        "a trace of latents": draw(hooks=[latent := Trace(["latent"])], into=latent),
        "a trace of NaN": spoilt(draw(hooks=[broken := Trace()], into=broken)),
        "a trace of two pictures": here.pair,
        "a trace without guidance": here.plain,
        "a forward walk": here.walk,
        "a longer trace": draw(hooks=[longer := Trace(KEPT)], into=longer, num_inference_steps=3),
        "a larger trace": draw(hooks=[large := Trace(KEPT)], into=large, height=128, width=64),
    }
    here.all_maps = {
        "maps of no run": here.empty_maps,
        "maps of one word": here.star,
        "maps of no word": here.wordless,
        "maps that are joined": here.joined,
    }
    return here


def draw(prompt=PROMPT, *, into=None, **options):
    """A short and small run of the embedded model, drawn for what it leaves in a trace."""
    defaults = {"seed": 7, "num_inference_steps": 2, "height": 64, "width": 64}
    sdkit.text_to_image(prompt, **{**defaults, **options})
    return into


def spoilt(trace):
    for record in trace.records:
        if record.value.is_floating_point():
            record.source = torch.full_like(record.value, math.nan)
    return trace


def hooked(make, **run):
    """A hook at work in a run, by the arguments of the function that makes it."""
    return lambda **arguments: draw(hooks=[make(**arguments)], **run)


def by_name(function):
    """A function that can be called by the name of its first argument too, where that is a list of words."""
    first, *_ = inspect.signature(function).parameters.values() or [None]
    if first is None or first.kind is not inspect.Parameter.VAR_POSITIONAL:
        return function
    return lambda **given: function(given.pop(first.name), **given)


def methods(m):
    """Valid arguments of each published method."""
    half, latents = torch.ones(8, 8), torch.zeros(4, 8, 8)
    return {
        "ablate": {"layer": "mid_block", "head": 0},
        "apg": {"eta": 0.0, "norm": 15.0, "momentum": -0.5},
        "attend_and_excite": {"words": "star", "scale": 20.0, "until": 0.5, "thresholds": None},
        "autoguidance": {"model": sdkit.load(), "scale": 2.0},
        "cads": {"scale": 0.25, "low": 0.6, "high": 0.9, "mix": 1.0},
        "attention_entropy": {"show": print_nothing, "stage": "attention"},
        "cfg_plus_plus": {"scale": 0.6},
        "cfg_zero": {"zero_steps": 0},
        "compose": {"prompts": "a cat", "weights": [1.0]},
        "deep_cache": {"interval": 3},
        "dps": {"measure": torch.sum, "seen": half, "scale": 1.0, "decoded": False},
        "edit_friendly": {"latents": latents, "noises": [], "seed": 1},
        "free_u": {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6},
        "freedom": {"loss": torch.sum, "scale": 0.2, "decoded": False},
        "from_guider": {"guider": diffusers.guiders.ClassifierFreeGuidance()},
        "h_space": {"direction": half, "scale": 1.0},
        "fit_probe": {"traces": [m.blocks], "labels": torch.tensor([0]), "layer": "mid_block"},
        "ledits": {"prompts": "a cat", "scale": 5.0, "threshold": 0.9, "warmup": 1},
        "layout": {"boxes": {"star": (0.0, 0.0, 0.5, 0.5)}, "scale": 30.0, "until": 0.2, "repeats": 5},
        "masactrl": {"first_step": 4, "layer": "up_blocks"},
        "multidiffusion": {"window": 8, "stride": 4},
        "null_text": {"trace": m.trace, "steps": 10, "rate": 0.05},
        "pag": {"scale": 3.0, "layer": "mid_block"},
        "preview_halves": {"show": print_nothing, "every": 1},
        "probe": {"weights": {0: torch.zeros(5, 2)}, "show": print_nothing, "layer": "mid_block"},
        "sparse_autoencoder": {"autoencoder": torch.nn, "edit": print_nothing, "layer": "mid_block"},
        "plug_and_play": {"trace": m.trace, "until": 0.8, "block": "up_blocks.1"},
        "repaint": {"mask": half, "latents": latents, "seed": 1, "jump": 5, "times": 3},
        "restart": {"first": 1, "last": 4, "seed": 1, "times": 3},
        "sag": {"scale": 0.75},
        "seg": {"scale": 3.0, "sigma": 1.0, "layer": "mid_block"},
        "sega": {"prompts": "a cat", "scale": 5.0, "threshold": 0.9, "warmup": 1, "momentum": 0.1, "beta": 0.4},
        "self_guidance": {"word": "star", "scale": 0.1, "centre": (0.5, 0.5), "size": None, "until": 0.5},
        "style_aligned": {},
        "t_gate": {"gate": 3},
    }


def table(m):
    """Of each callable: how it is called, valid arguments, and odd ones of its own."""
    traces, maps = {"trace": m.traces}, {"maps": m.all_maps}
    steps = {"step": {"99": 99, "[0]": [0], "'0'": "0"}}
    words = {"words": {"a string": "star", "a number": 3, "an unknown word": ["moon"], "numbers": [1]}}
    look = {"trace": m.trace, "picture": 0, "dark": False}
    heat = {"word": "star", "step": 1, "picture": 0, "negative": False, "layer": None, "head": 0, "resolution": None}
    odd_heat = {
        "word": {"no such word": "moon", "a place too far": 77, "a place before": -99},
        "layer": {"no such layer": "up_blocks.9"},
        "head": {"99": 99},
        "resolution": {"no such size": (3, 3), "one number": (8,), "words": ("a", "b")},
        **steps,
    }
    report = {"path": "page.html", "maps": m.maps, "other": m.pair, "picture": 0}
    walk = {"frames": 2, "how": None, "even": False, "num_inference_steps": 1}
    return {
        # published methods, which are made and not run: their runs are in tests/hooks
        **{f"hooks.{name}": (by_name(getattr(hooks, name)), valid, {}) for name, valid in methods(m).items()},
        # hooks
        "hooks.blend": (
            hooked(lambda mask, latents: hooks.blend(mask, latents)),
            {"mask": torch.ones(8, 8), "latents": torch.zeros(4, 8, 8)},
            {"mask": {"another size": torch.ones(9, 9)}, "latents": {"another size": torch.zeros(4, 9, 9)}},
        ),
        "hooks.dynamic_threshold": (hooked(hooks.dynamic_threshold), {"percentile": 0.9, "limit": 2.0}, {}),
        "hooks.guidance_interval": (hooked(hooks.guidance_interval), {"low": 10, "high": 900}, {}),
        "hooks.hear_only": (hooked(lambda parts: hooks.hear_only(parts)), {"parts": "words"}, {}),
        "hooks.inject_noise": (
            hooked(hooks.inject_noise), {"strength": 0.1, "seed": 1, "steps": range(1)}, {"seed": {"2**64": 2**64}}
        ),
        "hooks.keep_layout": (hooked(hooks.keep_layout), {"trace": m.inner, "until": 0.8}, traces),
        "hooks.keep_self_attention": (hooked(hooks.keep_self_attention), {"trace": m.inner, "until": 0.8}, traces),
        "hooks.keep_layout on two pictures": (
            hooked(hooks.keep_layout, prompt=["a star", "a cat"]), {"trace": m.pair}, {"trace": {"of one": m.inner}}
        ),
        "hooks.keep_self_attention on two pictures": (
            hooked(hooks.keep_self_attention, prompt=["a star", "a cat"]),
            {"trace": m.pair}, {"trace": {"of one": m.inner, "of one without guidance": m.plain}},
        ),
        "hooks.local_blend": (
            hooked(hooks.local_blend),
            {"trace": m.trace, "maps": m.maps, "word": "star", "threshold": 0.3}, {**traces, **maps},
        ),
        "hooks.mix_words": (
            hooked(hooks.mix_words), {"word": "red", "other": "blue", "share": 0.5}, {"word": {"no such": "moon"}}
        ),
        "hooks.paint_with_words": (
            hooked(hooks.paint_with_words),
            {"word": "star", "where": torch.ones(4, 4), "strength": 2.0, "until": 0.8},
            {"word": {"no such": "moon"}, "where": {"beyond 1": torch.full((4, 4), 2.0), "flat": torch.ones(4)}},
        ),
        "hooks.preview": (hooked(hooks.preview), {"show": print_nothing, "every": 1}, {}),
        "hooks.reweight": (hooked(hooks.reweight), {"word": "star", "factor": 2.0}, {"word": {"no such": "moon"}}),
        "hooks.steer": (
            hooked(hooks.steer), {"loss": lambda x0: x0.square().sum(), "scale": 1.0},
            {"loss": {
                "of no gradient": lambda x0: x0.detach().sum(),
                "not a scalar": lambda x0: x0,
                "of something else": lambda _: torch.ones((), requires_grad=True),
            }},
        ),
        "hooks.stop_after": (hooked(hooks.stop_after), {"step": 1}, steps),
        # figures
        "plots.channels": (
            plots.channels,
            {"source": m.trace, "step": 1, "picture": 0, "dark": False}, {"source": m.traces, **steps},
        ),
        "plots.compare": (
            plots.compare, {**look, "other": m.inner, "columns": 2}, {**traces, "other": m.traces}
        ),
        "plots.film_strip": (plots.film_strip, {**look, "columns": 2}, traces),
        "plots.guidance": (plots.guidance, {**look, "step": 1}, {**traces, **steps}),
        "plots.histograms": (plots.histograms, {**look, "columns": 2}, traces),
        "plots.journey": (
            plots.journey,
            {"forward": m.walk, "reverse": m.trace, "picture": 0, "columns": 2, "dark": False},
            {"forward": m.traces, "reverse": m.traces},
        ),
        "plots.noise_schedule": (plots.noise_schedule, {"trace": m.trace, "dark": False}, traces),
        "plots.trajectory": (
            lambda traces, **options: plots.trajectory(traces, **options),
            {"traces": m.trace, "picture": 0, "dark": False}, {"traces": m.traces},
        ),
        "plots.word_maps": (
            plots.word_maps,
            {**look, "maps": m.maps, "words": ["star"], "step": 1}, {**traces, **maps, **words, **steps}
        ),
        "plots.word_maps of all words": (plots.word_maps, {"trace": m.trace, "maps": m.maps}, {**traces, **maps}),
        "plots.words_over_time": (
            plots.words_over_time,
            {**look, "maps": m.maps, "words": ["star"], "columns": 2}, {**traces, **maps, **words},
        ),
        "plots.words_over_time of all words": (
            plots.words_over_time, {"trace": m.trace, "maps": m.maps, "columns": 2}, {**traces, **maps}
        ),
        "animate": (
            sdkit.animate,
            {"trace": m.trace, "path": "film.gif", "stage": "latent", "picture": 0, "fps": 8, "side": 64, "dark": True},
            {**traces, "path": {"mp4": "film.mp4", "a folder that is not there": "no/film.gif"}, "fps": {"1e-9": 1e-9},
             "stage": {"tokens": "tokens", "image": "image"}},
        ),
        # traces
        "Trace": (
            lambda **options: draw(hooks=[Trace(**options)]),
            {"stages": ["latent"], "every": 1, "dtype": "float16", "budget": "1MB"},
            {"stages": {"a string": "latent", "a stage": Stage.LATENT, "a tuple": ("latent", 3)},
             "dtype": {"int64": torch.int64, "float64": torch.float64}, "budget": {"'-1MB'": "-1MB", "small": 1}},
        ),
        "Trace[...]": (lambda stage: m.trace[stage], {"stage": "latent"}, {}),
        "Trace()": (lambda event: Trace()(event), {"event": Event(Stage.LATENT, torch.zeros(1, 4, 8, 8))}, {}),
        "Trace.record": (lambda event: Trace().record(event), {"event": Event(Stage.LATENT, torch.zeros(1))}, {}),
        "Trace.at": (
            lambda **options: m.trace.at(**options), {"step": 1, "layer": None},
            {**steps, "layer": {"no such layer": "mid_block"}},
        ),
        "Trace.branch": (
            lambda **options: m.trace.branch(**options),
            {"step": 1, "hooks": (), "model": m.model, "trust_model": False},
            {**steps, "hooks": {"a class": [Trace]}},
        ),
        "Trace.branch(changes)": (
            lambda **changes: m.trace.branch(1, **changes),
            {"prompt": "a cat", "negative_prompt": "red", "guidance_scale": 2.0, "guidance_rescale": 0.1},
            {"prompt": {"two": ["a", "b"]}, "negative_prompt": {"two": ["a", "b"]}},
        ),
        "Trace.compare": (lambda other: str(m.trace.compare(other)), {"other": m.inner}, {"other": m.traces}),
        "Trace.load": (Trace.load, {"path": m.file}, {"path": {"a folder": "."}}),
        "Trace.report": (lambda **options: m.trace.report(**options), report, {"other": m.traces, **maps}),
        "Trace.report of traces": (
            lambda trace: trace.report("page.html"), {"trace": m.trace}, traces,
        ),
        "Trace.save": (lambda path: m.trace.save(path), {"path": "trace.safetensors"}, {}),
        "Trace.save of traces": (lambda trace: trace.save("t.safetensors"), {"trace": m.trace}, traces),
        "Trace.summary of traces": (lambda trace: trace.summary(), {"trace": m.trace}, traces),
        "Trace._repr_html_ of traces": (
            lambda trace: trace._repr_html_(), {"trace": m.trace}, traces
        ),
        # attention
        "AttentionMaps": (
            lambda **options: looked_at(AttentionMaps(**options)),
            {"words": ["star"], "layers": True, "heads": True, "negative": True, "each_step": True, "budget": "1MB"},
            {"words": {"a string": "star", "a place too far": [10**9], "a place before": [-1], "a half": [0.5],
                       "no such word": ["moon"], "a truth": [True]},
             "layers": {"no such layer": ["x"], "a string": "mid_block"}},
        ),
        "AttentionMaps()": (lambda event: AttentionMaps()(event), {"event": Event(Stage.LATENT, torch.zeros(1))}, {}),
        "AttentionMaps.heat": (lambda **options: m.maps.heat(**options), heat, odd_heat),
        "AttentionMaps.share": (
            lambda **options: m.maps.share(**options),
            {**heat, "resolution": m.maps and m.maps.resolutions[0]}, odd_heat
        ),
        # latents
        "encode": (sdkit.encode, {"picture": m.image, "model": m.model, "tiled": False}, {}),
        "decode": (sdkit.decode, {"latents": m.latents, "model": m.model, "tiled": False}, {}),
        "round_trip": (sdkit.round_trip, {"picture": m.image, "model": m.model, "tiled": False}, {}),
        "describe": (lambda latents: str(sdkit.describe(latents)), {"latents": m.latents}, {
            "latents": {**(m.traces or {}), "whole numbers": torch.ones(1, 4, 8, 8, dtype=torch.int64),
                        "none of it": torch.zeros(0, 4, 8, 8), "one number": torch.ones(1, 1, 1, 1),
                        "no places": torch.zeros(1, 4, 0, 8)},
        }),
        "latent_to_rgb": (sdkit.latent_to_rgb, {"model": m.model}, {}),
        "latent_to_rgb()": (
            lambda **options: m.rgb(**options), {"latents": m.latents, "scale": 2},
            {"latents": {"three channels": torch.zeros(1, 3, 8, 8), "whole numbers": torch.ones(1, 4, 8, 8).long()}},
        ),
        "latent_to_rgb().pixels": (lambda latents: m.rgb.pixels(latents), {"latents": m.latents}, {}),
        "Latents": (
            lambda **options: repr(Latents(**options)),
            {"mean": torch.zeros(1, 4, 8, 8), "std": torch.ones(1, 4, 8, 8)},
            {"std": {"of two": torch.ones(2, 4, 8, 8)}},
        ),
        "Latents.sample": (lambda seed: m.latents.sample(seed), {"seed": 3}, {"seed": {"two": [1, 2], "2**64": 2**64}}),
        # processes
        "diffuse": (
            sdkit.diffuse,
            {"picture": m.image, "timesteps": [0, 5], "space": "latent", "step_by_step": False, "model": m.model,
             "scheduler": None, "seed": 7, "hooks": ()},
            {"timesteps": {"falling": [5, 3], "halves": [0.5, 1.5]}, "seed": {"two": [1, 2]}},
        ),
        "invert": (
            sdkit.invert,
            {"image": m.image, "prompt": PROMPT, "model": m.model, "num_inference_steps": 2, "refinements": 1,
             "height": 64, "width": 64, "hooks": ()},
            {"image": {"latents": m.latents, "a tensor of latents": m.latents and m.latents.mean}},
        ),
        "interpolate": (
            sdkit.interpolate,
            {"start": "a star", "end": "a cat", **walk, "seed": 7, "model": m.model, "guidance_scale": 2.0,
             "scheduler": None, "hooks": (), "prompt": None},
            {"frames": {"1": 1}, "seed": {"2**64": 2**64, "two": [1, 2]}},
        ),
        "interpolate between seeds": (
            sdkit.interpolate, {"start": 1, "end": 2, "prompt": PROMPT, **walk}, {"start": {"2**64": 2**64}}
        ),
        "interpolate between latents": (
            sdkit.interpolate,
            {"start": m.latents, "end": m.latents and m.latents.mean, "frames": 2},
            {"end": {"another size": torch.zeros(1, 4, 4, 4), "one number": torch.zeros(()), "a row": torch.zeros(4)}},
        ),
        "interpolate between pictures": (sdkit.interpolate, {"start": m.image, "end": m.image, "frames": 2}, {}),
        "Walk.save": (
            lambda **options: m.frames.save(**options), {"path": "walk.gif", "fps": 8}, {"fps": {"1e-9": 1e-9}}
        ),
        "read_prompt": (sdkit.read_prompt, {"prompt": PROMPT, "model": m.model}, {"prompt": {"5": 5}}),
        "Reading.of": (lambda word: m.reading.of(word), {"word": "star"}, {"word": {"no such word": "moon"}}),
        "Reading.likeness": (
            lambda **options: m.reading.likeness(**options), {"word": "star", "layer": 1}, {"layer": {"-99": -99}}
        ),
        "cost": (
            sdkit.cost, {"model": m.model, "height": 64, "width": 64, "measure_up_to": 1.0},
            {"height": {"65": 65, "-8": -8}},
        ),
        # events
        "on": (
            lambda stages, **options: draw(hooks=[sdkit.on(stages, **options)(print_nothing)]),
            {"stages": "block", "layer": "mid_block", "steps": range(2)},
            {"layer": {"no such layer": "up_blocks.9"}, "steps": {"a number": 3, "halves": [0.5]}},
        ),
        "on()": (sdkit.on(Stage.LATENT), {"hook": print_nothing}, {}),
        "run": (
            sdkit.run, {"events": m.model and sdkit.stages(PROMPT, num_inference_steps=1), "hooks": ()},
            {"events": {"a list": [1]}},
        ),
        "tap": (
            lambda **options: sdkit.run(sdkit.tap(**options)),
            {"stage": Stage.LATENT, "value": torch.zeros(1), "step": 1, "t": 5, "layer": None}, {},
        ),
    }  # fmt: skip


def looked_at(maps):
    draw(hooks=[maps])
    maps.heat("star")


def print_nothing(*arguments):
    pass


class Blank:
    """What valid calls are made of, before anything is made: only the names of the table are read."""

    def __getattr__(self, name):
        return None


SLOW = {
    "AttentionMaps",
    "cost",
    "hooks.ablate",
    "hooks.local_blend",
    "plots.histograms",
    "interpolate",
    "interpolate between seeds",
    "plots.words_over_time of all words",
    "Trace.branch(changes)",
}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in table(Blank())]


@contextmanager
def answered_in_time():
    def give_up(*_):
        raise TimeoutError("no answer")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fault(call, valid, argument, value):
    """What is wrong with how a call takes a value in place of one of its valid arguments; None if nothing is."""
    try:
        with answered_in_time(), warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            call(**{**valid, argument: value})
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error)
        line = linecache.getline(last.filename, last.lineno or 0).strip()
        if not Path(last.filename).is_relative_to(Path(sdkit.__file__).parent) or not line.startswith("raise "):
            return f"{type(error).__name__}: {said:.100} ({Path(last.filename).name}:{last.lineno})"
        if not isinstance(error, ValueError | TypeError | FileNotFoundError | OSError):
            return f"a {type(error).__name__}: {said:.100}"
        if "\n" in said:
            return f"more than a line: {said[:200]!r}"
    return None


def odd_values(made, name, argument, own):
    """What is tried in place of an argument. Of a method that is tried on traces only these are."""
    common = {} if name.endswith("of traces") else {**ODD, "an image": made.image}
    if argument == "scheduler":  # a matter of tests/model
        common = {label: value for label, value in common.items() if not isinstance(value, torch.Tensor)}
    return {**common, **own.get(argument, {})}.items()


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_argument_is_taken_or_refused_in_a_sentence(name, made, monkeypatch):
    monkeypatch.chdir(made.folder)
    call, valid, own = table(made)[name]
    call(**valid)  # it is right as it stands
    faults = [
        f"{name}({argument}={label}): {wrong}"
        for argument in valid
        for label, value in odd_values(made, name, argument, own)
        if (wrong := fault(call, table(made)[name][1] if name == "run" else valid, argument, value)) is not None
    ]
    assert not faults, "\n" + "\n".join(faults)


def test_the_table_has_every_public_function_and_argument(made):
    public = {name: getattr(sdkit, name) for name in sdkit.__all__ if name not in ELSEWHERE}
    public |= {f"hooks.{name}": getattr(hooks, name) for name in hooks.__all__}
    public |= {f"plots.{name}": getattr(plots, name) for name in plots.__all__}
    tried = {name: set(valid) for name, (_, valid, _) in table(made).items()}
    for name, function in public.items():
        if name in ("Walk", "Reading", "hooks.from_diffusers"):
            continue
        assert set(inspect.signature(function).parameters) <= tried[name], name
