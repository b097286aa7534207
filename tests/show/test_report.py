"""The page of a run: what is in it, and how it behaves in a real browser."""

import base64
import io
import json
import re
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import sdkit
from sdkit import Event, Stage, Trace, cli
from sdkit.show.report import page

TEXT_TO_IMAGE = ["tokens", "embeddings", "noise", "latent", "prediction", "guidance", "believed", "step", "decode"]


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def unpacked(packed):
    whole = np.frombuffer(base64.b64decode(packed["data"]), np.int16 if packed["bits"] == 16 else np.int8)
    scale = np.array(packed["scale"]).reshape(-1, *[1] * (len(packed["shape"]) - 1))
    return torch.from_numpy(whole.reshape(packed["shape"]) * scale)


def made_up(steps, *, channels=4, side=64, batch=1, guided=True, dtype=torch.float16, image=True):
    """A trace of the shapes that Stable Diffusion has, of random numbers."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    trace = Trace()
    trace.record(Event(Stage.TEXT, noise((1 + guided) * batch, 77, 768)))
    for step in range(steps):
        t = 999 - step * 999 // steps
        trace.record(Event(Stage.LATENT, noise(batch, channels, side, side), step, t))
        trace.record(Event(Stage.NOISE, noise((1 + guided) * batch, channels, side, side), step, t))
        trace.record(Event(Stage.GUIDED, noise(batch, channels, side, side), step, t))
        trace.record(Event(Stage.DENOISED, noise(batch, channels, side, side), step, t))
    trace.record(Event(Stage.LATENT, noise(batch, channels, side, side)))
    if image:
        trace(
            Event(Stage.IMAGE, trace[Stage.LATENT][-1].value[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3) / 3)
        )
    return trace


@pytest.fixture
def opened(browser, tmp_path):
    """Write a page, open it at some width, and see to it that it said nothing and asked for nothing."""

    def show(trace, *, width=1280, scheme="light", media="", **more):
        trace.report(tmp_path / "run.html", **more)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        browser.get_log("performance")  # of before
        browser.get((tmp_path / "run.html").as_uri())
        assert browser.find_element(By.TAG_NAME, "body").get_attribute("data-ready") == "yes"
        return browser

    yield show
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    urls = [one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome")]  # the empty new tab
    assert urls
    assert {url.split(":")[0] for url in urls} <= {"file", "data"}


def press(browser, *keys):
    ActionChains(browser).send_keys(*keys).perform()


def click(browser, selector, which=0):
    """A click where the scrubber does not cover it."""
    element = browser.find_elements(By.CSS_SELECTOR, selector)[which]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def told(browser, lane=0):
    """What the scrubber says, in one line."""
    return browser.find_elements(By.CSS_SELECTOR, ".lane output")[lane].get_property("textContent")


def pixels(browser, selector, which=0):
    """What a canvas shows, (h, w, 4)."""
    script = "return document.querySelectorAll(arguments[0])[arguments[1]].toDataURL()"
    png = base64.b64decode(browser.execute_script(script, selector, which).split(",")[1])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def canvas(browser, stage, which=0):
    """A plate of the page, to compare."""
    return pixels(browser, f"#way canvas[data-stage={stage}]", which).tobytes()


def chapters(browser):
    return [one.get_attribute("id") for one in browser.find_elements(By.CSS_SELECTOR, ".chapter:not([hidden])")]


# ---------------------------------------------------------------------------------------------------------------------
# What is in it


def test_the_page_holds_the_numbers_of_the_trace(seen):
    run = data_of(page(seen))["runs"][0]
    for name, stage in (("x", Stage.LATENT), ("x0", Stage.DENOISED), ("guided", Stage.GUIDED)):
        values = unpacked(run["values"][name])
        for step in seen.steps:
            assert torch.allclose(values[step].float(), seen.at(step)[stage].value[0], atol=3e-4)
    uncond, cond = seen.at(3)[Stage.NOISE].value
    assert torch.allclose(unpacked(run["values"]["uncond"])[3].float(), uncond, atol=3e-4)
    assert torch.allclose(unpacked(run["values"]["cond"])[3].float(), cond, atol=3e-4)
    assert torch.allclose(unpacked(run["values"]["x"])[-1].float(), seen[Stage.LATENT][-1].value[0], atol=3e-4)
    assert [row[1] for row in run["tokens"][1:4]] == ["a", "red", "star"]
    assert [one["t"] for one in run["steps"]] == [record.t for record in seen[Stage.LATENT][:-1]]


def test_the_heat_of_the_page_is_that_of_the_maps(seen, heat):
    packed = data_of(page(seen, maps=heat))["runs"][0]["heat"]
    whole = np.frombuffer(base64.b64decode(packed["data"]), np.uint8).reshape(packed["shape"])
    assert packed["words"] == heat.words
    assert whole.shape == (6, 3, 16, 16)
    assert whole[0, 1, 1].tolist() == [255] * 16
    assert whole[4, 1].sum() == round(255 * 0.6) * 16


def test_a_page_of_fifty_steps_stays_under_three_megabytes():
    run, other = made_up(50), made_up(50)
    words = [f"word{number}" for number in range(20)]
    plane = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    maps = type("Maps", (), {"words": words, "steps": list(range(50)), "heat": lambda *_, **__: plane})()
    assert len(page(run, maps=maps).encode()) < 3_000_000
    assert len(page(run, maps=maps, other=other).encode()) < 3_000_000


def test_words_that_look_like_markup_stay_words():
    trace, plain = made_up(1, side=16), made_up(1, side=16)
    trace.settings = {"prompt": '</script><script>alert("a")</script><b>&amp;'}
    assert data_of(page(trace))["runs"][0]["prompt"] == trace.settings["prompt"]
    for tag in ("<script", "</script", "<b>"):
        assert page(trace).count(tag) == page(plain).count(tag)


def test_the_page_asks_for_nothing_and_says_so_to_the_browser(seen):
    text = page(seen)
    assert "default-src 'none'; img-src data:" in text
    assert re.findall(r'(?:src|href)="(?!data:|#)', text) == []


def test_a_longer_run_is_shown_at_sixty_steps_evenly_spaced():
    steps = [level["step"] for level in data_of(page(made_up(130, side=4)))["runs"][0]["steps"]]
    assert (len(steps), steps[0], steps[-1]) == (60, 0, 129)
    assert {b - a for a, b in pairwise(steps)} == {2, 3}


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [("run.pdf", ValueError, "must end in .html"), ("nowhere/run.html", FileNotFoundError, "make it first")],
)
def test_a_wrong_name_is_said_in_one_sentence(seen, tmp_path, name, error, match):
    with pytest.raises(error, match=match):
        seen.report(tmp_path / name)


def test_what_cannot_be_drawn_is_said(seen):
    with pytest.raises(ValueError, match="holds 1 picture, counted from 0, but picture is 3"):
        page(seen, picture=3)
    with pytest.raises(ValueError, match="no latents to draw"):
        page(Trace())


def contrast(one, other):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_letters_stand_out_from_the_paper(seen, scheme):
    blocks = re.findall(r":root \{(.*?)\}", page(seen), re.DOTALL)  # light, dark, paper
    ink = {"on-accent": "#ffffff", **dict(re.findall(r"--([\w-]+): (#\w{6})\b", blocks[scheme]))}
    for paper in ("paper", "card"):
        for name in ("ink", "quiet", "accent", "second"):
            assert contrast(ink[name], ink[paper]) >= 4.5, (name, paper)
    assert contrast(ink["on-accent"], ink["accent"]) >= 4.5


# ---------------------------------------------------------------------------------------------------------------------
# How it behaves


def test_a_reader_is_taken_from_the_words_to_the_picture(opened, seen, heat):
    browser = opened(seen, maps=heat)
    assert chapters(browser) == [*TEXT_TO_IMAGE[:7], "attention", *TEXT_TO_IMAGE[7:]]
    headings = [one.text for one in browser.find_elements(By.TAG_NAME, "h1") if one.is_displayed()]
    assert headings == ["a red star on a blue background"]
    for chapter in browser.find_elements(By.CSS_SELECTOR, ".chapter:not([hidden])"):
        words = " ".join(one.text for one in chapter.find_elements(By.CSS_SELECTOR, ".says > p:not(.small)"))
        assert len(re.findall(r"[.?!](?= |$)", words)) == 2, words
        assert len([one for one in chapter.find_elements(By.TAG_NAME, "math") if one.is_displayed()]) == 1
    silent = """return [...document.querySelectorAll(`img:not([alt]), canvas:not([aria-label]):not([aria-hidden]),
        svg:not([aria-label]):not([aria-hidden]), input:not([aria-label])`)].map((one) => one.outerHTML.slice(0, 90))"""
    assert browser.execute_script(silent) == []


def test_keys_scrub(opened, seen):
    browser = opened(seen)
    press(browser, Keys.HOME)
    assert told(browser).startswith("step 0t = 999")
    first = canvas(browser, "x0")
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert told(browser).startswith("step 2")
    assert canvas(browser, "x0") != first
    press(browser, Keys.ARROW_LEFT)
    assert told(browser).startswith("step 1")
    press(browser, Keys.END)
    assert told(browser) == "the pictureno noise left"
    press(browser, Keys.HOME)
    assert canvas(browser, "x0") == first


def test_the_mouse_scrubs_and_the_big_picture_follows(opened, seen):
    browser = opened(seen)
    track = browser.find_element(By.CSS_SELECTOR, ".track input")
    ActionChains(browser).move_to_element_with_offset(track, -track.size["width"] // 2 + 4, 0).click().perform()
    assert told(browser).startswith("step 0")
    hero = browser.find_element(By.CSS_SELECTOR, "[data-hero] canvas")
    assert hero.is_displayed()
    ActionChains(browser).move_to_element(track).click().perform()
    assert told(browser).startswith("step 3")
    ActionChains(browser).move_to_element_with_offset(track, track.size["width"] // 2 - 4, 0).click().perform()
    assert told(browser).startswith("the picture")
    assert not hero.is_displayed()  # the finished one is there itself
    click(browser, ".film li", 2)
    assert told(browser).startswith("step 2")


def test_it_plays_to_the_end_and_pauses_on_the_way(opened, seen):
    browser = opened(seen)
    press(browser, Keys.HOME)
    play = browser.find_element(By.ID, "play")
    play.click()
    assert play.get_attribute("aria-label") == "Pause"
    while told(browser).startswith("step 0"):
        time.sleep(0.02)
    play.click()
    assert play.get_attribute("aria-label") == "Play"
    held = told(browser)
    time.sleep(0.6)  # a step takes 400 ms at most
    assert told(browser) == held
    browser.execute_script("document.activeElement.blur()")
    press(browser, Keys.SPACE)
    while not told(browser).startswith("the picture"):
        time.sleep(0.02)
    assert play.get_attribute("aria-label") == "Play"


def test_the_page_begins_with_the_name_of_a_thing(opened, tiny):
    trace, maps = sdkit.Trace(), sdkit.AttentionMaps()
    prompt = "a red mushroom left of a green tree on a yellow background"
    sdkit.text_to_image(prompt, model=tiny, seed=6, num_inference_steps=4, hooks=[trace, maps])
    pressed = opened(trace, maps=maps).find_elements(By.CSS_SELECTOR, "button[data-word][aria-pressed=true]")
    assert {one.get_attribute("data-word") for one in pressed} <= {"mushroom", "tree"}
    assert pressed


def test_a_click_on_a_word_changes_the_heat(opened, seen, heat):
    browser = opened(seen, maps=heat)
    layer = browser.find_element(By.CSS_SELECTOR, ".heat .layer")
    press(browser, Keys.HOME)

    found = []
    for word in heat.words:
        click(browser, f"#attention button[data-word={word}]")
        found.append(pixels(browser, ".heat .layer")[..., 0].mean(axis=1).argmax())
    assert found == [0, 1, 2]
    bright = int(layer.get_attribute("data-sum"))
    click(browser, "#tokens button[data-word=blue]")
    browser.execute_script("document.activeElement.blur()")
    press(browser, Keys.ARROW_RIGHT)
    assert int(layer.get_attribute("data-sum")) == pytest.approx(0.9 * bright, rel=0.01)
    pressed = browser.find_elements(By.CSS_SELECTOR, "button[data-word][aria-pressed=true]")
    assert {one.get_attribute("data-word") for one in pressed} == {"blue"}


def test_pointing_at_a_latent_reads_its_numbers(opened, seen):
    browser = opened(seen)
    press(browser, Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    plate = browser.find_element(By.CSS_SELECTOR, "#latent canvas[data-stage=x0]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plate)
    ActionChains(browser).move_to_element_with_offset(
        plate, plate.size["width"] // 32, plate.size["height"] // 32
    ).perform()
    head, numbers = browser.find_element(By.ID, "tip").get_property("textContent").split("\n")
    assert head == "row 8, column 8"
    there = seen.at(2)[Stage.DENOISED].value[0, :, 8, 8]
    assert [float(one.replace("\u2212", "-")) for one in numbers.split()] == pytest.approx(there.tolist(), abs=0.0052)
    browser.execute_script("arguments[0].focus()", plate)
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    assert browser.find_element(By.ID, "tip").get_property("textContent").startswith("row 9, column 8")
    assert told(browser).startswith("step 2")  # the keys moved the point and not the run


def test_a_channel_can_be_looked_at_by_itself(opened, seen):
    browser = opened(seen)
    before = canvas(browser, "x")
    click(browser, "#look button", 2)
    assert canvas(browser, "x") != before
    click(browser, "#look button", 0)
    assert canvas(browser, "x") == before


def test_the_scrubbers_of_two_runs_are_linked_until_they_are_let_go(opened, seen, tiny):
    other = Trace()
    sdkit.text_to_image("a yellow fish", model=tiny, seed=7, num_inference_steps=12, hooks=[other])
    browser = opened(seen, other=other)
    assert chapters(browser) == [*TEXT_TO_IMAGE[:8], "apart", "decode"]
    press(browser, Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    times = [int(re.search(r"t = (\d+)", told(browser, lane))[1]) for lane in (0, 1)]
    assert times[0] == seen.at(2)[Stage.LATENT].t
    assert times[1] == min((record.t for record in other[Stage.DENOISED]), key=lambda t: abs(t - times[0]))
    assert canvas(browser, "x0", 0) != canvas(browser, "x0", 1)
    press(browser, Keys.END)
    assert [told(browser, lane)[:11] for lane in (0, 1)] == ["the picture"] * 2
    browser.find_element(By.ID, "link").click()
    browser.execute_script("document.activeElement.blur()")
    press(browser, Keys.HOME)
    assert [told(browser, lane)[:8] for lane in (0, 1)] == ["step 0t ", "the pict"]


def test_the_distance_of_two_runs_is_that_of_their_latents(seen, tiny):
    other = seen.branch(2, prompt="a yellow fish on a blue background", model=tiny)
    rows = {row["step"]: row for row in data_of(page(seen, other=other))["apart"]}
    assert rows[1] == {"step": 1, "x": 0.0, "x0": 0.0}
    a, b = (trace.at(4)[Stage.DENOISED].value for trace in (seen, other))
    assert rows[4]["x0"] == pytest.approx(((a - b).norm() / a.norm()).item(), rel=1e-3)


def test_image_to_image_begins_with_the_picture(opened, seen, tiny):
    trace = Trace()
    start = seen.images[0]
    sdkit.image_to_image(start, "a green star", model=tiny, seed=1, strength=0.5, num_inference_steps=6, hooks=[trace])
    browser = opened(trace)
    assert chapters(browser) == ["forward", *[one for one in TEXT_TO_IMAGE if one != "noise"]]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#forward figure")) == 3


def test_a_forward_walk_shows_what_becomes_of_the_picture(opened, walk):
    browser = opened(walk)
    assert chapters(browser) == ["forward", "latent"]
    assert "more noise" in browser.find_element(By.ID, "latent").text
    press(browser, Keys.END)
    assert told(browser) == "step 3t = 999 · >99 % noise"


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(lambda: made_up(3, image=False), id="interrupted, in fp16"),
        pytest.param(lambda: made_up(2, side=128), id="large"),
        pytest.param(lambda: made_up(2, batch=2, guided=False, dtype=torch.bfloat16), id="several, without guidance"),
        pytest.param(lambda: made_up(2, channels=16, side=16), id="16 channels"),
    ],
)
def test_runs_of_every_kind_are_shown(opened, trace):
    trace = trace()
    browser = opened(trace, picture=len(trace[Stage.LATENT][0].value) - 1)
    shown = chapters(browser)
    assert ("decode" in shown) == bool(trace[Stage.IMAGE])
    assert ("guidance" in shown) == (len(trace[Stage.NOISE][0].value) == 2 * len(trace[Stage.LATENT][0].value))
    press(browser, Keys.HOME, Keys.ARROW_RIGHT)
    assert told(browser).startswith("step 1")
    assert len(set(canvas(browser, "x"))) > 50


def test_a_thinned_trace_shows_the_steps_that_it_kept(opened, tiny):
    trace = Trace(every=3)
    sdkit.text_to_image("a cat", model=tiny, seed=1, num_inference_steps=7, scheduler="euler", hooks=[trace])
    browser = opened(trace)
    press(browser, Keys.HOME, Keys.ARROW_RIGHT)
    assert told(browser).startswith("step 3")


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_nothing_sticks_out_at_the_side(opened, seen, heat, width):
    browser = opened(seen, width=width, maps=heat, other=seen, scheme="dark")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    small = """return [...document.querySelectorAll("button, input")].filter((one) => one.offsetParent)
        .map((one) => one.getBoundingClientRect()).filter((box) => box.height < 32).length"""
    assert browser.execute_script(small) == 0


def test_paper_gets_the_pictures_and_not_the_scrubber(opened, seen):
    browser = opened(seen, media="print")
    assert not browser.find_element(By.CLASS_NAME, "deck").is_displayed()
    assert all(one.is_displayed() for one in browser.find_elements(By.CSS_SELECTOR, ".film img, .hero-run img"))


def test_the_command_line_writes_a_report(tmp_path, capsys):
    out, report = tmp_path / "star.png", tmp_path / "run.html"
    asked = ["generate", "a red star", "--seed", "7", "--num-inference-steps", "2", "-o", str(out)]
    assert cli.main([*asked, "--report", str(report)]) == 0
    run = data_of(report.read_text(encoding="utf-8"))["runs"][0]
    assert (run["prompt"], len(run["steps"])) == ("a red star", 2)
    assert str(report) in capsys.readouterr().out
    assert cli.main([*asked, "--report", "run.txt"]) == 2
    assert "must end in .html" in capsys.readouterr().err
