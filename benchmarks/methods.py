"""The gallery of methods as a table: `python -m benchmarks.methods`, which also writes it into docs/methods.md;
with names, the rows of these alone.

For each ready-made hook that is a published method: its paper, its lines, how far it moves the latents of the embedded
model, and what it costs, in processor seconds of a picture with and without it, in rounds whose order is drawn by lot.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import random
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims import worse_than
from sdkit import Trace, hooks, load, text_to_image
from sdkit.events import Hook

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
BETWEEN = "<!-- methods -->", "<!-- /methods -->"
ROUNDS = 5
RUN: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 5.0, "seed": 7}
WORDS = "a red star on a blue background"


def known() -> dict[str, Callable[[], list[Hook]]]:
    """A maker of hooks for each method, at its defaults where it has them."""
    latents = torch.zeros(4, 16, 16)
    half = torch.ones(16, 16)
    half[:, :8] = 0
    source = Trace(["block", "query", "key"])
    text_to_image(WORDS.replace("star", "cat"), hooks=[source], **RUN)
    model = load()
    worse = worse_than(model)

    def bright(x0: Tensor) -> Tensor:
        return -x0.mean()

    return {
        "apg": lambda: [hooks.apg()],
        "cads": lambda: [hooks.cads()],
        "cfg_plus_plus": lambda: [hooks.cfg_plus_plus()],
        "cfg_zero": lambda: [hooks.cfg_zero()],
        "dynamic_threshold": lambda: [hooks.dynamic_threshold()],
        "guidance_interval": lambda: [hooks.guidance_interval(200, 800)],
        "pag": lambda: [hooks.pag(layer="up_blocks")],
        "seg": lambda: [hooks.seg(layer="up_blocks")],
        "sag": lambda: [hooks.sag()],
        "autoguidance": lambda: [hooks.autoguidance(worse)],
        "compose": lambda: [hooks.compose(WORDS, "a green background", weights=[5.0, 2.0])],
        "sega": lambda: [hooks.sega("a green background", warmup=2)],
        "freedom": lambda: [hooks.freedom(bright, 0.2)],
        "dps": lambda: [hooks.dps(lambda x0: x0 * (1 - half), latents, 0.5)],
        "attend_and_excite": lambda: [hooks.attend_and_excite("star")],
        "layout": lambda: [hooks.layout({"star": (0.0, 0.0, 0.5, 0.5)})],
        "self_guidance": lambda: [hooks.self_guidance("star", centre=(0.3, 0.3))],
        "free_u": lambda: [hooks.free_u()],
        "h_space": lambda: [hooks.h_space(torch.ones(model.unet.config.block_out_channels[-1], 1, 1))],
        "ablate": lambda: [hooks.ablate("mid_block")],
        "deep_cache": lambda: [hooks.deep_cache()],
        "t_gate": lambda: [hooks.t_gate(5)],
        "masactrl": lambda: [hooks.masactrl()],
        "style_aligned": lambda: [hooks.style_aligned()],
        "plug_and_play": lambda: [hooks.plug_and_play(source)],
        "reweight": lambda: [hooks.reweight("star", 2.0)],
        "repaint": lambda: [hooks.repaint(half, latents, seed=1, times=2)],
        "restart": lambda: [hooks.restart(3, 6, seed=1)],
        "multidiffusion": lambda: [hooks.multidiffusion(12, 4)],
        "edit_friendly": lambda: [hooks.edit_friendly(latents, [], seed=1)],
        "ledits": lambda: [hooks.ledits("a green background")],
        "preview_halves": lambda: [hooks.preview_halves(lambda *_: None)],
        "attention_entropy": lambda: [hooks.attention_entropy(lambda *_: None)],
        "sparse_autoencoder": lambda: [hooks.sparse_autoencoder(Halves(), lambda features: 2 * features)],
    }


class Halves:
    """An autoencoder of half of the channels."""

    def encode(self, x: Tensor) -> Tensor:
        return x[..., ::2]

    def decode(self, features: Tensor) -> Tensor:
        return features.repeat_interleave(2, dim=-1) / 2


def lines_of(name: str) -> int:
    """The lines of a method's function, without its documentation and blank ones."""
    function = inspect.unwrap(getattr(hooks, name))
    tree = ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    first = tree.body[1] if ast.get_docstring(tree) else tree.body[0]
    source = inspect.getsource(function).splitlines()
    return 1 + sum(bool(line.strip()) for line in source[first.lineno - 1 :])


def papers_of(name: str) -> str:
    ids = dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{5})", getattr(hooks, name).__doc__ or ""))
    return ", ".join(f"[{one}](https://arxiv.org/abs/{one})" for one in ids) or "-"


def seconds(make: Callable[[], list[Hook]], prompts: list[str]) -> tuple[float, Tensor]:
    chosen, began = make(), time.process_time()
    latents = text_to_image(prompts, hooks=chosen, **RUN).latents
    return time.process_time() - began, latents


def rows(chosen: list[str]) -> dict[str, str]:
    """A row for each of some methods, or of all."""
    methods = {name: make for name, make in known().items() if not chosen or name in chosen}
    together = {"masactrl", "style_aligned"}
    times: dict[str, list[float]] = {name: [] for name in methods}
    moved: dict[str, float] = {}
    lot = random.Random(0)
    for _ in range(ROUNDS):
        for name in lot.sample(list(methods), len(methods)):
            prompts = [WORDS, WORDS.replace("red", "green")] if name in together else [WORDS]
            pair: dict[str, Callable[[], list[Hook]]] = {"plain": list, "method": methods[name]}
            found = {which: seconds(pair[which], prompts) for which in lot.sample(list(pair), 2)}
            times[name].append(found["method"][0] / found["plain"][0])
            plain = found["plain"][1]
            moved[name] = float((found["method"][1] - plain).norm() / plain.norm())
    cost = {name: statistics.median(ratios) for name, ratios in times.items()}
    return {
        name: f"| `{name}` | {papers_of(name)} | {lines_of(name)} | {moved[name]:.0%} | {cost[name]:.2f}x |"
        for name in methods
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=(__doc__ or "").split(":")[0])
    parser.add_argument("methods", nargs="*", help="whose rows are made anew; by default all")
    torch.set_num_threads(1)
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BETWEEN[0])
    inside, after = rest.split(BETWEEN[1])
    kept = {found[1]: found[0] for found in re.finditer(r"^\| `(\w+)` .*$", inside, re.MULTILINE)}
    kept |= rows(parser.parse_args().methods)
    head = ["| hook | paper | lines | latents moved by | time of a picture |", "|---|---|---|---|---|"]
    made = "\n".join([*head, *kept.values()])
    print(made)
    PAGE.write_text(f"{before}{BETWEEN[0]}\n{made}\n{BETWEEN[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
