"""The command line: reads what the user wants, checks it before torch is imported, calls the functions, saves.

Imports every wing, the heavy ones only when a command runs, and the others only where Ctrl-C is answered.
Read `generate` first; `shared` has what commands share.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    import re

_COMMANDS = {  # which file has the options of a command and does it, and what the list of commands says of it
    "generate": ("generate", "generate pictures from words, or from a picture and words"),
    "rerun": ("generate", "generate a picture that sdkit saved again"),
    "inspect": ("latents", "what the autoencoder and the forward process make of a picture"),
    "invert": ("latents", "find the noise that a picture came from, and go back, with other words too"),
    "interpolate": ("latents", "a walk between two prompts, seeds or pictures, as GIF, WebP or MP4"),
    "batch": ("batch", "many pictures: lists and grids of jobs, made once each, on one machine or a cluster"),
    "profile": ("profile", "where the time and the memory of a run go on this machine"),
    "app": ("live", "watch and steer runs on a page in the browser"),
}


def parser(arguments: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """All commands, with the options of that which the arguments name alone, or, without arguments, of every one."""
    import argparse

    made = argparse.ArgumentParser(prog="sdkit", description="Stable Diffusion with the lid off.")
    version = "" if arguments is not None and "--version" not in arguments else import_module("sdkit").__version__
    made.add_argument("--version", action="version", version=f"sdkit {version}")
    made.set_defaults(do=lambda _: made.print_help())
    commands = made.add_subparsers(dest="command", metavar="command")
    named = next((text for text in arguments or () if not text.startswith("-")), None)
    for name, (room, meaning) in _COMMANDS.items():
        command = commands.add_parser(name, help=meaning)
        if arguments is None or name == named:
            getattr(import_module(f"sdkit.cli.{room}"), f"add_{name}")(command)
            command.set_defaults(usage=command.format_usage)
    return made


def _unknown(text: str, usage: str) -> str:
    """What to do about a word that a command does not take."""
    import difflib
    import re

    from sdkit.inputs.signatures import HABITS

    if not text.startswith("--"):
        return f"unrecognized arguments: {text}"
    option = text.partition("=")[0]
    known = re.findall(r"--[\w-]+", usage)
    meant = HABITS.get(option[2:].replace("-", "_"), "sdkit")
    if "sdkit" not in meant:  # which is about Python
        return f"there is no option {option} here; " + re.sub(r"\b(?!and|is|are|meant)\w+", _as_option, meant)
    near = [one for one in known if option.endswith(one[1:])] or difflib.get_close_matches(option, known, 1)
    return f"there is no option {option} here; " + (
        f"did you mean {near[0]}?" if near else "--help lists what there is"
    )


def _as_option(name: re.Match[str]) -> str:
    return "--" + name[0].replace("_", "-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `sdkit`; returns the exit status: 0, 1 where jobs of a batch were set aside, 2 for what the user should
    change, said in one sentence, or 130 where it was interrupted."""
    # Read when torch is imported: threads of OpenMP that wait spin, and on a busy machine keep others from their work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    atexit.register(gc.freeze)  # a process that ends need not be searched for circles of objects, which takes seconds
    try:
        try:
            with _ending_at_once():
                return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("sdkit: interrupted", file=sys.stderr)
        return 130


def _run(arguments: Sequence[str]) -> int:
    import io

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a letter gets its number, and no error
            stream.reconfigure(errors="backslashreplace")
    try:
        for text in arguments:
            if text.encode(errors="replace").decode() != text:
                raise ValueError(f"{text!r} is no valid text; write it, and name files, as this console does")
        made = parser(arguments)
        options, more = made.parse_known_args(arguments)
        if more:
            made.error(_unknown(more[0], options.usage() if options.command else made.format_usage()))
        return int(options.do(options) or 0)
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        known = ("out of memory", "Could not determine home")  # about others nobody could do anything
        if isinstance(error, RuntimeError) and not str(error).startswith(known):
            raise
        from sdkit.cli.shared import printable

        print(printable(f"sdkit: error: {error or 'out of memory'}"), file=sys.stderr)
        return 2


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """Ctrl-C ends it at once until `load_model` has the model: imports meet it where Python can only ignore it, and
    there is nothing to tidy up yet."""
    before = signal.getsignal(signal.SIGINT)
    with suppress(ValueError):  # in a thread, where no signals come
        signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(2, b"sdkit: interrupted\n") and 130))
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, before)
