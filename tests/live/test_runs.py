"""What visitors may ask for, as messages: they tell the run that the functions make, and change it as they say."""

import base64

import numpy as np
import pytest
import torch
from PIL import Image
from visiting import messages, sent, shown

import sdkit
from sdkit import Stage
from sdkit.live import looking, runs
from sdkit.live.files import DOWNLOADS, download
from sdkit.live.kept import Kept, Shelf
from sdkit.live.limits import FORMATS
from sdkit.live.studio import METHODS, Studio
from sdkit.pictures import save_picture
from tests.show.test_report import unpacked

STAR = "a red star on a blue background"
FEW = {"seed": 7, "num_inference_steps": 5}


@pytest.fixture(autouse=True)
def _each_step_alone(monkeypatch):
    """However fast the machine is, every step comes in a message of its own."""
    monkeypatch.setattr(runs, "EVERY", 0)


def told(stream, kind):
    return [message for message in messages(stream) if message["kind"] == kind]


def run_of(studio, prompt=STAR, **options):
    """A kept run from words."""
    (end,) = told(runs.generate(studio, prompt, **{**FEW, **options}), "end")
    return studio.shelf.get(end["run"])


def as_sent(raw):
    return base64.b64encode(raw).decode()


def equal(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def test_the_page_draws_what_the_function_draws(studio, tiny):
    all_of_it = messages(runs.generate(studio, STAR, **FEW))
    assert [one["kind"] for one in all_of_it] == ["queued", "begin", *["step"] * 5, "end"]
    picture = sdkit.text_to_image(STAR, model=tiny, **FEW).image
    assert equal(studio.shelf.get(all_of_it[-1]["run"]).trace.images[0], picture)
    assert equal(shown(all_of_it[-1]["picture"]), picture)
    assert (all_of_it[1]["seed"], all_of_it[1]["steps"], all_of_it[1]["words"][:3]) == (7, 5, ["a", "red", "star"])


def test_each_step_is_told_with_its_numbers(studio, tiny):
    trace, maps = sdkit.Trace(), sdkit.AttentionMaps()
    sdkit.text_to_image(STAR, model=tiny, hooks=[trace, maps], **FEW)
    for step, message in enumerate(told(runs.generate(studio, STAR, **FEW), "step")):
        assert message["level"]["t"] == trace.levels[step].t
        for name, stage in (("x", Stage.LATENT), ("x0", Stage.DENOISED), ("guided", Stage.GUIDED)):
            assert torch.allclose(
                unpacked(message["values"][name])[0].float(), trace.at(step)[stage].value[0], atol=3e-4
            )
        assert message["heat_shape"] == [6, 16, 16]


@pytest.mark.filterwarnings("ignore:sdkit/tiny does not know")
def test_words_that_the_model_has_never_read_are_said(studio, tiny):
    assert tiny.unknown_words("A red dragon, on the moon: a star!") == ["dragon", "moon"]
    assert messages(runs.generate(studio, "a dragon", num_inference_steps=1))[0]["unknown"] == ["dragon"]
    assert {"star", "mushroom", "background", "a"} <= set(studio.about()["vocabulary"])


def test_a_run_that_was_paused_goes_on_as_if_it_had_not_been(studio, tiny):
    stream = runs.generate(studio, STAR, **FEW)
    (queued,), (*_, step) = next(stream), next(stream)
    studio.wish(queued["run"], "pause")
    rest = messages(stream)
    assert rest[-1]["paused"]
    assert rest[-1]["picture"] is None
    last = max([step["level"]["step"], *(one["level"]["step"] for one in rest if one["kind"] == "step")])
    assert last < 4
    whole = messages(runs.go_on(studio, queued["run"], last + 1))
    assert [one["level"]["step"] for one in whole if one["kind"] == "step"] == list(range(5))
    assert equal(shown(whole[-1]["picture"]), sdkit.text_to_image(STAR, model=tiny, **FEW).image)


def test_a_run_can_be_taken_step_by_step(studio, tiny):
    run = told(runs.go_on(studio, run_of(studio).name, 2, steps=1), "end")[0]
    assert run["paused"]
    assert studio.shelf.get(run["run"]).trace.steps == [0, 1, 2]
    end = told(runs.go_on(studio, run["run"], 3, steps=2), "end")[0]
    assert not end["paused"]  # the last step has a picture
    assert equal(shown(end["picture"]), sdkit.text_to_image(STAR, model=tiny, **FEW).image)


def test_other_words_from_a_step_on_are_a_branch(studio, tiny):
    parent, words = run_of(studio), "a green heart on a blue background"
    everything = messages(runs.go_on(studio, parent.name, 2, prompt=words, guidance_scale=3.0))
    branch = parent.trace.branch(2, model=tiny, prompt=words, guidance_scale=3.0)
    kept = studio.shelf.get(everything[-1]["run"])
    assert torch.equal(kept.trace.latents, branch.latents)
    assert kept.trace.parent == branch.parent
    steps = [one for one in everything if one["kind"] == "step"]
    assert [one["level"]["step"] for one in steps] == list(range(5))
    assert torch.allclose(
        unpacked(steps[1]["values"]["x0"])[0].float(), parent.trace.at(1)[Stage.DENOISED].value[0], atol=3e-4
    )
    assert kept.maps.heat("heart", step=1).abs().sum() == 0  # nobody had said it yet
    assert torch.equal(kept.maps.heat("blue", step=1), parent.maps.heat("blue", step=1))
    assert kept.maps.heat("heart", step=3).max() == 1


def test_two_runs_advance_together_each_as_if_alone(studio):
    heart = {"prompt": "a red heart", "seed": 3, "num_inference_steps": 3, "scheduler": "euler", "method": "free_u"}
    everything = messages(runs.compare(studio, {"prompt": STAR, **FEW}, heart))
    steps = [one["side"] for one in everything if one["kind"] == "step"]
    assert steps == [0, 1, 0, 1, 0, 1, 0, 0]
    ends = {one["side"]: studio.shelf.get(one["run"]).trace for one in everything if one["kind"] == "end"}
    assert torch.equal(ends[0].latents, run_of(studio).trace.latents)
    assert torch.equal(ends[1].latents, run_of(studio, **heart).trace.latents)


def test_who_leaves_a_comparison_ends_both_runs(studio):
    stream = runs.compare(studio, {"prompt": STAR, **FEW}, {"prompt": "a cat", **FEW})
    names = [message["run"] for _ in range(2) for message in next(stream)]
    next(stream)  # the first step of the one
    stream.close()
    assert [studio.shelf.get(name).trace.steps for name in names] == [[0, 1], []]


@pytest.mark.parametrize(
    ("side", "match"),
    [
        ({"prompt": STAR, "hooks": []}, "unknown argument 'hooks'"),
        ({"seed": 7}, "each side of a comparison"),
        ("a star", "each side of a comparison"),
        ({"prompt": STAR, "num_inference_steps": 1000}, "at most 100"),
    ],
)
def test_a_comparison_that_cannot_be_is_said_in_one_sentence(studio, side, match):
    for a, b in (({"prompt": STAR}, side), (side, {"prompt": STAR})):
        with pytest.raises(ValueError, match=match):
            messages(runs.compare(studio, a, b))


def test_stop_keeps_the_picture_that_was_predicted(studio):
    stream = runs.generate(studio, STAR, **FEW)
    (queued,) = next(stream)
    studio.wish(queued["run"], "stop")
    end = messages(stream)[-1]
    trace = studio.shelf.get(queued["run"]).trace
    assert trace.steps == [0]
    assert torch.equal(trace.latents, trace.at(0)[Stage.DENOISED].value)
    assert equal(shown(end["picture"]), trace.images[0])


def test_a_visitor_who_leaves_ends_the_run(studio):
    stream = runs.generate(studio, STAR, **FEW)
    (queued,) = next(stream)
    next(stream)  # the first step
    stream.close()
    assert studio.shelf.get(queued["run"]).trace.steps == [0, 1]
    film = looking.interpolate(studio, STAR, "a cat", frames=20, num_inference_steps=2)
    next(film)
    film.close()  # waits for its thread, which the hook ends


@pytest.mark.parametrize(
    "method", [pytest.param(one, marks=pytest.mark.slow) for one in METHODS[3:]] + list(METHODS[:3])
)
def test_every_method_of_the_page_changes_the_picture(studio, method):
    plain, other = (run_of(studio, method=one).trace.latents for one in ("", method))
    assert not torch.equal(plain, other)


def test_a_branch_goes_on_with_the_method_of_its_run(studio):
    run = run_of(studio, method="pag")
    (end,) = told(runs.go_on(studio, run.name, 2), "end")
    assert torch.equal(studio.shelf.get(end["run"]).trace.latents, run.trace.latents)


# ---------------------------------------------------------------------------------------------------------------------
# Painting


def test_paint_changes_the_predicted_picture_where_it_is(studio, tiny):
    run, cells = run_of(studio), torch.full((16, 16), -1)
    cells[2:6, 2:6] = 0
    paint = {"height": 16, "width": 16, "cells": cells.flatten().tolist(), "colours": ["#00c000"]}
    (end,) = told(runs.go_on(studio, run.name, 3, paint=paint), "end")
    before, after = (one.at(3)[Stage.DENOISED].value for one in (run.trace, studio.shelf.get(end["run"]).trace))
    changed = (before != after).any(1)[0]
    assert torch.equal(changed, cells >= 0)
    red, green, blue = tiny.decode(after)[0, :, 24:40, 24:40].mean((1, 2)).tolist()
    assert green > max(red, blue) + 0.5


def test_a_word_acts_where_it_is_painted(studio):
    run, where = run_of(studio), torch.zeros(8, 8, dtype=torch.int64)
    where[:, :4], where[:, 4:] = 1, -1
    look = {"height": 8, "width": 8, "cells": where.flatten().tolist(), "word": "star"}
    (end,) = told(runs.go_on(studio, run.name, 0, look=look), "end")
    maps = run.maps, studio.shelf.get(end["run"]).maps.after
    before, after = (one.share("star", step=0, resolution=(16, 16)) for one in maps)
    assert (after[:, :8] > before[:, :8]).all()
    assert (after[:, 8:] < before[:, 8:]).all()


@pytest.mark.parametrize(
    ("paint", "match"),
    [
        ({"height": 2, "width": 2, "cells": [0], "colours": ["#000000"]}, "as many cells"),
        ({"height": 10**6, "width": 10**6, "cells": [], "colours": []}, "at most"),
        ({"height": 1, "width": 1, "cells": [1], "colours": ["#000000"]}, "from -1 to 0"),
        ({"height": 1, "width": 1, "cells": [0], "colours": ["red"]}, "colours of a painting"),
        ({"height": "1", "width": 1, "cells": [0], "colours": []}, "height, width"),
        ([1], "colours of a painting"),
    ],
)
def test_a_painting_that_is_none_is_said_in_one_sentence(studio, paint, match):
    with pytest.raises(ValueError, match=match):
        messages(runs.go_on(studio, run_of(studio).name, 1, paint=paint))


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def test_a_picture_is_gone_on_with_under_other_words(studio, tiny):
    start = sdkit.text_to_image(STAR, model=tiny, **FEW).image
    options = {"strength": 0.6, "seed": 3, "num_inference_steps": 5}
    (end,) = told(runs.generate(studio, "a green star", image=sent(start), **options), "end")
    assert equal(shown(end["picture"]), sdkit.image_to_image(start, "a green star", model=tiny, **options).image)
    mask = Image.new("L", start.size)
    mask.paste(255, (0, 0, 64, 128))
    given = {"image": sent(start), "mask_image": sent(mask), **options}
    (end,) = told(runs.generate(studio, "a green star", **given), "end")
    painted = sdkit.image_to_image(start, "a green star", mask_image=mask, model=tiny, **options).image
    assert equal(shown(end["picture"]), painted)


def test_the_noise_of_a_strength_is_told_before_it_runs(studio):
    (seen,) = messages(looking.noised(studio, sent(Image.new("RGB", (64, 64), "red")), strength=0.5, seed=1))
    (begin,) = told(runs.generate(studio, "", image=sent(Image.new("RGB", (64, 64), "red")), strength=0.5), "begin")
    assert (seen["steps"], seen["t"]) == (begin["steps"], 499)
    assert seen["noise"] == pytest.approx(0.722, abs=0.001)
    assert shown(seen["picture"]).size == (128, 128)


def test_inspecting_tells_the_round_trip_and_the_way_to_noise(studio, tiny):
    picture = Image.effect_noise((128, 128), 60).convert("RGB")
    walk, trip = messages(looking.inspect(studio, sent(picture)))
    assert walk["told"]["process"] == "forward"
    assert len(walk["told"]["steps"]) == looking.LEVELS
    back = sdkit.round_trip(picture, model=tiny)
    assert str(back) in trip["text"]
    assert equal(shown(trip["pictures"][1][1]), back.images[0])


def test_a_film_is_told_frame_by_frame(studio, tiny):
    asked = {"frames": 3, "seed": 1, "num_inference_steps": 2}
    *frames, film = messages(looking.interpolate(studio, STAR, "a cat", **asked))
    walk = sdkit.interpolate(STAR, "a cat", model=tiny, **asked)
    assert [equal(shown(one["picture"]), frame) for one, frame in zip(frames, walk.images, strict=True)] == [True] * 3
    assert film["film"].startswith("data:image/gif;base64,")


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM"])
def test_only_pictures_of_some_formats_are_opened(studio, kind):
    with pytest.raises(ValueError, match=f"no picture in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"):
        messages(looking.inspect(studio, sent(Image.new("RGB", (32, 32)), kind)))


@pytest.mark.parametrize(
    ("image", "match"),
    [
        ("data:image/png;base64,????", "came damaged"),
        ("data:image/png;base64," + "A" * 20_000_000, "larger than 12 MB"),
        (sent(Image.new("1", (5000, 5000))), "million are the most"),
        (sent(Image.new("1", (20_000, 20_000))), "million"),
        (7, "sent as base64"),
        ("/etc/passwd", "damaged|no picture"),
    ],
    ids=["letters", "bytes", "pixels", "a bomb", "a number", "a path"],
)
def test_an_upload_beyond_the_limits_is_said_in_one_sentence(studio, image, match):
    with pytest.raises(ValueError, match=match):
        messages(looking.noised(studio, image))


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"num_inference_steps": 101}, "num_inference_steps may be at most 100"),
        ({"guidance_scale": 31.0}, "guidance_scale may be at most 30"),
        ({"scheduler": "eulr"}, "did you mean 'euler'"),
        ({"method": "from_diffusers"}, "unknown method"),
        ({"model": "/etc"}, "unknown model"),
        ({"prompt": "a" * 1001}, "prompt has 1001 letters"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_wish_beyond_the_limits_is_said_in_one_sentence(studio, asked, match):
    with pytest.raises(ValueError, match=match):
        messages(runs.generate(studio, **{"prompt": STAR, **asked}))


# ---------------------------------------------------------------------------------------------------------------------
# What is kept, taken away and brought again


def test_runs_that_nobody_asked_for_are_forgotten_first():
    shelf = Shelf(most=2)
    one, two, three = (Kept(sdkit.Trace()) for _ in range(3))
    shelf.put(one)
    shelf.put(two)
    assert shelf.get(one.name) is one
    shelf.put(three)
    assert len(shelf) == 2
    with pytest.raises(ValueError, match="no longer kept"):
        shelf.get(two.name)
    large = Shelf(memory=100)
    trace = sdkit.Trace()
    trace.record(sdkit.Event(Stage.LATENT, torch.zeros(1, 4, 4, 4), 0, 1))
    for _ in range(3):
        large.put(Kept(trace))
    assert len(large) == 1


def test_every_download_opens_again(studio, tiny, tmp_path):
    run = run_of(studio)
    for what in DOWNLOADS:
        (tmp_path / what).write_bytes(download(run, what)[0])
    assert equal(sdkit.rerun(tmp_path / "picture.png", model=tiny).image, run.trace.images[0])
    assert torch.equal(sdkit.Trace.load(tmp_path / "trace.safetensors").latents, run.trace.latents)
    assert "a red star" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert Image.open(tmp_path / "film.gif").n_frames == 6


def test_a_trace_that_is_brought_again_goes_on(studio):
    run = run_of(studio)
    settings, again = messages(looking.restore(studio, as_sent(download(run, "trace.safetensors")[0])))
    assert settings["settings"]["seed"] == [7]
    (end,) = told(runs.go_on(studio, again["run"], 3), "end")
    assert torch.equal(studio.shelf.get(end["run"]).trace.latents, run.trace.latents)


def test_a_trace_of_a_picture_made_from_a_picture_goes_on_too(studio):
    run = run_of(studio, image=sent(Image.new("RGB", (128, 128), "red")), strength=0.6)
    settings, again = messages(looking.restore(studio, as_sent(download(run, "trace.safetensors")[0])))
    assert settings["settings"]["strength"] == 0.6
    (end,) = told(runs.go_on(studio, again["run"], 2), "end")
    assert torch.equal(studio.shelf.get(end["run"]).trace.latents, run.trace.latents)


def test_a_picture_that_is_brought_again_is_drawn_again(studio):
    run = run_of(studio, scheduler="dpmpp_2m_karras")
    settings, *_, end = messages(looking.restore(studio, as_sent(download(run, "picture.png")[0])))
    assert settings["settings"]["prompt"] == STAR
    assert equal(shown(end["picture"]), run.trace.images[0])


def test_a_picture_of_a_method_is_drawn_again_with_it(studio):
    run = run_of(studio, scheduler="euler", method="apg")
    settings, *_, end = messages(looking.restore(studio, as_sent(download(run, "picture.png")[0])))
    assert (settings["scheduler"], settings["method"]) == ("euler", "apg")
    assert equal(shown(end["picture"]), run.trace.images[0])


@pytest.mark.parametrize("scheduler", ["", "euler", "dpmpp_2m_karras"])
def test_what_a_picture_was_made_from_is_missing_and_all_else_is_there(studio, scheduler):
    start = sent(Image.new("RGB", (128, 128), "red"))
    run = run_of(studio, image=start, mask_image=start, strength=0.5, scheduler=scheduler)
    stream = looking.restore(studio, as_sent(download(run, "picture.png")[0]))
    (found,) = next(stream)
    assert found["scheduler"] == scheduler or (scheduler, found["scheduler"]) == ("", "ddim")
    assert {**found["settings"], "index": 0} == {**run.trace.settings, "index": 0}
    with pytest.raises(ValueError, match="made from image, which its file does not hold; give it again"):
        next(stream)


def test_the_picture_of_a_branch_says_that_its_words_alone_would_make_another(studio, tiny, tmp_path):
    run = run_of(studio)
    same, other = (
        studio.shelf.get(told(runs.go_on(studio, run.name, 2, **change), "end")[0]["run"])
        for change in ({}, {"prompt": "a cat"})
    )
    (*_, again) = messages(looking.restore(studio, as_sent(download(same, "picture.png")[0])))
    assert equal(shown(again["picture"]), run.trace.images[0])
    with pytest.raises(ValueError, match="changed on its way by a branch, which its trace holds; open that"):
        messages(looking.restore(studio, as_sent(download(other, "picture.png")[0])))
    (end,) = told(runs.go_on(studio, other.name, 3), "end")  # and so of what goes on from it
    assert studio.shelf.get(end["run"]).branched
    _, again = messages(looking.restore(studio, as_sent(download(other, "trace.safetensors")[0])))
    assert studio.shelf.get(again["run"]).branched
    (tmp_path / "cat.png").write_bytes(download(other, "picture.png")[0])
    with pytest.warns(UserWarning, match="edited by hooks, which settings do not hold: a branch"):
        sdkit.rerun(tmp_path / "cat.png", model=tiny)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_hash": "0" * 16}, "made by another model"),
        ({"height": 4096}, "one picture of 128 x 128"),
        ({"num_images_per_prompt": 64}, "one picture"),
        ({"num_inference_steps": 5000}, "at most 100 steps"),
        ({"timesteps": list(range(999, 0, -1)), "num_inference_steps": None}, "at most 100 steps"),
        ({"image": "ab"}, "made from image"),
        ({"edited_by": ["mine"]}, "changed on its way by mine"),
        ({"stopped_after": 2}, "changed on its way by stopped_after"),
        ({"scheduler": 7}, "damaged"),
        ({"edited_by": 7}, "damaged"),
    ],
)
def test_a_file_that_asks_for_more_than_the_page_allows_is_refused(studio, tmp_path, change, match):
    run = run_of(studio)
    save_picture(run.trace.images[0], tmp_path / "out.png", {**run.trace.settings, "index": 0, **change})
    with pytest.raises(ValueError, match=match):
        messages(looking.restore(studio, as_sent((tmp_path / "out.png").read_bytes())))


def test_no_file_says_where_it_lay_on_the_server(studio):
    with pytest.raises(ValueError, match="the file") as said:
        messages(looking.restore(studio, as_sent(b"nothing at all")))
    assert "/" not in str(said.value)


def test_only_models_that_the_page_was_started_with_are_loaded():
    studio = Studio({"mine": None})
    with pytest.raises(ValueError, match="unknown model"):
        studio.model("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert studio.model("mine").name == "sdkit/tiny"
