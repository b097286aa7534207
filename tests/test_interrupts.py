"""Ctrl-C, kill -9 and files that are cut short, at any line: nothing is left on a model, and nothing that was saved is
lost."""

import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from attack import Lines, end, interrupt, source, spread
from conftest import random_pipeline, random_xl_pipeline
from torch import nn

import sdkit
from sdkit import Result, Stage, Trace


def places(short, long):
    return pytest.mark.parametrize(
        "most", [pytest.param(short, id="short"), pytest.param(long, marks=pytest.mark.slow, id="long")]
    )


PROMPT = "a red star"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A pipeline that other tests do not see, whatever is left on it."""
    return random_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def own_xl(tmp_path_factory):
    """One whose autoencoder is taken to another precision when it encodes and decodes."""
    return random_xl_pipeline(tmp_path_factory.mktemp("tokenizer")).to(torch.float16)


def state(pipeline):
    """All that could be left on a pipeline, by name: its attributes and those of its modules, hooks, weights, types."""
    found = {f"pipeline.{name}": id(value) for name, value in vars(pipeline).items()}
    found["gradients"] = torch.is_grad_enabled()
    for part, module in pipeline.components.items():
        if not isinstance(module, nn.Module):
            continue
        found |= {f"{part} {name}": id(one) for name, one in getattr(module, "attn_processors", {}).items()}
        for name, one in module.named_modules():
            for key, value in vars(one).items():
                entries = list(value.items()) if isinstance(value, dict) else value
                plain = isinstance(value, dict | bool | int | float | str | torch.dtype)
                found[f"{part}.{name}.{key}"] = str([(k, id(v)) for k, v in entries]) if isinstance(value, dict) else (
                    value if plain else id(value)
                )  # fmt: skip
        for name, weight in [*module.named_parameters(), *module.named_buffers()]:
            found[f"{part}.{name}"] = weight.dtype, weight.device, weight.data.double().sum().item()
    return found


def left(before, pipeline):
    """The names of what differs."""
    after = state(pipeline)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def every_kind_of_hook():
    @sdkit.on("block", layer="mid_block")
    def block(event):
        event.value = event.value * 1.01

    @sdkit.on("self_attention", "query")
    def read(event):
        assert event.value.isfinite().all()

    @sdkit.on(Stage.DENOISED, steps=[1])
    def ask(event):
        event.run.predict(hooks=[read])

    def callback(_pipeline, _step, _t, given):
        return {"latents": given["latents"] * 1.01}

    return [
        sdkit.hooks.reweight("star", 2.0),
        block,
        read,
        ask,
        sdkit.hooks.from_diffusers(callback),
        sdkit.hooks.steer(lambda x0: x0.square().sum(), 0.1),
        sdkit.AttentionMaps(),
        Trace(["latent", "attention", "block"]),
    ]


def text_to_image(model):
    hooks = every_kind_of_hook()
    return sdkit.text_to_image(PROMPT, model=model, seed=7, num_inference_steps=2, hooks=hooks).latents


def inpaint(model):
    """Stage by stage, left in the middle by whoever loops."""
    picture, mask = torch.linspace(0, 1, 3 * 64 * 64).reshape(3, 64, 64), torch.eye(64)
    events = sdkit.stages(
        PROMPT,
        model=model,
        seed=7,
        num_inference_steps=2,
        image=picture,
        mask_image=mask,
        strength=1.0,
        hooks=every_kind_of_hook(),
    )
    with closing(events):  # not left to the garbage collector, which keeps interrupts to itself
        for event in events:
            if event.stage is Stage.DENOISED and event.step == 1:
                return event.value
    raise AssertionError("there is no such step")


def there_and_back(model):
    picture = torch.linspace(0, 1, 3 * 64 * 64).reshape(3, 64, 64)
    latents = sdkit.encode(picture, model=model, tiled=True)
    sdkit.decode(latents, model=model, tiled=True)
    return latents.mean


def strike(work, model, most, *, but=()):
    """Interrupt work at each of so many places, and see that nothing is left on the model and that the same comes out
    as before; the number of places.

    Args:
        but: lines that are left out, as they stand in the file.
    """
    first = work(model)
    with Lines() as quiet:
        work(model)
    before, moments = state(model), [one for one in spread(quiet.passed, most) if source(quiet.passed[one]) not in but]
    for moment in moments:
        with Lines(moment, interrupt), pytest.raises(KeyboardInterrupt):
            work(model)
        names = left(before, model)
        assert not names, f"at {quiet.passed[moment]}, {source(quiet.passed[moment])!r}: {len(names)}, {names[:3]}"
    again = []
    other = threading.Thread(target=lambda: again.append(work(model)), daemon=True)  # which no lock of ours keeps out
    other.start()
    other.join(120)
    assert again, "another thread waits for ever"
    assert torch.equal(again[0], first)
    return len(moments)


@places(20, 600)
def test_an_interrupt_at_any_line_leaves_nothing_on_the_model(own, most):
    assert strike(text_to_image, own, most) == most


@places(10, 200)
def test_an_interrupt_of_a_loop_leaves_nothing_on_the_model(own, most):
    assert strike(inpaint, own, most) == most


@places(30, 100)
@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_leaves_the_autoencoder_in_its_precision_and_not_in_tiles(own_xl, most):
    assert strike(there_and_back, own_xl, most)


# ---------------------------------------------------------------------------------------------------------------------
# Files

WRITERS = {
    "a.png": lambda run, path: run.result.save(path),
    "a.safetensors": lambda run, path: run.trace.save(path),
    "a.html": lambda run, path: run.trace.report(path),
    "a.gif": lambda run, path: sdkit.animate(run.trace, path, side=32),
    "a.webp": lambda run, path: sdkit.animate(run.trace, path, side=32),
}


@pytest.fixture(scope="module")
def saved(own):
    trace = Trace()
    result = sdkit.text_to_image(PROMPT, model=own, seed=7, num_inference_steps=2, hooks=[trace])
    return SimpleNamespace(trace=trace, result=result)


def moments_of(write, run, path, most):
    """The lines that a writer runs through, and moments among them, those that touch the disk first."""
    write(run, path)
    with Lines() as quiet:
        write(run, path)
    on_disk = [moment for moment, (file, _) in enumerate(quiet.passed) if file == "files.py"]
    return quiet.passed, dict.fromkeys([*on_disk, *spread(quiet.passed, most)])


@places(10, 200)
@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupt_while_a_file_is_saved_leaves_a_whole_file_and_nothing_beside_it(saved, tmp_path, name, most):
    path, write = tmp_path / name, WRITERS[name]
    passed, moments = moments_of(write, saved, path, most)
    new = path.read_bytes()
    for moment in moments:
        path.write_bytes(b"what was there")
        with Lines(moment, interrupt), pytest.raises(KeyboardInterrupt):
            write(saved, path)
        assert path.read_bytes() in (b"what was there", new), (passed[moment], source(passed[moment]))
        assert list(tmp_path.iterdir()) == [path], (passed[moment], source(passed[moment]))


KILLED = """
import sys, torch
torch.set_num_threads(1)  # threads do not go along into a child
sys.path.insert(0, sys.argv[1])
from test_interrupts import kill_each
kill_each(sys.argv[2], int(sys.argv[3]))
"""


def kill_each(folder, most):
    """In a process of its own, which has run no model: kill a child at each of so many lines while it saves a file."""
    trace = Trace.load(Path(folder, "run.safetensors"))
    run = SimpleNamespace(trace=trace, result=Result(trace.images, trace.latents, [7], trace.settings))
    for name, write in WRITERS.items():
        path = Path(folder, name)
        passed, moments = moments_of(write, run, path, most)
        new = path.read_bytes()
        for moment in list(moments)[:most]:
            path.write_bytes(b"what was there")
            child = os.fork()
            if not child:
                with Lines(moment, end):
                    write(run, path)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status)
            assert path.read_bytes() in (b"what was there", new), (passed[moment], source(passed[moment]))
        print(name)


@places(2, 200)
def test_a_kill_while_a_file_is_saved_leaves_a_whole_file(saved, tmp_path, most):
    saved.trace.save(tmp_path / "run.safetensors")
    command = [sys.executable, "-c", KILLED, Path(__file__).parent, tmp_path, str(most)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == list(WRITERS)


CUT = """
import os, sys, sdkit
for share in (2, 10**9):
    trace = sdkit.Trace.load("run.safetensors")
    held = trace.latents
    os.truncate("run.safetensors", os.path.getsize("run.safetensors") // share)
    held.sum()
    save = lambda: trace.save("b.safetensors")
    for read in (lambda: trace.images, trace.summary, lambda: trace.branch(1), save):
        try:
            print(read())
        except ValueError as error:
            print(error)
    if share == 2:
        os.replace("again.safetensors", "run.safetensors")
"""


@pytest.mark.slow
def test_a_trace_that_is_cut_short_after_it_was_opened_says_so(saved, tmp_path):
    path = saved.trace.save(tmp_path / "run.safetensors")
    saved.trace.save(tmp_path / "again.safetensors")
    done = subprocess.run([sys.executable, "-c", CUT], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    said = f"{path.name!r} was cut short or changed after it had been opened; open it again"
    assert done.stdout.splitlines() == [said] * 8


def test_a_trace_that_is_written_over_after_it_was_opened_gives_no_mixture(saved, tmp_path):
    path = saved.trace.save(tmp_path / "run.safetensors")
    opened = Trace.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + b"x" * 100)
    os.utime(path, ns=(1, 1))  # however soon that was
    with pytest.raises(ValueError, match="was cut short or changed after it had been opened; open it again"):
        opened.images  # noqa: B018 - reading it is the test


def test_a_trace_is_saved_over_the_file_that_it_is_read_from(saved, tmp_path):
    path = saved.trace.save(tmp_path / "run.safetensors")
    whole, opened = path.read_bytes(), Trace.load(path)
    opened.save(path)
    assert path.read_bytes() == whole
    assert torch.equal(opened.latents, saved.trace.latents)
    assert opened.compare(Trace.load(path)).parting is None
