"""The command line: reads what the user wants, checks it before torch is imported, calls the functions, saves.

Imports every wing, the heavy ones only when a command runs. Read `generate` first; `shared` has what commands share.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

import sdkit
from sdkit.cli import generate, latents
from sdkit.cli.shared import printable


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    made = argparse.ArgumentParser(prog="sdkit", description="Stable Diffusion with the lid off.")
    made.add_argument("--version", action="version", version=f"sdkit {sdkit.__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="command")
    generate.add_to(commands)
    latents.add_to(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `sdkit`; returns the exit status: 0, or 2 for what the user should change, said in one sentence."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a letter gets its number, and no error
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        options.do(options)
    except (ValueError, TypeError, OSError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("out of memory"):
            raise  # nothing that somebody could do about it
        print(printable(f"sdkit: error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sdkit: interrupted", file=sys.stderr)
        return 130
    return 0
