"""Recording a run, one file for it, going on from any of its steps, comparing two, running a PNG again."""

import json
import multiprocessing
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import sdkit
from sdkit import Stage, Trace
from sdkit.model.schedulers import SCHEDULERS

OUTER = ("tokens", "text", "latent", "noise", "guided", "denoised", "image")


def record(model, trace=None, hooks=(), **more):
    trace = trace or Trace()
    given = {"seed": 7, "num_inference_steps": 6, "height": 64, "width": 64} | more
    return trace, sdkit.text_to_image("a red star", model=model, hooks=[*hooks, trace], **given)


def same(a, b):
    """Whether two traces hold the same values at the same places, bit for bit."""
    places = [[(r.stage, r.step, r.t) for r in trace] for trace in (a, b)]
    return places[0] == places[1] and all(torch.equal(x.value, y.value) for x, y in zip(a, b, strict=True))


def test_a_trace_keeps_every_outer_stage_of_a_run(sd1):
    seen = []
    trace, result = record(sd1, hooks=[lambda e: seen.append((e.stage, e.step, e.t, e.value))])
    seen = [row for row in seen if row[0] is not Stage.CONTEXT]  # which nobody changed: it is TEXT again
    assert [(r.stage, r.step, r.t) for r in trace] == [row[:3] for row in seen]
    assert all(torch.equal(r.value, row[3]) for r, row in zip(trace, seen, strict=True))
    assert {r.stage for r in trace} == set(OUTER)
    assert trace.steps == list(range(6))
    assert torch.equal(trace[Stage.LATENT][-1].value, result.latents)
    assert torch.equal(trace.at(3)[Stage.DENOISED].value, trace["denoised"][3].value)
    assert trace.images[0].tobytes() == result.image.tobytes()
    assert trace.settings == result.settings
    assert repr(trace).startswith("<Trace 'a red star', seed [7]: 6 steps, 28 values,")
    assert all(stage in trace.summary() for stage in OUTER)


@pytest.mark.filterwarnings("ignore:sdkit/tiny does not know")
def test_tokens_come_with_the_words_that_they_belong_to(tiny):
    trace = Trace(["tokens"])
    next(sdkit.stages("a red zebra", model=tiny))
    for event in sdkit.stages("a red zebra", model=tiny, num_inference_steps=1):
        trace(event)
    negative, prompt = trace.tokens
    assert [token.word for token in negative] == [None] * 32
    assert [(t.text, t.word) for t in prompt[:4]] == [("<|startoftext|>", None), ("a", 0), ("red", 1), ("z", 2)]
    assert [t.word for t in prompt[3:8]] == [2, 2, 2, 2, None]


@pytest.mark.parametrize("place", [0, 1])
def test_values_are_kept_as_the_last_hook_left_them_wherever_the_trace_stands(sd1, place):
    @sdkit.on(Stage.DENOISED)
    def halve(event):
        event.value = event.value / 2

    trace, hooks = Trace(), [halve]
    hooks.insert(place, trace)
    sdkit.text_to_image("a star", model=sd1, seed=1, num_inference_steps=2, height=64, width=64, hooks=hooks)
    (at, edit), *_ = trace.edits
    assert (at.stage, at.step) == (Stage.DENOISED, 0)
    assert "halve" in edit.hook
    assert edit.relative == pytest.approx(0.5)
    assert edit.distance == pytest.approx(at.value.norm().item())
    assert len(trace.edits) == 2


def test_edits_of_a_loop_of_ones_own_are_noted_too(sd1):
    trace = Trace()
    for event in sdkit.stages("a star", model=sd1, seed=1, num_inference_steps=1, height=64, width=64):
        trace(event)
        if event.stage is Stage.GUIDED:
            event.value = torch.zeros_like(event.value)
    assert [(at.stage, edit.relative) for at, edit in trace.edits] == [(Stage.GUIDED, 1.0)]


def test_stages_every_and_dtype_say_what_is_kept(sd1):
    trace, _ = record(sd1, Trace(["latent"], every=4, dtype="float16"))
    assert [(r.stage, r.step) for r in trace] == [("latent", 0), ("latent", 4), ("latent", None)]
    assert {r.value.dtype for r in trace} == {torch.float16}


@pytest.mark.filterwarnings("ignore:the trace reached its budget")
@settings(max_examples=12)
@given(st.integers(500, 60_000), st.sets(st.sampled_from(OUTER), min_size=1), st.integers(1, 3))
def test_no_budget_is_broken_and_every_kept_step_is_whole(sd1, budget, stages, every):
    trace = Trace(stages, every=every, budget=budget)
    record(sd1, trace)
    stepped = sum(r.value.nbytes for r in trace if r.step is not None)
    other = sum(r.value.nbytes for r in trace if r.step is None)
    assert stepped + other <= budget or len(trace.steps) <= 1
    assert all(step % trace.every == 0 for step in trace.steps)
    kept = stages & {"latent", "noise", "guided", "denoised"}
    assert all(set(trace.at(step)) == kept for step in trace.steps)


def test_thinning_is_said_once(sd1):
    with pytest.warns(UserWarning, match="keeps fewer steps") as said:
        record(sd1, Trace(["noise"], budget=3_000))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"budget": "much"}, "budget must be a size"),
        ({"every": 0}, "every must be"),
        ({"stages": ["latents"]}, "^unknown stage 'latents'; did you mean 'latent'"),
        ({"dtype": "float8"}, "unknown dtype"),
    ],
)
def test_what_a_trace_cannot_be_told_is_said(more, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trace(**more)


def test_one_trace_holds_one_run(sd1):
    trace, _ = record(sd1)
    with pytest.raises(ValueError, match="already holds a run"):
        record(sd1, trace)


# ---------------------------------------------------------------------------------------------------------------------
# One file


def test_a_file_holds_all_of_a_trace(sd1, tmp_path):
    trace, _ = record(sd1, guidance_scale=1.0)
    opened = Trace.load(trace.save(tmp_path / "run.safetensors"))
    assert same(opened, trace)
    assert (opened.settings, opened.tokens, opened.steps) == (trace.settings, trace.tokens, trace.steps)
    assert opened.summary() == trace.summary()
    assert same(Trace.load(opened.save(tmp_path / "again.safetensors")), trace)


def test_without_guidance_one_value_is_written_once(sd1, tmp_path):
    guided, _ = record(sd1)
    plain, _ = record(sd1, guidance_scale=1.0)
    names = [load_file(trace.save(tmp_path / "run.safetensors")).keys() for trace in (guided, plain)]
    assert [len(found) for found in names] == [28, 22]


def test_what_is_no_trace_is_refused_in_one_sentence(sd1, tmp_path):
    path = record(sd1)[0].save(tmp_path / "run.safetensors")
    whole = path.read_bytes()
    for name, content, sentence in (
        ("short", whole[: len(whole) // 2], "cut short"),
        ("text", b"hello", "cut short or no safetensors"),
    ):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            Trace.load(tmp_path / f"{name}.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no trace"):
        Trace.load(tmp_path / "foreign.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "new.safetensors", {"sdkit_trace": json.dumps({"format": 99})})
    with pytest.raises(ValueError, match="update sdkit"):
        Trace.load(tmp_path / "new.safetensors")
    with pytest.raises(FileNotFoundError, match="no trace"):
        Trace.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="must end in"):
        record(sd1)[0].save(tmp_path / "run.pt")


def save_for_ever(path, begun):
    trace = Trace.load(path)
    begun.set()
    while True:
        trace.save(path)


def test_a_kill_in_the_middle_of_a_save_leaves_a_whole_file(sd1, tmp_path):
    path, forking = record(sd1)[0].save(tmp_path / "run.safetensors"), multiprocessing.get_context("fork")
    for wait in (0.0, 0.003, 0.007, 0.013, 0.031):
        begun = forking.Event()
        child = forking.Process(target=save_for_ever, args=(path, begun))
        child.start()
        assert begun.wait(timeout=60)
        time.sleep(wait)
        child.kill()
        child.join()
        assert Trace.load(path).steps == list(range(6))


def test_an_interrupted_run_leaves_a_usable_trace_and_the_model_as_it_was(sd1, tmp_path):
    def stop(event):
        if event.stage is Stage.GUIDED and event.step == 3:
            raise KeyboardInterrupt

    trace = Trace()
    with pytest.raises(KeyboardInterrupt):
        record(sd1, trace, hooks=[stop])
    opened = Trace.load(trace.save(tmp_path / "run.safetensors"))
    assert opened.steps == [0, 1, 2, 3]
    assert opened.images == []
    unbroken, _ = record(sd1)
    finished = opened.branch(3, model=sd1)
    assert torch.equal(finished[Stage.LATENT][-1].value, unbroken[Stage.LATENT][-1].value)


# ---------------------------------------------------------------------------------------------------------------------
# Branches


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_branch_without_a_change_gives_the_same_bits_with_every_scheduler(sd1, scheduler):
    trace, result = record(sd1, scheduler=scheduler, num_inference_steps=5)
    for step in (1, len(trace.steps) - 1):
        branch = trace.branch(step)
        assert torch.equal(branch[Stage.LATENT][-1].value, result.latents), step
        assert branch.images[0].tobytes() == result.image.tobytes()


EDITABLE = ("latent", "noise", "guided", "denoised")


@settings(max_examples=10)
@given(
    st.dictionaries(st.tuples(st.sampled_from(EDITABLE), st.integers(0, 5)), st.floats(0.5, 1.5), max_size=4),
    st.integers(0, 5),
    st.sampled_from(["ddpm", "dpmpp_2m_karras", "euler_a", "deis"]),
)
def test_a_branch_after_any_edits_goes_on_as_the_run_did(sd1, edits, step, scheduler):
    def edit(event):
        if (event.stage.value, event.step) in edits:
            event.value = event.value * edits[event.stage.value, event.step]

    trace, result = record(sd1, scheduler=scheduler, hooks=[edit])
    assert torch.equal(trace.branch(step, hooks=[edit])[Stage.LATENT][-1].value, result.latents)


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpmpp_2m", "unipc"])
def test_a_branch_of_an_edited_run_keeps_its_edits(sd1, scheduler):
    def darken(event):
        if event.stage is Stage.DENOISED and event.step == 1:
            event.value = event.value * 0.5
        if event.stage is Stage.LATENT and event.step == 2:
            event.value = event.value + 0.1

    trace, result = record(sd1, scheduler=scheduler, hooks=[darken])
    assert torch.equal(trace.branch(4)[Stage.LATENT][-1].value, result.latents)


def test_a_branch_of_image_to_image_goes_on_exactly(sd1):
    trace = Trace()
    picture = sdkit.text_to_image("a star", model=sd1, num_inference_steps=1, height=64, width=64).image
    result = sdkit.image_to_image(
        picture, "a star", model=sd1, seed=3, num_inference_steps=6, strength=0.7, scheduler="ddpm", hooks=[trace],
        num_images_per_prompt=2,
    )  # fmt: skip
    assert torch.equal(trace.branch(2)[Stage.LATENT][-1].value, result.latents)


def test_a_branch_with_other_words_parts_where_it_is_told_and_knows_its_parent(tiny):
    trace = Trace()
    sdkit.text_to_image("a red star on a white background", seed=3, num_inference_steps=8, hooks=[trace])
    branch = trace.branch(3, prompt="a blue star on a white background")
    assert branch.parent == {"step": 3, "settings": trace.settings}
    assert branch.prompt == "a blue star on a white background"
    assert [torch.equal(a.value, b.value) for a, b in zip(trace["latent"], branch["latent"], strict=True)] == (
        [True] * 4 + [False] * 5
    )
    parting = [row for row in trace.compare(branch) if row.stage is Stage.LATENT and row.distance]
    assert parting[0].step == 4
    assert branch.branch(5).images[0].tobytes() == branch.images[0].tobytes()


def test_a_branch_needs_the_steps_before_it(sd1):
    trace, _ = record(sd1, Trace(every=2))
    with pytest.raises(ValueError, match="every=1"):
        trace.branch(4)
    whole, _ = record(sd1)
    with pytest.raises(ValueError, match="0 to 5"):
        whole.branch(6)
    with pytest.raises(ValueError, match="did you mean 'prompt'"):
        whole.branch(2, promt="a cat")
    unseeded, _ = record(sd1, seed=None, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="no seed"):
        unseeded.branch(2)


@pytest.mark.slow
def test_another_process_opens_and_branches_a_trace(tiny, tmp_path):
    trace = Trace()
    result = sdkit.text_to_image("a red star", seed=3, num_inference_steps=4, scheduler="dpmpp_2m", hooks=[trace])
    trace.save(tmp_path / "run.safetensors")
    code = (
        "import sys, torch, sdkit; torch.set_num_threads(int(sys.argv[2]))\n"
        "t = sdkit.Trace.load(sys.argv[1]); b = t.branch(2)\n"
        "assert t.compare(b).parting is None, t.compare(b).parting\n"
        "b.images[0].save(sys.argv[1] + '.png')"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "run.safetensors", str(torch.get_num_threads())], check=True)
    assert Image.open(tmp_path / "run.safetensors.png").tobytes() == result.image.tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# Comparing, and running again


def test_a_run_compared_with_itself_differs_nowhere(sd1):
    one, other = record(sd1)[0], record(sd1)[0]
    compared = one.compare(other)
    assert compared.parting is None
    assert len(compared) == len(list(one))
    assert compared[-1].psnr == float("inf")
    assert all(row.cosine == pytest.approx(1) for row in compared)


def test_two_seeds_part_at_the_first_latent_and_two_scales_at_the_first_guidance(sd1):
    one = record(sd1)[0]
    assert one.compare(record(sd1, seed=8)[0]).parting.stage is Stage.LATENT
    compared = one.compare(record(sd1, guidance_scale=3.0)[0])
    assert (compared.parting.stage, compared.parting.step) == (Stage.GUIDED, 0)
    a, b = (trace[Stage.GUIDED][0].value.double() for trace in (one, record(sd1, guidance_scale=3.0)[0]))
    assert compared.parting.distance == pytest.approx((a - b).norm().item())
    assert len(str(compared).splitlines()) == 2 + 1 + len(compared)  # the verdict and a gap, the head


def test_a_png_can_be_run_again_to_the_same_bytes(tiny, tmp_path):
    made = sdkit.text_to_image(
        ["a red star", "a cat"], seed=5, num_inference_steps=3, scheduler="euler_a", guidance_scale=3.0
    )
    for path in made.save(tmp_path / "out.png"):
        (again,) = sdkit.rerun(path).save(tmp_path / "again.png")
        assert again.read_bytes() == path.read_bytes()


def test_a_variation_can_be_run_again_from_its_picture(tiny, tmp_path):
    star = sdkit.text_to_image("a star", seed=1, num_inference_steps=2).image
    (path,) = sdkit.image_to_image(star, "a red star", seed=5, num_inference_steps=4).save(tmp_path / "out.png")
    (again,) = sdkit.rerun(path, image=star).save(tmp_path / "again.png")
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="was made from image; give that picture as image"):
        sdkit.rerun(path)


def test_a_rerun_of_an_edited_picture_asks_for_its_hooks(sd1, tmp_path):
    @sdkit.on(Stage.GUIDED)
    def halve(event):
        event.value = event.value / 2

    _, result = record(sd1, hooks=[halve])
    (path,) = result.save(tmp_path / "out.png")
    with pytest.warns(UserWarning, match="halve; give them again"):
        sdkit.rerun(path, model=sd1)
    (again,) = sdkit.rerun(path, model=sd1, hooks=[halve]).save(tmp_path / "again.png")
    assert again.read_bytes() == path.read_bytes()


def test_a_rerun_says_what_differs(sd1, tmp_path):
    (path,) = record(sd1)[1].save(tmp_path / "out.png")
    unet = sd1.unet.conv_out.bias
    with torch.no_grad():
        unet += 1
    try:
        with pytest.warns(UserWarning, match="model_hash was"):
            sdkit.rerun(path, model=sd1)
    finally:
        with torch.no_grad():
            unet -= 1


def test_a_run_from_a_generator_cannot_be_run_again(sd1, tmp_path):
    _, result = record(sd1, seed=None, generator=torch.Generator().manual_seed(0))
    (path,) = result.save(tmp_path / "out.png")
    with pytest.raises(ValueError, match="a generator"):
        sdkit.rerun(path, model=sd1)


def test_a_run_from_embeddings_can_be_neither_branched_nor_run_again(sd1, tmp_path):
    trace = Trace()
    embeds = torch.zeros(1, 32, 32)
    result = sdkit.text_to_image(model=sd1, prompt_embeds=embeds, seed=1, num_inference_steps=2, hooks=[trace])
    with pytest.raises(ValueError, match="was given embeddings"):
        trace.branch(1)
    (path,) = result.save(tmp_path / "out.png")
    with pytest.raises(ValueError, match="made from prompt_embeds"):
        sdkit.rerun(path, model=sd1)


def test_a_run_with_timesteps_of_its_own_branches_and_reruns(sd1, tmp_path):
    trace, result = record(sd1, scheduler="euler", num_inference_steps=None, timesteps=[900, 600, 300, 100])
    assert torch.equal(trace.branch(2)[Stage.LATENT][-1].value, result.latents)
    (path,) = result.save(tmp_path / "out.png")
    (again,) = sdkit.rerun(path, model=sd1).save(tmp_path / "again.png")
    assert again.read_bytes() == path.read_bytes()


DATA = Path(__file__).parents[1] / "data"


def test_a_trace_of_the_first_version_opens_with_its_levels_worked_out():
    """Made by `text_to_image("a red star", seed=7, num_inference_steps=3, scheduler="euler")`."""
    trace = Trace.load(DATA / "first_version.safetensors")
    assert (trace.prompt, trace.steps, trace.settings["seed"]) == ("a red star", [0, 1, 2], [7])
    assert [token.text for token in trace.tokens[1][:4]] == ["<|startoftext|>", "a", "red", "star"]
    for step, level in trace.levels.items():
        at = trace.at(step)
        x, x0, v = (at[stage].value.double() for stage in (Stage.LATENT, Stage.DENOISED, Stage.GUIDED))
        noise = (level.sigma * x / (1 + level.sigma**2) ** 0.5 + v) / (1 + level.sigma**2) ** 0.5  # eps of x and v
        assert level.alpha == 1
        assert (x0 + level.sigma * noise - x).norm() / x.norm() < 0.05
    assert "step 2, t = " in trace._repr_html_()


def test_a_picture_of_the_first_version_is_made_again_from_its_settings(tiny):
    settings = sdkit.read_settings(DATA / "first_version.png")
    assert (settings["prompt"], settings["seed"]) == ("a red star", [7])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that weights and versions have changed since then
        again = sdkit.rerun(DATA / "first_version.png", model=tiny)
    plain = sdkit.text_to_image(
        "a red star", model=tiny, seed=7, num_inference_steps=3, scheduler="euler", guidance_scale=5
    )
    assert torch.equal(again.latents, plain.latents)
