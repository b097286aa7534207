"""How values show themselves in a notebook, in a real browser where scripts run and where they do not."""

import re
from dataclasses import dataclass

import pytest
import torch
from selenium.webdriver.common.by import By

import sdkit
from sdkit import Stage, Trace
from sdkit.show.notebook import latents_html, maps_html


@dataclass(frozen=True)
class Latents:
    mean: torch.Tensor
    std: torch.Tensor


@pytest.fixture
def notebook(browser, tmp_path):
    """Several outputs on one page, as a notebook has them."""

    def show(*outputs, scripts=True):
        text = "".join(f"<section>{output}</section>" for output in outputs)
        if not scripts:
            text = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
        (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{text}", encoding="utf-8")
        browser.get((tmp_path / "notebook.html").as_uri())
        return browser.find_elements(By.TAG_NAME, "section")

    yield show
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def move(section, value):
    slider = section.find_element(By.CSS_SELECTOR, "input")
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    section.parent.execute_script(script, slider, value)


def places(section):
    return [pane.value_of_css_property("background-position") for pane in section.find_elements(By.CLASS_NAME, "pane")]


def test_a_trace_has_a_scrubber_of_its_own_on_a_page_of_several(notebook, seen):
    first, second = notebook(seen._repr_html_(), seen._repr_html_())
    assert len(places(first)) == 2
    move(first, 5)
    move(second, 0)
    assert places(first) == ["100% 0%"] * 2
    assert places(second) == ["0% 0%"] * 2
    assert first.find_element(By.TAG_NAME, "output").text.startswith("step 5, t = ")
    assert second.find_element(By.TAG_NAME, "output").text == "step 0, t = 999, noise 99.5 %"
    assert not first.find_element(By.CLASS_NAME, "strip").is_displayed()


def test_the_very_same_output_may_stand_on_the_page_twice(notebook, seen):
    output = seen._repr_html_()
    first, second = notebook(output, output)
    move(first, 5)
    assert places(first) == ["100% 0%"] * 2 != places(second)
    move(second, 5)
    assert places(first) == places(second)


def test_without_scripts_a_strip_of_pictures_stays(notebook, seen, heat):
    for section in notebook(seen._repr_html_(), maps_html(heat), scripts=False):
        strip = section.find_element(By.CLASS_NAME, "strip")
        assert strip.is_displayed()
        assert int(strip.get_property("naturalWidth")) > int(strip.get_property("naturalHeight"))
        assert not section.find_element(By.TAG_NAME, "input").is_displayed()


def test_a_click_on_a_word_shows_its_heat(notebook, heat):
    (section,) = notebook(maps_html(heat))
    move(section, 0)
    assert places(section) == ["0% 0%"]
    buttons = section.find_elements(By.TAG_NAME, "button")
    assert [button.text for button in buttons] == heat.words
    buttons[2].click()
    assert places(section) == ["0% 100%"]
    assert [button.get_attribute("aria-pressed") for button in buttons] == ["false", "false", "true"]


def test_a_result_shows_its_picture_and_what_made_it(notebook, seen):
    result = sdkit.Result(seen.images, seen[Stage.LATENT][-1].value, [7], seen.settings)
    (section,) = notebook(result._repr_html_())
    assert section.find_element(By.TAG_NAME, "b").text == "a red star on a blue background"
    assert "seed 7 · steps 6 · guidance 3.0" in section.text
    picture = section.find_element(By.TAG_NAME, "img")
    assert (picture.get_property("naturalWidth"), picture.get_attribute("width")) == (128, "256")


def test_latents_show_their_channels_with_their_numbers(notebook, tiny, seen):
    mean, log_variance = tiny.encode(seen[Stage.IMAGE][0].value).chunk(2, dim=1)
    (section,) = notebook(latents_html(Latents(mean, (log_variance / 2).exp())))
    assert len(section.find_elements(By.TAG_NAME, "img")) == 4
    for plane in mean[0]:
        assert f"mean {plane.mean():.2f}\nstd {plane.std():.2f}" in section.text


def test_words_that_look_like_markup_stay_words(seen, heat):
    evil = Trace()
    evil.records, evil.settings = list(seen), {**seen.settings, "prompt": "<img src=x onerror=alert(1)>"}
    assert "<img src=x" not in evil._repr_html_()
    one = type(heat)(["<b>"], {("<b>", 0): torch.zeros(16, 16)})
    assert ">&lt;b&gt;</button>" in maps_html(one)


def test_what_holds_nothing_yet_still_shows_itself(heat):
    assert "Trace of no run" in Trace()._repr_html_()
    assert "no attention was recorded yet" in maps_html(type(heat)([], {}))


def test_an_output_stays_small(seen, heat):
    assert len(seen._repr_html_()) < 150_000
    assert len(maps_html(heat)) < 150_000
