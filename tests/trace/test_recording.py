"""What a trace keeps of the events that it is shown, and what it answers, without any model."""

import re
import warnings

import pytest
import torch

import sdkit
from sdkit import Event, Stage, Trace
from sdkit.events import Edit, tap
from sdkit.trace.record import Record


def event(stage, step=None, value=None, **more):
    t = None if step is None else 900 - step
    return Event(Stage(stage), torch.full((2, 4), float(step or 0)) if value is None else value, step, t, **more)


def kept(trace):
    return [(record.stage.value, record.step) for record in trace]


def recorded(*events, **options):
    trace = Trace(**options)
    for one in events:
        trace.record(one)
    return trace


def process(steps=3):
    """A process of nobody's: three latents, each doubled."""
    x = torch.ones(1, 4, 2, 2)
    for step in range(steps):
        x = yield from tap(Stage.LATENT, 2 * x, step=step, t=900 - step)
    return x


def test_a_process_without_a_model_is_recorded_too():
    trace = Trace()
    sdkit.run(process(), [trace])
    assert [record.value.mean().item() for record in trace] == [2, 4, 8]
    assert (trace.settings, trace.levels, trace.tokens, trace.model, trace.prompt) == ({}, {}, [], None, None)
    assert repr(trace) == "<Trace of no run: 3 steps, 3 values, 0.0 MB>"


def test_what_no_hook_changed_in_the_context_is_not_said_again():
    changed = event("context", 0, edits=[Edit("hook", 1.0, 1.0)])
    trace = recorded(event("text"), event("context", 0), changed, event("block", 0), event("query", 0))
    assert kept(trace) == [("text", None), ("context", 0)]
    assert kept(recorded(event("context", 0), event("text"), stages=["context"])) == [("context", 0)]


def test_stages_that_are_named_are_kept_alone_those_inside_as_well():
    trace = recorded(event("block", 0, layer="mid_block"), event("latent", 0), stages=[Stage.BLOCK])
    assert kept(trace) == [("block", 0)]
    assert trace.records[0].layer == "mid_block"
    assert trace.records[0].t == 900


def test_each_nth_step_is_kept_and_all_that_belongs_to_none():
    trace = recorded(event("text"), *(event("latent", step) for step in range(7)), event("latent"), every=3)
    assert kept(trace) == [("text", None), ("latent", 0), ("latent", 3), ("latent", 6), ("latent", None)]
    assert trace.steps == [0, 3, 6]


@pytest.mark.parametrize("dtype", ["float16", torch.float16])
def test_a_type_of_number_holds_for_numbers_with_a_point(dtype):
    trace = recorded(event("tokens", value=torch.ones(2, 4, dtype=torch.int64)), event("latent", 0), dtype=dtype)
    assert [record.value.dtype for record in trace] == [torch.int64, torch.float16]


def test_values_do_not_keep_the_graph_that_made_them():
    value = torch.ones(2, 4, requires_grad=True) * 2
    assert not recorded(event("latent", 0, value)).records[0].value.requires_grad


ONE = 2 * 4 * 4  # bytes of a value here


def test_a_budget_that_is_just_enough_is_enough():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = recorded(*(event("latent", step) for step in range(4)), budget=4 * ONE)
    assert trace.steps == [0, 1, 2, 3]


def test_beyond_its_budget_a_trace_keeps_every_second_step_and_says_so():
    with pytest.warns(UserWarning, match="its budget") as said:
        trace = recorded(event("text"), *(event("latent", step) for step in range(16)), budget=4 * ONE)
    assert kept(trace) == [("text", None), ("latent", 0), ("latent", 8)]
    assert trace.every == 8
    assert [str(one.message) for one in said] == [
        f"the trace reached its budget of {4 * ONE} bytes and keeps fewer steps from here on; "
        "give a larger budget, fewer stages or a smaller dtype to keep all"
    ]


def test_the_last_step_stays_however_small_the_budget():
    trace = recorded(event("latent", 0), event("noise", 0), budget=1)
    assert kept(trace) == [("latent", 0), ("noise", 0)]


def test_of_two_steps_one_gives_way():
    with pytest.warns(UserWarning, match="its budget"):
        trace = recorded(event("latent", 0), event("latent", 1), budget=ONE)
    assert kept(trace) == [("latent", 0)]


def test_one_large_value_may_take_the_place_of_many_steps():
    with pytest.warns(UserWarning, match="its budget"):
        trace = recorded(
            *(event("latent", step) for step in range(4)), event("noise", 4, torch.zeros(8, 4)), budget=5 * ONE
        )
    assert kept(trace) == [("latent", 0), ("noise", 4)]


def test_a_budget_is_said_in_bytes_with_their_thousands():
    with pytest.warns(UserWarning, match="its budget of 1,000 bytes"):
        recorded(*(event("latent", step, torch.zeros(100)) for step in range(4)), budget="1KB")


# ---------------------------------------------------------------------------------------------------------------------
# What it answers


@pytest.fixture
def trace():
    return recorded(
        event("text"),
        event("latent", 0),
        event("noise", 0),
        event("block", 2, layer="mid_block"),
        event("block", 2, layer="up_blocks.1"),
        event("latent", 2),
        event("latent", value=torch.full((2, 4), 9.0)),
        stages=["text", "latent", "noise", "block"],
    )


def test_a_trace_is_read_by_stage_and_by_step(trace):
    assert [record.step for record in trace["latent"]] == [0, 2, None]
    assert [record.step for record in trace[Stage.NOISE]] == [0]
    assert list(trace.at(0)) == [Stage.LATENT, Stage.NOISE]
    assert list(trace.at(2)) == [Stage.LATENT]
    assert trace.at(2, "up_blocks.1")[Stage.BLOCK] is trace.records[4]
    assert trace.at(2, layer="mid_block")[Stage.BLOCK] is trace.records[3]
    assert trace.latents.mean().item() == 9.0
    assert trace.images == []
    assert trace.edits == []


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda trace: trace.at(1), "step 1 was not recorded; there are steps 0, 2"),
        (lambda trace: trace.at(1, "mid_block"), "step 1 was not recorded; there are steps 0, 2"),
        (
            lambda trace: trace.at(2, "down_blocks.0"),
            "layer 'down_blocks.0' was not recorded at step 2; there are mid_block, up_blocks.1",
        ),
        (lambda _: Trace().at(0), "step 0 was not recorded; there are none"),
        (
            lambda _: recorded(event("latent", 0)).at(0, "mid_block"),
            "layer 'mid_block' was not recorded at step 0; there are none",
        ),
        (lambda _: Trace().latents, "the trace holds no latents; record a run with the stage 'latent'"),
        (
            lambda _: Trace(dtype=torch.int64),
            "dtype must be one of float32, float16, bfloat16, but is torch.int64",
        ),
    ],
)
def test_what_is_not_there_is_said(trace, ask, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        ask(trace)


@pytest.mark.parametrize("ask", [lambda trace: trace(3), lambda trace: trace.record(None)])
def test_what_is_no_event_is_said(ask):
    with pytest.raises(TypeError, match="event must be"):
        ask(Trace())


def test_another_process_is_another_trace(sd1):
    trace = Trace()
    sdkit.run(process(1), [trace])
    with pytest.raises(ValueError, match="this trace already holds a run; record another run with another Trace"):
        sdkit.text_to_image("a star", model=sd1, num_inference_steps=1, height=64, width=64, hooks=[trace])


def test_pictures_are_those_of_the_stage_of_pictures():
    values = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(1, 3, 2, 2)
    (picture,) = recorded(event("image", value=values.half())).images
    assert picture.getpixel((1, 1)) == (0, 128, 255)


def test_edits_come_with_where_they_were_made():
    edit = Edit("halve", 1.0, 0.5)
    trace = recorded(event("latent", 0), event("noise", 0, edits=[edit]))
    assert trace.edits == [(trace.records[1], edit)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": "a star", "seed": [7]}, "'a star', seed [7]"),
        ({"prompt": None, "seed": [7]}, "from embeddings, seed [7]"),
        ({"process": "forward", "seed": [1]}, "of a forward process, seed [1]"),
    ],
)
def test_a_trace_says_in_a_line_what_it_is_of(trace, settings, words):
    trace.settings = settings
    trace.records.append(Record(Stage.PIXELS, None, None, [], torch.zeros(1_000_000)))
    assert repr(trace) == f"<Trace {words}: 2 steps, 8 values, 4.0 MB>"


def test_a_summary_is_a_table_of_what_was_recorded():
    trace = recorded(
        event("latent", 0, torch.tensor([[1.0, 3.0]])),
        event("latent", 1, torch.tensor([[5.0, 7.0]])),
        event("latent", value=torch.tensor([[2.0, 2.0, 2.0]], dtype=torch.float16)),
    )
    assert trace.summary().splitlines() == [
        "stage          values  shape              dtype         mean      std",
        "latent              2  1x2                float32      4.000    2.582",
        "latent              1  1x3                float16      2.000    0.000",
    ]


def test_a_record_says_in_a_line_what_it_holds():
    value = torch.zeros(2, 3)
    assert repr(Record(Stage.TEXT, None, None, [], value)) == "<Record of stage 'text': (2, 3)>"
    assert repr(Record(Stage.BLOCK, 4, 700, [], value, "mid_block")) == (
        "<Record of stage 'block', step 4 (t=700), layer 'mid_block': (2, 3)>"
    )


def test_a_saved_trace_keeps_what_it_knows_of_its_run(trace, tmp_path):
    trace.parent = {"step": 1, "settings": {}}
    opened = Trace.load(recorded(*[], every=2).save(tmp_path / "empty.safetensors"))
    assert (list(opened), opened.every, opened.parent) == ([], 2, None)
    with pytest.raises(ValueError, match=r"^this trace already holds a run; record another run with another Trace$"):
        opened(event("latent", 0, run=object()))
