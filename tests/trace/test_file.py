"""The file of a trace, rule by rule: one small file, and of it what is read, what is refused, and in which words."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdkit import Stage, Trace
from sdkit.events import Edit
from sdkit.trace import file
from sdkit.trace.record import Record, value_of

TENSORS = {
    "ids": torch.arange(8).reshape(2, 4),
    "x": torch.full((1, 4, 8, 8), 0.5),
    "v": torch.linspace(-1, 1, 512).reshape(2, 4, 8, 8),
    "x0": torch.full((1, 4, 8, 8), 0.25),
    "picture": torch.zeros(1, 3, 64, 64),
    "map": torch.ones(2, 4, 64, 5),
}


def entry(stage, tensor, step=None, t=None, **more):
    return {"stage": stage, "step": step, "t": t, "layer": None, "edits": [], "tensor": tensor} | more


EDIT = {"hook": "halve", "distance": 1.5, "relative": 0.5}
HEADER = {
    "format": 1,
    "settings": {},
    "parent": None,
    "every": 1,
    "tokens": [[[3, "a", 0], [4, "</end>", None]]],
    "levels": {"0": [900, 0.25, 0.75]},
    "stepped": {"0": "x0"},
    "records": [
        entry("tokens", "ids"),
        entry("latent", "x", 0, 900),
        entry("attention", "map", 0, 900, layer="up_blocks.1"),
        entry("noise", "v", 0, 900, edits=[EDIT]),
        entry("denoised", "x0", 0, 900),
        entry("image", "picture"),
    ],
    "channels_last": ["x"],
}


def with_entry(place, **more):
    """The header with one record changed."""
    records = [one | more if i == place else one for i, one in enumerate(HEADER["records"])]
    return {"records": records}


def written(path, header=HEADER, tensors=TENSORS):
    """A file with a header of anybody's, opened as a stranger's would be."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"sdkit_trace": json.dumps(header)})
    return path


def refusal(path):
    with pytest.raises(ValueError, match=r"is damaged|holds tensors but no trace") as refused:
        Trace.load(path)
    return str(refused.value)


def test_a_file_is_read_as_it_was_written(tmp_path):
    trace = Trace.load(written(tmp_path / "run.safetensors"))
    assert [(r.stage, r.step, r.t, r.layer) for r in trace] == [
        ("tokens", None, None, None),
        ("latent", 0, 900, None),
        ("attention", 0, 900, "up_blocks.1"),
        ("noise", 0, 900, None),
        ("denoised", 0, 900, None),
        ("image", None, None, None),
    ]
    assert all(isinstance(r.stage, Stage) for r in trace)
    assert all(torch.equal(r.value, TENSORS[one["tensor"]]) for r, one in zip(trace, HEADER["records"], strict=True))
    assert trace.edits == [(trace.records[3], Edit("halve", 1.5, 0.5))]
    assert [[(token.id, token.text, token.word) for token in row] for row in trace.tokens] == [
        [(3, "a", 0), (4, "</end>", None)]
    ]
    (level,) = trace.levels.values()
    assert (list(trace.levels), level.t, level.alpha, level.sigma) == ([0], 900, 0.25, 0.75)
    assert torch.equal(value_of(trace.stepped[0]), TENSORS["x0"])
    assert list(trace.stepped) == [0]
    assert trace.opened
    assert (trace.parent, trace.every, trace.settings) == (None, 1, {})


def test_a_trace_is_written_in_the_documented_form(tmp_path):
    x, v, x0 = TENSORS["x"].to(memory_format=torch.channels_last), TENSORS["v"], TENSORS["x0"]
    records = [
        Record(Stage.LATENT, 0, 900, [], x),
        Record(Stage.NOISE, 0, 900, [Edit("halve", 1.5, 0.5)], v),
        Record(Stage.BLOCK, 0, 900, [], v, "mid_block"),
    ]
    path = file.save(
        tmp_path / "run.safetensors", {"settings": {}, "every": 1, "tokens": []}, records, {0: v, 1: x, 2: x0}
    )
    with path.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        raw = json.loads(opened.read(length))["__metadata__"]
    assert list(raw) == ["sdkit_trace"]
    assert json.loads(raw["sdkit_trace"]) == {
        "format": 1,
        "settings": {},
        "every": 1,
        "tokens": [],
        "stepped": {"0": "00001.noise", "1": "00000.latent", "2": "stepped.2"},
        "records": [
            entry("latent", "00000.latent", 0, 900),
            entry("noise", "00001.noise", 0, 900, edits=[EDIT]),
            entry("block", "00001.noise", 0, 900, layer="mid_block"),
        ],
        "channels_last": ["00000.latent"],
    }
    assert load_file(path).keys() == {"00000.latent", "00001.noise", "stepped.2"}


def test_values_lie_in_memory_as_they_lay(tmp_path):
    ways = {
        Stage.LATENT: torch.rand(1, 4, 8, 8).to(memory_format=torch.channels_last),
        Stage.GUIDED: torch.rand(1, 4, 8, 8),
        Stage.DENOISED: torch.rand(1, 4, 8, 8).transpose(2, 3),  # neither way
        Stage.TEXT: torch.rand(1, 8, 6).transpose(1, 2),
    }
    records = [Record(stage, None, None, [], value) for stage, value in ways.items()]
    header = {"settings": {}, "every": 1, "tokens": []}
    trace = Trace.load(file.save(tmp_path / "run.safetensors", header, records, {}))
    for record in trace:
        assert torch.equal(record.value, ways[record.stage])
        last = record.value.dim() == 4 and record.value.is_contiguous(memory_format=torch.channels_last)
        assert last == (record.stage is Stage.LATENT)


def test_a_value_that_is_a_part_of_another_is_written_whole(tmp_path):
    noise = torch.rand(2, 4, 8, 8)
    stages = {
        Stage.NOISE: noise,
        Stage.GUIDED: noise.chunk(2)[1],
        Stage.BLOCK: noise.flatten(1),
        Stage.KEY: noise[:, 1],
    }
    records = [Record(stage, 0, 1, [], value) for stage, value in stages.items()]
    path = file.save(tmp_path / "run.safetensors", {"settings": {}, "every": 1, "tokens": []}, records, {})
    assert len(load_file(path)) == 4
    assert all(torch.equal(record.value, stages[record.stage]) for record in Trace.load(path))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    ],
)  # fmt: skip
def test_every_type_of_number_is_read(tmp_path, dtype):
    value = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    header = HEADER | {"records": [entry("block", "x")], "stepped": {}, "channels_last": []}
    trace = Trace.load(written(tmp_path / "run.safetensors", header, {"x": value}))
    assert trace.records[0].value.dtype is dtype
    assert torch.equal(trace.records[0].value, value)


def test_a_value_is_read_once_for_as_long_as_somebody_holds_it(tmp_path):
    trace = Trace.load(written(tmp_path / "run.safetensors", HEADER | {"channels_last": []}))
    held = trace.records[1].value
    assert trace.records[1].value is held
    held += 1
    assert torch.equal(trace.records[1].value, TENSORS["x"] + 1)
    del held
    assert torch.equal(trace.records[1].value, TENSORS["x"])


NUMBERS = [
    ({"format": None}, "the number of its format"),
    ({"format": True}, "the number of its format"),
    ({"format": "1"}, "the number of its format"),
    ({"settings": []}, "settings"),
    ({"parent": 3}, "its parent, or none"),
    ({"parent": {}}, "its parent, or none"),
    ({"parent": {"step": "3"}}, "its parent, or none"),
    ({"every": None}, "every how many steps it was recorded"),
    ({"every": 0}, "every how many steps it was recorded"),
    ({"tokens": None}, "tokens"),
    ({"records": {}}, "records"),
    ({"tokens": [3]}, "a list of tokens for each prompt"),
    ({"tokens": [[3]]}, "three values for each token"),
    ({"tokens": [[[3, "a"]]]}, "three values for each token"),
    ({"tokens": [[[3, "a", 0, 0]]]}, "three values for each token"),
    ({"tokens": [[["3", "a", 0]]]}, "tokens as id, text, word"),
    ({"tokens": [[[3, 4, 0]]]}, "tokens as id, text, word"),
    ({"tokens": [[[3, "a", "0"]]]}, "tokens as id, text, word"),
    ({"tokens": [[[3, "a", True]]]}, "tokens as id, text, word"),
    ({"records": [3]}, "known stages"),
    (with_entry(1, stage="latents"), "known stages"),
    (with_entry(1, step="0"), "whole numbers as steps"),
    (with_entry(1, t=9.5), "whole numbers as steps"),
    (with_entry(1, layer=3), "layers by name"),
    (with_entry(1, tensor="y"), "records of tensors that are in the file"),
    (with_entry(1, edits=None), "edits"),
    (with_entry(1, edits=[3]), "edits"),
    (with_entry(1, edits=[EDIT | {"more": 1}]), "edits"),
    (with_entry(1, edits=[{"hook": "halve", "distance": 1.5}]), "edits"),
    (with_entry(1, edits=[EDIT | {"hook": 3}]), "edits"),
    (with_entry(1, edits=[EDIT | {"distance": "1"}]), "edits"),
    (with_entry(1, edits=[EDIT | {"relative": True}]), "edits"),
    ({"levels": []}, "noise levels as t, alpha, sigma"),
    ({"levels": {"a": [1, 2, 3]}}, "noise levels as t, alpha, sigma"),
    ({"levels": {"0": [1, 2]}}, "noise levels as t, alpha, sigma"),
    ({"levels": {"0": {"1": 1, "2": 2, "3": 3}}}, "noise levels as t, alpha, sigma"),
    ({"levels": {"0": [1, 2, "3"]}}, "noise levels as t, alpha, sigma"),
    ({"stepped": None}, "predictions"),
    ({"stepped": {"a": "x0"}}, "predictions"),
    ({"stepped": {"0": "y"}}, "predictions"),
    ({"channels_last": "x"}, "names of tensors"),
    ({"channels_last": [3]}, "names of tensors"),
    ({"channels_last": ["ids"]}, "channels last of four dimensions"),
]


@pytest.mark.parametrize(("changes", "expected"), NUMBERS)
def test_a_header_that_is_not_as_it_should_be_is_told_what_it_should_hold(tmp_path, changes, expected):
    path = written(tmp_path / "run.safetensors", HEADER | changes)
    assert refusal(path) == f"{str(path)!r} is damaged: its header should hold {expected}; save the trace again"


@pytest.mark.parametrize("header", [3, [], None])
def test_a_header_that_is_none_is_told_so(tmp_path, header):
    path = written(tmp_path / "run.safetensors", header)
    assert "is damaged: its header should hold the number of its format" in refusal(path)


def test_a_newer_format_asks_for_a_newer_sdkit(tmp_path):
    path = written(tmp_path / "run.safetensors", HEADER | {"format": 2})
    assert "it has format 2, newer than the 1 known here; update sdkit" in refusal(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"parent": {"step": 3, "settings": {}}},
        {"every": 2},
        {"format": 0},
        {"tokens": []},
        {"stepped": {}},
        {"channels_last": ["of another file"]},
        with_entry(1, edits=[EDIT, EDIT | {"distance": 2}]),
    ],
)
def test_a_header_may_say(tmp_path, changes):
    assert Trace.load(written(tmp_path / "run.safetensors", HEADER | changes)).steps == [0]


def test_a_header_may_leave_out_what_older_files_did_not_have(tmp_path):
    header = {key: value for key, value in HEADER.items() if key not in ("levels", "channels_last", "parent")}
    header["records"] = [{k: v for k, v in one.items() if k != "layer"} for one in HEADER["records"]]
    trace = Trace.load(written(tmp_path / "run.safetensors", header))
    assert (trace.levels, trace.parent, trace.records[1].layer) == ({}, None, None)


def test_settings_are_checked_where_there_are_any(tmp_path):
    path = written(tmp_path / "run.safetensors", HEADER | {"settings": {"seed": "7"}})
    assert "seed" in refusal(path)
    assert refusal(path).count(str(path)) == 2  # the file that is damaged, and the one that the record is from


# ---------------------------------------------------------------------------------------------------------------------
# Shapes that fit together


SHAPES = {
    "tokens": (2, 4),
    "pooled": (2, 6),
    "text": (2, 4, 6),
    "latent": (1, 4, 8, 8),
    "guided": (1, 4, 8, 8),
    "denoised": (1, 4, 8, 8),
    "noise": (2, 4, 8, 8),
    "pixels": (1, 3, 64, 64),
    "posterior": (1, 8, 8, 8),
    "mask": (1, 1, 64, 64),
    "image": (1, 3, 64, 64),
}


def holding(path, **shapes):
    """A file of ones with these shapes, by stage; a number behind a name is for a second one."""
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    records = [entry(name.rstrip("0123456789"), name, 0, 1) for name in tensors]
    header = HEADER | {"records": records, "stepped": {}, "channels_last": []}
    return written(path / "run.safetensors", header, tensors)


@pytest.mark.parametrize("stage", SHAPES)
def test_a_stage_has_its_number_of_dimensions_and_none_is_empty(tmp_path, stage):
    shape = SHAPES[stage]
    assert tuple(Trace.load(holding(tmp_path, **{stage: shape}))[stage][0].value.shape) == shape
    for other in ((*shape, 1), shape[1:], (0, *shape[1:])):
        assert "hold tensors of the shapes that their stages have; save" in refusal(holding(tmp_path, **{stage: other}))


@pytest.mark.parametrize("stage", ["latent", "guided", "denoised", "noise", "image"])
def test_latents_and_pictures_are_no_whole_numbers(tmp_path, stage):
    tensors = {"a": torch.ones(SHAPES[stage], dtype=torch.int32)}
    header = HEADER | {"records": [entry(stage, "a", 0, 1)], "stepped": {}, "channels_last": []}
    assert "shapes that their stages have" in refusal(written(tmp_path / "run.safetensors", header, tensors))


@pytest.mark.parametrize(
    "shapes",
    [
        {"latent": (1, 4, 8, 8), "latent1": (1, 4, 8, 16)},
        {"latent": (1, 4, 8, 8), "denoised": (2, 4, 8, 8)},
        {"latent": (1, 4, 8, 8), "noise": (2, 4, 8, 16)},
        {"latent": (1, 4, 8, 8), "noise": (2, 8, 8, 8)},
        {"noise": (2, 4, 8, 8), "noise1": (2, 4, 16, 8)},
        {"image": (1, 3, 64, 64), "image1": (2, 3, 64, 64)},
        {"latent": (1, 4, 8, 8), "image": (2, 3, 64, 64)},
        {"latent": (1, 4, 8, 8), "image": (1, 4, 64, 64)},
        {"latent": (1, 4, 8, 8), "image": (1, 3, 60, 64)},
        {"latent": (1, 4, 8, 8), "image": (1, 3, 64, 128)},
    ],
)
def test_latents_and_pictures_of_two_runs_do_not_fit(tmp_path, shapes):
    assert "shapes that their stages have" in refusal(holding(tmp_path, **shapes))


@pytest.mark.parametrize(
    "shapes",
    [
        {"latent": (1, 4, 8, 8), "noise": (2, 4, 8, 8), "noise1": (3, 4, 8, 8), "image": (1, 3, 64, 64)},
        {"latent": (2, 4, 8, 16), "image": (2, 3, 64, 128)},
        {"latent": (1, 16, 8, 4), "image": (1, 3, 128, 64)},
    ],
)
def test_latents_and_pictures_of_one_run_fit(tmp_path, shapes):
    assert len(Trace.load(holding(tmp_path, **shapes)).records) == len(shapes)


def test_predictions_that_edits_stand_for_have_the_shape_of_the_latents(tmp_path):
    header = HEADER | {"stepped": {"0": "map"}}
    assert "shapes that their stages have" in refusal(written(tmp_path / "run.safetensors", header))


# ---------------------------------------------------------------------------------------------------------------------
# Bytes that are no file


def raw(path, header, body=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def tensor(**more):
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | more}


@pytest.mark.parametrize(
    ("header", "length", "reason"),
    [
        (tensor(), 10**6, "its header is longer than the file"),
        (tensor(), 1, "its header is longer than the file"),
        ({"__metadata__": {"a": 3}}, None, "its metadata are no texts"),
        (tensor(shape=[2, -2]), None, "'a' has no shape or no place"),
        (tensor(shape=[2, True]), None, "'a' has no shape or no place"),
        (tensor(data_offsets=[-1, 15]), None, "'a' has no shape or no place"),
        (tensor(shape=[2, 2, 1, 1, 1, 1, 1, 1, 1]), None, "'a' has no shape or no place"),
        (tensor(shape=[2, 3]), None, "'a' has another size than its shape"),
        (tensor(data_offsets=[0, 12]), None, "'a' has another size than its shape"),
        (tensor(shape=[0, 2**60], data_offsets=[0, 0]), None, "'a' has another size than its shape"),
        (tensor(data_offsets=[1, 17]), None, "'a' lies beyond the end"),
        (tensor(dtype="F8_E5M2"), None, "'F8_E5M2'"),
    ],
)
def test_a_file_whose_own_header_is_wrong_is_no_trace(tmp_path, header, length, reason):
    path = raw(tmp_path / "run.safetensors", header, length=length)
    with pytest.raises(ValueError, match="cut short") as refused:
        Trace.load(path)
    expected = f"{str(path)!r} is cut short or no safetensors file; save the trace again"
    assert (str(refused.value), str(refused.value.__cause__)) == (expected, reason)


def test_a_header_that_ends_a_byte_after_the_file_is_too_long(tmp_path):
    path = raw(tmp_path / "run.safetensors", {}, b"", length=3)
    with pytest.raises(ValueError, match="cut short") as refused:
        Trace.load(path)
    assert str(refused.value.__cause__) == "its header is longer than the file"


def test_a_file_that_reaches_to_its_last_byte_is_whole(tmp_path):
    header = {"__metadata__": {"sdkit_trace": json.dumps(HEADER | {"records": [entry("block", "a")], "stepped": {}})}}
    nested = tensor(shape=[2, 2, 1, 1, 1, 1, 1, 1])
    trace = Trace.load(raw(tmp_path / "run.safetensors", header | nested, struct.pack("<4f", 1, 2, 3, 4)))
    assert trace.records[0].value.flatten().tolist() == [1, 2, 3, 4]


def test_the_least_header_is_read_and_holds_no_trace(tmp_path):
    path = raw(tmp_path / "run.safetensors", {}, b"")
    assert refusal(path) == f"{str(path)!r} holds tensors but no trace; expected a file that Trace.save wrote"


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_value_of_a_file_that_has_changed_since_is_refused(tmp_path, more):
    path = written(tmp_path / "run.safetensors")
    trace = Trace.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] if not more else whole + more)
    with pytest.raises(ValueError, match="was cut short or changed after it had been opened; open it again") as refused:
        _ = trace.records[1].value
    assert repr(str(path)) in str(refused.value)


def test_a_file_of_the_same_length_written_later_has_changed_too(tmp_path):
    path = written(tmp_path / "run.safetensors")
    trace = Trace.load(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="changed after it had been opened"):
        _ = trace.records[1].value


def test_what_is_not_there_is_no_trace(tmp_path):
    for place in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError) as refused:
            Trace.load(place)
        assert str(refused.value) == f"there is no trace {str(place)!r}"


# ---------------------------------------------------------------------------------------------------------------------
# Levels that older files did not hold


SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(("name", "scaled"), [("DDIMScheduler", True), ("EulerDiscreteScheduler", False)])
def test_a_file_without_levels_has_those_of_its_schedule(tmp_path, name, scaled):
    header = {key: value for key, value in HEADER.items() if key != "levels"}
    header["settings"] = {"scheduler": {"class": name, **SCHEDULE}}
    levels = Trace.load(written(tmp_path / "run.safetensors", header)).levels
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = (1 - betas).cumprod(0)[900].item()
    alpha, sigma = signal**0.5, (1 - signal) ** 0.5
    assert list(levels) == [0]
    expected = (900, alpha, sigma) if scaled else (900, 1.0, sigma / alpha)
    assert (levels[0].t, levels[0].alpha, levels[0].sigma) == pytest.approx(expected, rel=1e-5)


def test_a_step_without_a_timestep_has_no_level(tmp_path):
    header = {key: value for key, value in HEADER.items() if key != "levels"} | with_entry(1, t=None)
    header["settings"] = {"scheduler": {"class": "DDIMScheduler", **SCHEDULE}}
    header["records"] = header["records"][:2]
    assert Trace.load(written(tmp_path / "run.safetensors", header)).levels == {}


def test_a_file_of_a_forward_process_without_levels_has_those_of_its_record(tmp_path):
    header = {key: value for key, value in HEADER.items() if key != "levels"}
    header["settings"] = {"levels": [{"t": 0, "alpha": 1.0, "sigma": 0.0}, {"t": 500, "alpha": 0.5, "sigma": 0.8}]}
    levels = Trace.load(written(tmp_path / "run.safetensors", header)).levels
    assert {step: (level.t, level.alpha, level.sigma) for step, level in levels.items()} == {
        0: (0, 1.0, 0.0),
        1: (500, 0.5, 0.8),
    }
