import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkit import Event, Stage, on, run, tap


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
