"""The live page in a real browser, as a person would use it."""

import base64

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from visiting import shown

import sdkit
from tests.show.test_report import canvas, chapters, told

pytest.importorskip("gradio", reason="the live page needs the extra 'app'")
STAR = "a red star on a blue background"


@pytest.fixture
def page(browser, address):
    """The page, opened at some width; it says nothing to the console."""
    browser.get_log("browser")  # of before

    def opened(width=1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(address)
        until(browser, "document.body.dataset.ready === 'yes'")
        return browser

    yield opened
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def until(browser, condition):
    """Wait for a condition of the page."""
    return WebDriverWait(browser, 300, 0.02).until(lambda one: one.execute_script(f"return {condition}"))


def element(browser, selector):
    """An element, moved to where nothing covers it."""
    found = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", found)
    return found


def click(browser, selector):
    element(browser, selector).click()


def write(browser, selector, text):
    field = element(browser, selector)
    field.clear()
    field.send_keys(text)


def settings(browser, form, **values):
    browser.execute_script("arguments[0].open = true", browser.find_element(By.CSS_SELECTOR, f"{form} details"))
    for name, value in values.items():
        field = element(browser, f"{form} [name={name}]")
        field.clear() if field.tag_name == "input" else None
        field.send_keys(str(value))


def ended(browser, lanes=1):
    until(browser, f"document.querySelectorAll('.lane').length === {lanes}")
    until(browser, "!document.getElementById('take').hidden && !document.querySelector('form .solid').disabled")


def picture(browser, which=0):
    """The finished picture at the top."""
    return shown(browser.find_elements(By.CSS_SELECTOR, ".hero-frame img")[which].get_attribute("src"))


def draw(browser, prompt=STAR, steps=6, **more):
    write(browser, "#form-text [name=prompt]", prompt)
    settings(browser, "#form-text", seed=7, num_inference_steps=steps, **more)
    click(browser, "#form-text .solid")


def equal(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_a_run_is_watched_as_it_forms(page, tiny):
    browser = page()
    draw(browser, steps=30)
    until(browser, "Number(document.querySelector('.lane output b')?.textContent.slice(5)) >= 2")
    track = browser.find_element(By.CSS_SELECTOR, ".track input")
    assert track.get_attribute("max") == "30"  # the steps that are to come have their place
    assert chapters(browser)[:4] == ["tokens", "embeddings", "noise", "latent"]
    browser.execute_script("arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input'))", track)
    held = canvas(browser, "x0")
    ended(browser)
    assert told(browser).startswith("step 1")  # who looks back is not called away
    assert canvas(browser, "x0") == held
    assert chapters(browser)[-1] == "decode"
    drawn = sdkit.text_to_image(STAR, model=tiny, seed=7, num_inference_steps=30).image
    assert equal(picture(browser), drawn)


def test_words_that_it_has_never_read_are_said_while_they_are_typed(page):
    browser = page()
    assert "mushroom" in browser.find_element(By.ID, "knows").text
    write(browser, "#form-text [name=prompt]", "a red dragon")
    assert "“dragon”" in browser.find_element(By.CSS_SELECTOR, "#form-text .unknown").text
    write(browser, "#form-text [name=prompt]", "a red cat")
    assert browser.find_element(By.CSS_SELECTOR, "#form-text .unknown").text == ""


def test_pause_look_and_go_on_is_the_run_itself(page, tiny):
    browser = page()
    draw(browser, steps=40)
    until(browser, "document.querySelector('.lane output b')")
    click(browser, "#form-text [data-wish=pause]")
    ended(browser)
    at = int(told(browser).split()[1].split("t")[0])
    assert at < 39
    click(browser, "#form-steer [name=one]")
    until(browser, f"document.querySelector('.lane output b').textContent === 'step {at + 1}'")
    ended(browser)
    click(browser, "#form-steer .solid")
    until(browser, "document.querySelector('.lane output b').textContent === 'the picture'")
    ended(browser)
    assert equal(picture(browser), sdkit.text_to_image(STAR, model=tiny, seed=7, num_inference_steps=40).image)


@pytest.mark.slow
def test_other_words_from_a_step_on_stand_beside_the_first_run(page, tiny):
    browser = page()
    draw(browser)
    ended(browser)
    lane = browser.find_element(By.CSS_SELECTOR, ".track input")
    browser.execute_script("arguments[0].value = 2; arguments[0].dispatchEvent(new Event('input'))", lane)
    write(browser, "#form-steer [name=prompt]", "a green heart on a blue background")
    click(browser, "#form-steer .solid")
    ended(browser, lanes=2)
    trace = sdkit.Trace()
    first = sdkit.text_to_image(STAR, model=tiny, seed=7, num_inference_steps=6, hooks=[trace]).image
    branch = trace.branch(2, prompt="a green heart on a blue background", model=tiny)
    assert equal(picture(browser, 0), first)
    assert equal(picture(browser, 1), branch.images[0])
    browser.execute_script("arguments[0].focus()", browser.find_element(By.CSS_SELECTOR, ".lane-a input"))
    move = "const i = document.querySelector('.lane-a input'); i.value = 1; i.dispatchEvent(new Event('input'))"
    browser.execute_script(move)
    assert [told(browser, lane)[:6] for lane in (0, 1)] == ["step 1", "step 1"]
    assert canvas(browser, "x0", 0) == canvas(browser, "x0", 1)


@pytest.mark.slow
def test_a_brush_paints_on_the_predicted_picture_and_on_a_word(page):
    browser = page()
    draw(browser)
    ended(browser)
    sheet = element(browser, "#paint")
    stroke = ActionChains(browser).move_to_element_with_offset(sheet, -100, -100).click_and_hold()
    stroke.move_by_offset(80, 0).move_by_offset(0, 40).release().perform()
    click(browser, "[data-brush=away]")
    sheet = element(browser, "#paint")
    ActionChains(browser).move_to_element(sheet).click_and_hold().move_by_offset(40, 40).release().perform()
    move = "const i = document.querySelector('.track input'); i.value = 3; i.dispatchEvent(new Event('input'))"
    browser.execute_script(move)
    click(browser, "#form-steer .solid")
    ended(browser, lanes=2)
    assert not equal(picture(browser, 0), picture(browser, 1))
    assert any("painted" in one.text for one in browser.find_elements(By.CSS_SELECTOR, ".facts dd"))


@pytest.mark.slow
def test_stop_keeps_what_is_there(page):
    browser = page()
    draw(browser, steps=60)
    until(browser, "document.querySelector('.lane output b')")
    click(browser, "#form-text [data-wish=stop]")
    ended(browser)
    assert picture(browser).size == (128, 128)
    assert int(browser.find_element(By.CSS_SELECTOR, ".track input").get_attribute("max")) < 60


@pytest.mark.slow
def test_a_picture_is_drawn_masked_and_gone_on_with(page):
    browser = page()
    click(browser, "#tab-image")
    sheet = element(browser, "#pad")
    ActionChains(browser).move_to_element(sheet).click_and_hold().move_by_offset(40, 40).release().perform()
    until(browser, "!document.getElementById('noised').hidden")
    assert "84 % noise" in browser.find_element(By.ID, "noised-says").text
    click(browser, "#pad-mask")
    sheet = element(browser, "#pad")
    ActionChains(browser).move_to_element(sheet).click_and_hold().move_by_offset(30, 0).release().perform()
    settings(browser, "#form-image", seed=3, num_inference_steps=6)
    click(browser, "#form-image .solid")
    ended(browser)
    assert chapters(browser)[0] == "forward"
    facts = dict(zip(*(
        [one.text for one in browser.find_elements(By.CSS_SELECTOR, f".facts {tag}")] for tag in ("dt", "dd")
    ), strict=True))  # fmt: skip
    assert facts["strength"] == "0.6"


@pytest.mark.slow
def test_a_picture_is_inspected(page, tmp_path):
    browser = page()
    Image.effect_noise((90, 60), 80).save(tmp_path / "noise.png")
    click(browser, "#tab-inspect")
    browser.find_element(By.CSS_SELECTOR, "#form-inspect [name=image]").send_keys(str(tmp_path / "noise.png"))
    click(browser, "#form-inspect .solid")
    until(browser, "document.querySelectorAll('.trip img').length === 3")
    assert "PSNR" in browser.find_element(By.CSS_SELECTOR, "#round-trip pre").text
    assert chapters(browser) == ["forward", "latent"]
    (tmp_path / "notes.png").write_text("no picture")
    browser.find_element(By.CSS_SELECTOR, "#form-inspect [name=image]").send_keys(str(tmp_path / "notes.png"))
    click(browser, "#form-inspect .solid")
    until(browser, "!document.getElementById('said').hidden")
    assert "this is no picture in PNG" in browser.find_element(By.ID, "said").text


@pytest.mark.slow
def test_two_runs_are_compared(page, tiny):
    browser = page()
    click(browser, "#tab-compare")
    for side in (0, 1):
        settings(browser, f"[data-side='{side}']", seed=side, num_inference_steps=20)
    click(browser, "#form-compare .solid")
    until(browser, "document.querySelectorAll('.lane output b').length === 2")
    told = "return [...document.querySelectorAll('.lane output b')].map((one) => one.textContent)"
    assert not any("picture" in text for text in browser.execute_script(told))  # both are on their way
    ended(browser, lanes=2)
    for side, prompt in enumerate((STAR, "a red heart on a blue background")):
        drawn = sdkit.text_to_image(prompt, model=tiny, seed=side, num_inference_steps=20).image
        assert equal(picture(browser, side), drawn)


@pytest.mark.slow
def test_a_film_is_made(page):
    browser = page()
    click(browser, "#tab-film")
    write(browser, "#form-film [name=frames]", "3")
    click(browser, "#form-film .solid")
    until(browser, "document.querySelector('#frames .moving')")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#frames img:not(.moving)")) == 3


@pytest.mark.slow
def test_a_picture_that_was_taken_away_brings_the_run_back(page, tmp_path):
    browser = page()
    draw(browser, scheduler="euler")
    ended(browser)
    before, address = picture(browser), browser.find_element(By.CSS_SELECTOR, "#take a[download='picture.png']")
    script = """const done = arguments[1]; fetch(arguments[0]).then((one) => one.blob()).then((blob) => {
        const reader = new FileReader(); reader.onload = () => done(reader.result); reader.readAsDataURL(blob); })"""
    file = browser.execute_async_script(script, address.get_attribute("href"))
    (tmp_path / "star.png").write_bytes(base64.b64decode(file.partition(",")[2]))
    browser = page()
    element(browser, "#restore").send_keys(str(tmp_path / "star.png"))
    ended(browser)
    assert equal(picture(browser), before)
    until(browser, f"document.querySelector('#form-text [name=prompt]').value === '{STAR}'")
    assert browser.find_element(By.CSS_SELECTOR, "#form-text [name=seed]").get_attribute("value") == "7"


@pytest.mark.slow
def test_a_picture_made_from_another_brings_all_back_but_that_one(page, tiny, tmp_path):
    first = sdkit.text_to_image(STAR, model=tiny, seed=7, num_inference_steps=6).image
    first.save(tmp_path / "first.png")
    made = sdkit.image_to_image(
        first, "a green star", model=tiny, strength=0.5, seed=3, num_inference_steps=6, scheduler="euler"
    )
    made.save(tmp_path / "second.png")
    browser = page()
    element(browser, "#restore").send_keys(str(tmp_path / "second.png"))
    until(browser, "!document.getElementById('said').hidden && !document.querySelector('form .solid').disabled")
    said = browser.find_element(By.ID, "said").text
    assert said.endswith("the picture that it was made from is not in the file: open that one on the sheet and draw.")
    element(browser, "#pad-file").send_keys(str(tmp_path / "first.png"))
    until(browser, "document.getElementById('said').hidden")
    click(browser, "#form-image .solid")
    ended(browser)
    assert equal(picture(browser), made.image)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_of_the_page_sticks_out_at_the_side(page, width):
    browser = page(width)
    draw(browser, steps=2)
    ended(browser)
    write(browser, "#form-steer [name=prompt]", "a cat")
    click(browser, "#form-steer .solid")
    ended(browser, lanes=2)
    for tab in ("text", "image", "inspect", "compare", "film"):
        click(browser, f"#tab-{tab}")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, tab
    silent = """return [...document.querySelectorAll(`img:not([alt]), canvas:not([aria-label]):not([aria-hidden]),
        svg:not([aria-label]):not([aria-hidden]), input:not([aria-label])`)]
        .filter((one) => one.offsetParent && !one.closest("label")).map((one) => one.outerHTML.slice(0, 90))"""
    assert browser.execute_script(silent) == []


def test_tabs_are_moved_through_with_keys(page):
    browser = page()
    element(browser, "#tab-text").send_keys("\ue014")  # the right arrow
    assert browser.switch_to.active_element.get_attribute("id") == "tab-image"
    assert browser.find_element(By.ID, "form-image").is_displayed()
    assert not browser.find_element(By.ID, "form-text").is_displayed()
