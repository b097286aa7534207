"""What looking inside the U-Net costs, measured side by side in one run: `python benchmarks/attention.py`.

The embedded model draws whole pictures; of Stable Diffusion 1.5 at 512x512 the attention layers alone are built, with
random weights. The ways of looking take turns, and each ratio is one of medians, of the processor's own seconds: what
else the machine does then counts for less.
"""

from __future__ import annotations

import random
import statistics
import time
from types import SimpleNamespace

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

import sdkit
from benchmarks.embedded import judge
from sdkit import AttentionMaps
from sdkit.unet.scope import Scope

PICTURES, ROUNDS = 25, 5  # how often each way takes its turn, and how often self-attention is timed
# channels, side and number of the transformer blocks of Stable Diffusion 1.5 at 512x512
BLOCKS = [(320, 64)] * 5 + [(640, 32)] * 5 + [(1280, 16)] * 5 + [(1280, 8)]


class Written:
    """What others do: a processor that writes attention out, and keeps the head mean of the conditional half."""

    def __init__(self) -> None:
        self.kept = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)))
        probabilities = attn.get_attention_scores(q, k)
        self.kept.append(probabilities.unflatten(0, (-1, attn.heads))[1:].mean(1))
        return attn.to_out[0](attn.batch_to_head_dim(probabilities @ v))


def seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def small() -> tuple[dict[str, float], float, bool, float]:
    """Times of a picture of the embedded model and of reading its first map, whether its bits stay, and what writing
    out shifts."""
    model = sdkit.load(device="cpu")
    crossing = [name for name in model.unet.attn_processors if "attn2" in name]
    outputs = {}

    def draw(name, hooks=(), processor=None):
        own = dict.fromkeys(model.unet.attn_processors, AttnProcessor2_0())
        model.unet.set_attn_processor(own | dict.fromkeys(crossing, processor) if processor else own)
        outputs[name] = sdkit.text_to_image("a red star on a blue background", seed=7, hooks=hooks, model=model).latents

    ways = {
        "none": lambda: draw("none"),
        "all words, every step": lambda: draw("all", [AttentionMaps()]),
        "all words, added up": lambda: draw("sum", [AttentionMaps(each_step=False)]),
        "chosen words": lambda: draw("chosen", [AttentionMaps(["star"])]),
        "written out by a processor": lambda: draw("written", processor=Written()),
    }
    times = take_turns(ways, PICTURES)
    same = all(torch.equal(outputs["none"], outputs[name]) for name in ("all", "sum", "chosen"))
    draw("none")  # diffusers' own processors again
    maps = AttentionMaps(["star"])
    draw("chosen", [maps])
    return times, seconds(lambda: maps.heat("star")), same, (outputs["none"] - outputs["written"]).abs().max().item()


def take_turns(ways, rounds: int) -> dict[str, float]:
    """The median time in seconds of each way; by chance who follows whom, for what one leaves in the caches and in the
    allocator is the next one's burden."""
    for work in ways.values():
        work()
    times = {name: [] for name in ways}
    chance = random.Random(0)
    for _ in range(rounds):
        for name in chance.sample(list(ways), len(ways)):
            times[name].append(seconds(ways[name]))
    return {name: statistics.median(found) for name, found in times.items()}


def block(channels: int) -> nn.Module:
    heads = {"heads": 8, "dim_head": channels // 8}
    return nn.ModuleDict({"attn1": Attention(channels, **heads), "attn2": Attention(channels, 768, **heads)}).eval()


def run_like_this() -> SimpleNamespace:
    """What attention maps ask of a run: one guided picture at 512x512, of which embeddings stand for the words."""
    size = SimpleNamespace(height=512, width=512)
    return SimpleNamespace(shape=(1, 4, 64, 64), guided=True, words=([[]], [[]]), settings=size)


@torch.no_grad()
def large() -> tuple[dict[str, float], bool]:
    """Times of all attention layers of Stable Diffusion 1.5 together, and whether their bits stay."""
    text, run = torch.randn(2, 77, 768), run_like_this()
    total, same = {}, True
    for channels, side in dict.fromkeys(BLOCKS):
        layers, x, outputs = block(channels), torch.randn(2, side * side, channels), {}

        def pass_through(name, hooks=(), layers=layers, x=x, outputs=outputs):
            with (scope := Scope(layers, hooks, run)).at(0, 999):
                outputs[name] = scope.unet["attn2"](x, encoder_hidden_states=text)

        def written_out(layers=layers, pass_through=pass_through):
            layers["attn2"].set_processor(Written())
            pass_through("written")
            layers["attn2"].set_processor(AttnProcessor2_0())

        ways = {
            "none": lambda go=pass_through: go("none"),
            "all words, added up": lambda go=pass_through: go("all", [AttentionMaps(each_step=False)]),
            "chosen words": lambda go=pass_through: go("chosen", [AttentionMaps([5], each_step=False)]),
            "written out by a processor": written_out,
        }
        # Nobody touches self-attention, so it is timed once for all: the small difference would drown in its noise.
        alone = statistics.median(seconds(lambda layers=layers, x=x: layers["attn1"](x)) for _ in range(ROUNDS))
        times = {name: found + alone for name, found in take_turns(ways, PICTURES).items()}
        same = same and all(torch.equal(outputs["none"], outputs[name]) for name in ("all", "chosen"))
        for name, found in times.items():
            total[name] = total.get(name, 0.0) + found * BLOCKS.count((channels, side))
    return total, same


@torch.no_grad()
def memory(steps: int = 3) -> tuple[float, float]:
    """MiB of the maps of all 77 tokens at 512x512: added up over any number of steps, and of one step."""
    unet = nn.ModuleList([block(channels) for channels, _ in BLOCKS])
    added_up, each = AttentionMaps(each_step=False), AttentionMaps()
    scope, text = Scope(unet, [added_up, each], run_like_this()), torch.randn(2, 77, 768)
    for step in range(steps):
        with scope.at(step):
            for layers, (channels, side) in zip(scope.unet, BLOCKS, strict=True):
                layers["attn2"](torch.randn(2, side * side, channels), encoder_hidden_states=text)
    return added_up.nbytes / 2**20, each.nbytes / steps / 2**20


def main() -> None:
    model = sdkit.load(device="cpu")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)\n")
    times, reading, same, shift = small()
    print(f"embedded model, a picture in {times['none']:.3f} s, {PICTURES} rounds")
    report(times, {"all words, every step": 1.05, "chosen words": 1.02})
    print(f"  layers are worked out when a map is first asked for: {reading / times['none']:.4f} of the picture's time")
    print(f"  output bit-identical: {same}; written out, the latents shift by {shift:.1e}\n")
    times, same = large()
    print(f"attention layers of Stable Diffusion 1.5 at 512x512, {times['none']:.2f} s a step, {PICTURES} rounds")
    report(times, {"chosen words": 1.005})
    print(f"  output bit-identical: {same}")
    added_up, each = memory()
    print(
        f"  maps of all 77 tokens: {added_up:.2f} MiB added up over any number of steps (target 8), {each:.2f} a step"
    )
    covers, _ = judge.where_words_look(model, 1, 200)
    print(f"\nembedded model, IoU of a noun's map with its thing at 16x16: {statistics.mean(covers):.3f} (target 0.75)")


def report(times: dict[str, float], targets: dict[str, float]) -> None:
    for name, seconds_of_it in times.items():
        target = f"  (target {targets[name]})" if name in targets else ""
        if name != "none":
            print(f"  {name:28} {seconds_of_it / times['none']:.4f}{target}")


if __name__ == "__main__":
    main()
