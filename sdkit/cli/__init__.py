"""The command line: reads what the user wants, checks it before torch is imported, calls the functions, saves.

Imports every wing, the heavy ones only when a command runs, and the others only where Ctrl-C is answered.
Read `generate` first; `shared` has what commands share.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    import argparse

    import sdkit
    from sdkit.cli import batch, generate, latents, live

    made = argparse.ArgumentParser(prog="sdkit", description="Stable Diffusion with the lid off.")
    made.add_argument("--version", action="version", version=f"sdkit {sdkit.__version__}")
    made.set_defaults(do=lambda _: made.print_help())
    commands = made.add_subparsers(dest="command", metavar="command")
    generate.add_to(commands)
    latents.add_to(commands)
    batch.add_to(commands)
    live.add_to(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `sdkit`; returns the exit status: 0, 1 where jobs of a batch were set aside, 2 for what the user should
    change, said in one sentence, or 130 where it was interrupted."""
    # Read when torch is imported: threads of OpenMP that wait spin, and on a busy machine keep others from their work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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

    from sdkit.cli.shared import printable

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a letter gets its number, and no error
            stream.reconfigure(errors="backslashreplace")
    try:
        for text in arguments:
            if text.encode(errors="replace").decode() != text:
                raise ValueError(f"{text!r} is no valid text; write it, and name files, as this console does")
        options = parser().parse_args(arguments)
        return int(options.do(options) or 0)
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        known = ("out of memory", "Could not determine home")  # about others nobody could do anything
        if isinstance(error, RuntimeError) and not str(error).startswith(known):
            raise
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
