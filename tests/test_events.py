import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkit import Event, Stage, on, run, tap
from sdkit.events import Edit, show, within
from sdkit.noise import NoiseLevel


def countdown(x):
    """A process of two stages: what is shown at the first decides the second."""
    x = yield from tap(Stage.LATENT, x, step=0, t=999)
    x = yield from tap(Stage.IMAGE, 2 * x)
    return x


def test_a_process_goes_on_with_what_it_is_handed_back():
    @on(Stage.LATENT)
    def add_one(event):
        event.value = event.value + 1

    assert torch.equal(run(countdown(torch.zeros(3)), [add_one]), torch.full((3,), 2.0))


def test_hooks_are_called_in_their_order():
    def add_one(event):
        event.value = event.value + 1

    def double(event):
        event.value = event.value * 2

    assert torch.equal(run(countdown(torch.ones(1)), [add_one, double]), torch.tensor([18.0]))
    assert torch.equal(run(countdown(torch.ones(1)), [double, add_one]), torch.tensor([13.0]))


def test_an_untouched_value_is_the_very_same_tensor():
    x = torch.ones(2)
    seen = tap(Stage.TEXT, x)
    next(seen)
    with pytest.raises(StopIteration) as end:
        next(seen)
    assert end.value.value is x


@given(st.lists(st.sampled_from(list(Stage)), min_size=1))
def test_on_calls_a_hook_at_its_stages_alone(chosen):
    called = []
    hook = on(*chosen)(lambda event: called.append(event.stage))
    for stage in Stage:
        hook(Event(stage, torch.zeros(1)))
    assert called == [stage for stage in Stage if stage in chosen]


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.zeros(2, 3), ValueError, r"stage 'latent', step 0 \(t=999\).*shape \(2, 3\).*\(3,\)"),
        (torch.zeros(3, dtype=torch.float64), ValueError, "stage 'latent', step 0.*torch.float64.*torch.float32"),
        (torch.zeros(3, device="meta"), ValueError, "stage 'latent', step 0.*meta.*cpu"),
        ([1, 2, 3], TypeError, "stage 'latent', step 0.*list"),
    ],
)
def test_an_edit_that_does_not_fit_names_its_stage(value, error, words):
    def edit(event):
        event.value = value

    with pytest.raises(error, match=words):
        run(countdown(torch.zeros(3)), [edit])


def test_a_change_in_place_is_refused_because_the_caller_may_hold_the_same_tensor():
    def mutate(event):
        event.value.add_(1)

    with pytest.raises(ValueError, match=r"stage 'latent', step 0.*in place"):
        run(countdown(torch.zeros(3)), [mutate])


def test_an_edit_leaves_its_graph_behind():
    def edit(event):
        event.value = event.value * torch.ones(3, requires_grad=True)

    assert not run(countdown(torch.ones(3)), [edit]).requires_grad


def test_an_exception_in_a_hook_passes_unchanged_with_a_note_of_hook_stage_and_step():
    def clumsy(event):
        raise KeyError("lost")

    with pytest.raises(KeyError) as caught:
        run(countdown(torch.zeros(1)), [clumsy])
    (note,) = caught.value.__notes__
    assert "clumsy" in note
    assert "stage 'latent', step 0 (t=999)" in note


def test_a_process_is_closed_when_a_hook_raises():
    closed = []

    def process():
        try:
            yield Event(Stage.TEXT, torch.zeros(1))
        finally:
            closed.append(True)

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(process(), [stop])
    assert closed == [True]


def test_hooks_run_in_the_grad_mode_of_the_caller():
    modes = []

    def look(event):
        modes.append(torch.is_grad_enabled())

    run(countdown(torch.zeros(1)), [look])
    with torch.no_grad():
        run(countdown(torch.zeros(1)), [look])
    assert modes == [True, True, False, False]


def test_two_processes_driven_in_turn_do_not_touch_one_another():
    one, two = countdown(torch.ones(1)), countdown(torch.ones(1))
    first, second = next(one), next(two)
    second.value = second.value * 10
    assert torch.equal(one.send(None).value, torch.tensor([2.0]))
    assert torch.equal(two.send(None).value, torch.tensor([20.0]))
    assert torch.equal(first.value, torch.ones(1))


def test_a_hook_without_brackets_is_told_to_be_a_list():
    with pytest.raises(TypeError, match="put 'print' in brackets"):
        run(countdown(torch.zeros(1)), print)


@pytest.mark.parametrize("stages", [(), ("latnet",)])
def test_on_without_a_known_stage_says_which_there_are(stages):
    known = "tokens, text, pooled, pixels, mask, posterior, latent, context, noise, guided, denoised, image"
    with pytest.raises(ValueError, match=known):
        on(*stages)


def test_an_event_shows_where_it_is_and_not_its_numbers():
    event = Event(Stage.NOISE, torch.zeros(2, 4, 8, 8), step=3, t=851)
    assert repr(event) == "<Event stage 'noise', step 3 (t=851): (2, 4, 8, 8) torch.float32 on cpu>"


def test_an_event_of_a_layer_names_it():
    (event,) = list(tap(Stage.BLOCK, torch.ones(1), step=2, t=99, layer="mid_block"))
    assert str(event) == "stage 'block', step 2 (t=99), layer 'mid_block'"
    assert str(Event(Stage.TEXT, torch.ones(1))) == "stage 'text'"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (5, "5"),
        ("x" * 78, repr("x" * 78)),  # 80 letters with its quotes
        ("x" * 79, "a str"),
        (np.zeros((2, 1)), "a ndarray"),  # which takes two lines
    ],
)
def test_what_is_no_tensor_or_no_process_is_told_as_far_as_a_sentence_holds_it(value, told):
    with pytest.raises(TypeError, match=f"^value must be a tensor, but is {re.escape(told)}$"):
        next(tap(Stage.IMAGE, value))
    with pytest.raises(
        TypeError, match=f"^events must be what sdkit.stages or a process gives, but is {re.escape(told)}$"
    ):
        run(value)


def test_a_hook_for_the_inside_of_the_unet_comes_too_late_for_events_under_way():
    late = on("attention", "block")(print)
    with pytest.raises(
        ValueError,
        match=r"^'print' names attention, block, which is shown to the hooks of the function "
        r"that begins the run alone; give it there, as in sdkit.stages\(..., hooks=\[...\]\)$",
    ):
        run(countdown(torch.ones(1)), [late])


def edits_of(value, new, *, by_hook):
    """What an event says of its edits when everybody has left it."""

    def replaces(event):
        event.value = new

    events = show(Event(Stage.CONTEXT, value), [replaces] if by_hook else ())
    event = next(events)
    if not by_hook:
        replaces(event)
    list(events)
    return event.edits


@pytest.mark.parametrize(("by_hook", "name"), [(True, "replaces"), (False, "the loop that drives the run")])
def test_an_edit_says_who_replaced_the_value_and_by_how_much(by_hook, name):
    value = torch.tensor([[[3.0, 4.0]]])
    assert edits_of(value, torch.tensor([[[3.0, 6.0]]]), by_hook=by_hook) == [Edit(name, 2.0, 0.4)]
    assert edits_of(value, torch.zeros(1, 2, 2), by_hook=by_hook) == [Edit(name, math.inf, math.inf)]  # another shape
    assert edits_of(0 * value, value, by_hook=by_hook) == [Edit(name, 5.0, math.inf)]
    assert edits_of(value, value, by_hook=by_hook) == []


def test_each_of_two_edits_is_measured_from_what_the_one_before_left():
    def first(event):
        event.value = event.value + 1

    def second(event):
        event.value = event.value * 2

    events = show(Event(Stage.LATENT, torch.zeros(4)), [first, second])
    event = next(events)
    event.value = event.value - 2
    list(events)
    assert event.edits == [
        Edit("first", 2.0, math.inf),
        Edit("second", 2.0, 1.0),
        Edit("the loop that drives the run", 4.0, 1.0),
    ]


def test_gradients_flow_through_an_edit_of_a_value_that_wants_them():
    x = torch.ones(2, requires_grad=True)
    edited = run(countdown(x), [on(Stage.LATENT)(lambda event: setattr(event, "value", event.value * 3))])
    edited.sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 6.0))


@pytest.mark.parametrize(
    ("stage", "layer", "new", "fits"),
    [
        (Stage.CONTEXT, None, (6, 9, 8), True),
        (Stage.CONTEXT, None, (2, 9, 5), False),
        (Stage.CONTEXT, None, (2, 0, 8), False),
        (Stage.CONTEXT, None, (9, 8), False),
        (Stage.CONTEXT, "pooled", (2, 9, 8), False),
        (Stage.KEY, "mid_block", (2, 9, 8), True),
        (Stage.KEY, "mid_block", (6, 4, 8), False),
        (Stage.TEXT, None, (2, 9, 8), False),
    ],
    ids=str,
)
def test_what_the_unet_hears_may_become_longer_and_nothing_else(stage, layer, new, fits):
    events = tap(stage, torch.zeros(2, 4, 8), layer=layer)
    next(events).value = torch.zeros(new)
    with pytest.raises(StopIteration if fits else ValueError) as end:
        next(events)
    if fits:
        assert end.value.value.shape == new
    else:
        assert f"to a tensor of shape {new}, but shape " in str(end.value)


def test_a_part_lies_within_itself_and_what_holds_it_and_not_within_what_begins_alike():
    assert within("up_blocks.1", "up_blocks.1")
    assert within("up_blocks.1.attentions.0", "up_blocks.1")
    assert not within("up_blocks.10", "up_blocks.1")
    assert within(None, None)
    assert not within(None, "mid_block")


@pytest.mark.parametrize(
    ("hooks", "sentence"),
    [
        (5, "hooks must be a list of functions, but is 5"),
        ("print", "hooks must be a list of functions, but is 'print'"),
        ([print, "trace"], "a hook is a function that takes an Event, but hooks holds 'trace'"),
        ([dict], "hooks holds the class dict; make one of it: hooks=[dict()]"),
    ],
    ids=str,
)
def test_what_are_no_hooks_is_said(hooks, sentence):
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        run(countdown(torch.ones(1)), hooks)


@pytest.mark.parametrize("steps", ["0", b"0", 5, [1.5], [0, True], ["0"], (None,), np.array([0.5])], ids=str)
def test_steps_are_whole_numbers_in_a_list_or_a_range(steps):
    told = steps.tolist() if isinstance(steps, np.ndarray) else steps
    sentence = f"steps must be a list or a range of whole numbers, or None, but is {told!r}"
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        on(Stage.LATENT, steps=steps)


def test_a_layer_is_a_name():
    with pytest.raises(TypeError, match=r"^layer must be a name, such as 'mid_block', or None, but is 3$"):
        on(Stage.BLOCK, layer=3)


def test_a_stage_that_is_none_is_told():
    with pytest.raises(ValueError, match=r"^unknown stage 'latents'; expected one of tokens, "):
        on("latents")


@pytest.mark.parametrize("steps", [[1, 3], (1, 3), {1, 3}, range(1, 4, 2), np.array([1, 3]), [np.int64(1), 3]], ids=str)
def test_a_narrowed_hook_is_called_at_its_steps_and_in_its_layer_alone(steps):
    called = []
    hook = on(Stage.BLOCK, layer="up_blocks.1", steps=steps)(lambda event: called.append((event.step, event.layer)))
    for step in range(5):
        for layer in ("up_blocks.1", "up_blocks.1.resnets.0", "up_blocks.2", None):
            hook(Event(Stage.BLOCK, torch.ones(1), step=step, layer=layer))
    assert called == [(step, layer) for step in (1, 3) for layer in ("up_blocks.1", "up_blocks.1.resnets.0")]
    assert (hook.stages, hook.layer) == ({Stage.BLOCK}, "up_blocks.1")


def test_a_narrowed_hook_has_the_name_and_the_words_of_its_hook():
    def darken(event):
        """Darker."""

    narrowed = on(Stage.IMAGE)(darken)
    assert (narrowed.__name__, narrowed.__qualname__, narrowed.__doc__) == ("darken", "darken", "Darker.")


def test_a_hook_that_is_an_object_has_the_name_of_its_class():
    class Watcher:
        def __call__(self, _event):
            raise RuntimeError("seen enough")

    with pytest.raises(RuntimeError) as error:
        run(countdown(torch.ones(1)), [Watcher()])
    assert error.value.__notes__ == ["raised by hook 'Watcher' at stage 'latent', step 0 (t=999)"]


def test_what_is_to_be_called_later_is_called_once_with_what_everybody_left():
    left = []

    def keep(event):
        event.later(look)
        event.later(look)
        event.value = event.value + 1

    def look(event):
        left.append((str(event), event.value.item()))

    shown = show(Event(Stage.IMAGE, torch.zeros(1)), [keep])
    event = next(shown)
    event.value = event.value * 5
    assert left == []
    list(shown)
    assert left == [("stage 'image'", 5.0)]


def test_a_loop_that_leaves_in_the_middle_has_seen_what_was():
    left = []
    shown = show(
        Event(Stage.IMAGE, torch.ones(1)), [lambda event: event.later(lambda one: left.append(one.value.item()))]
    )
    next(shown)
    shown.close()
    assert left == [1.0]


def test_a_change_in_place_passes_unseen_under_inference_mode():
    with torch.inference_mode():
        events = countdown(torch.ones(2))
        next(events).value.mul_(2)
        assert torch.equal(next(events).value, torch.full((2,), 4.0))
        events.close()


def test_an_event_knows_its_level_where_its_run_wrote_one_down():
    level = SimpleNamespace(levels={3: NoiseLevel(500, 0.6, 0.8)})
    known = Event(Stage.NOISE, torch.ones(1), step=3, run=level)
    assert (known.alpha, known.sigma) == (0.6, 0.8)
    for other in (
        Event(Stage.NOISE, torch.ones(1), step=3),
        Event(Stage.TEXT, torch.ones(1), run=level),
        Event(Stage.NOISE, torch.ones(1), step=4, run=level),
    ):
        assert (other.alpha, other.sigma) == (None, None)
