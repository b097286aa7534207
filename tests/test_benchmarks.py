"""The benchmarks, at sizes that take a moment."""

import json
import subprocess
import sys

import pytest
import torch

import sdkit
from benchmarks import __main__ as command
from benchmarks import rows, sizes
from benchmarks.rounds import Row, Taken, alone, compared, here, ratios, rounds, spread

STEP = {"num_inference_steps": 1, "guidance_scale": 3.0}
SMALL = {
    "unet": {
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "sample_size": 8,
    },
    "vae": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4},
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
}


def test_each_side_has_its_turn_in_every_round_and_the_order_is_drawn_by_lot():
    turns = []
    taken = rounds({name: lambda name=name: turns.append(name) or Taken(1, 1, name) for name in "ab"}, 20)
    assert {name: {one.said for one in some} for name, some in taken.items()} == {"a": {"a"}, "b": {"b"}}
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    assert {tuple(sorted(pair)) for pair in pairs} == {("a", "b")}
    assert len(set(pairs)) == 2


def test_a_row_has_the_median_of_the_ratios_and_says_whether_that_is_little_enough():
    ours, theirs = [Taken(1, 3), Taken(2, 3), Taken(4, 3)], [Taken(2, 2), Taken(2, 2), Taken(2, 2)]
    assert ratios(ours, theirs) == [0.5, 1, 2]
    assert spread([3, 1, 2]) == "2.00x (1.00 to 3.00)"
    row = compared("name", "what", 0.9, ours, theirs)
    assert row.measured == "1.00x (0.50 to 2.00); processor 1.50x (1.50 to 1.50)"
    assert not row.met
    assert compared("name", "what", 1.0, ours, theirs).met


def test_the_processor_is_asked_and_what_a_process_prints_comes_back():
    assert here(lambda: sum(range(10**6))).processor > 0
    made = alone("-c", "import json; sum(range(10**6)); print('first'); print(json.dumps({'peak': 5}))")
    assert made.said == {"peak": 5}
    assert made.processor > 0
    with pytest.raises(RuntimeError, match="no such thing"):
        alone("-c", "raise SystemExit('no such thing')")


def test_small_components_of_a_family_run_in_both_and_give_the_same_bits():
    model = sdkit.load(sizes.pipeline("sd1", **SMALL))
    (row,) = rows.plain(1, model, STEP | {"height": 64, "width": 64})
    assert row.remark == "latents equal to the bit"
    assert "64x64" in row.what


def test_what_is_for_a_gpu_runs_on_a_processor_at_a_small_size(monkeypatch):
    monkeypatch.setattr("diffusers.UNet2DConditionModel.compile_repeated_blocks", lambda *_, **__: None)
    made = rows.gpu(1, "cpu", torch.float32, {"sd1": 64}, steps=1, **SMALL)
    assert [row.name for row in made] == ["gpu sd1 eager", "gpu sd1 channels last", "gpu sd1 compiled"]
    assert [row.target for row in made] == ["<= 1.03x", "<= 1.03x", "<= 0.66x"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    (row,) = rows.gpu()
    assert row.measured == "not measured"


def test_rows_that_are_not_asked_for_stay_as_they_were_and_the_page_has_them_all(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n")
    file = page.with_suffix(".json")
    command.keep("start", [Row("start", "cold", "<= 0.80x", "0.75x", True)], file)
    command.write(command.keep("import", [Row("import", "warm", "", "1 s", None, "so")], file), page)
    lines = page.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- benchmarks -->"]
    assert lines[-2:] == ["<!-- /benchmarks -->", "after"]
    assert lines[4:6] == ["| import | warm |  | 1 s |  | so |", "| start | cold | <= 0.80x | 0.75x | yes |  |"]
    assert list(json.loads(file.read_text())) == ["import", "start"]


@pytest.mark.slow
def test_a_row_that_is_not_there_is_said():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "fast"], capture_output=True, text=True, cwd=command.ROOT, check=False
    )
    assert done.returncode == 2
    assert "there is no row 'fast'; expected some of import, help, start" in done.stderr
