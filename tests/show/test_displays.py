"""Every value has a short `repr`, and shows itself in a notebook."""

import re
from types import SimpleNamespace

import pytest

import sdkit
from sdkit import Trace


@pytest.fixture(scope="module")
def values(tiny):
    traces = Trace(), Trace(), Trace()
    made = sdkit.text_to_image(
        "a red star", model=tiny, seed=[7, 8], num_images_per_prompt=2, num_inference_steps=3, hooks=[traces[0]]
    )
    sdkit.text_to_image(
        "a blue star", model=tiny, seed=[7, 8], num_images_per_prompt=2, num_inference_steps=3, hooks=[traces[1]]
    )

    @sdkit.on("guided", steps=[1])
    def stronger(event):
        event.value = event.value * 2

    sdkit.text_to_image(
        "a red star",
        model=tiny,
        seed=[7, 8],
        num_images_per_prompt=2,
        num_inference_steps=3,
        hooks=[stronger, traces[2]],
    )
    return SimpleNamespace(
        result=made,
        trace=traces[0],
        words=traces[0].compare(traces[1]),
        hook=traces[0].compare(traces[2]),
        same=traces[0].compare(traces[0]),
        model=tiny,
        trip=sdkit.round_trip(made.image, model=tiny),
        walk=sdkit.interpolate(1, 2, prompt="a red star", frames=3, num_inference_steps=2, model=tiny),
        description=sdkit.describe(traces[0]),
        cost=sdkit.cost(model=tiny),
        rgb=sdkit.latent_to_rgb(tiny),
        reading=sdkit.read_prompt("a red star", model=tiny),
    )


SHORT = {
    "result": r"<Result of 'a red star', seed \[7, 8\]: 2 pictures of 128x128>",
    "trace": r"<Trace 'a red star', seed \[7, 8\]: 3 steps, \d+ values, \d\.\d MB>",
    "hook": r"<Comparison of \d+ values: they part at step 1, where guided differs by [\d.]+; before and after .+>",
    "model": r"<Model 'sdkit/tiny': StableDiffusionPipeline for 128x128, float32 on cpu>",
    "trip": r"<RoundTrip of 1 picture: PSNR [\d.]+ dB, SSIM 0\.\d+ at the worst>",
    "walk": r"<Walk of 3 frames: evenness [\d.]+>",
    "description": r"<Description of 4 channels: mean \[.+\], std \[.+\]>",
    "cost": r"<Cost of a picture of sdkit/tiny on cpu.*: [\d.]+ GFLOP in [\d.]+ s>",
    "rgb": r"<LatentToRGB of 4 channels: R2 0\.\d+, [\d.]+ dB on unseen pictures>",
    "reading": r"<Reading of 'a red star': hidden states \(4, 32, 128\)>",
}


@pytest.mark.parametrize("name", SHORT)
def test_a_value_is_told_in_one_line(values, name):
    assert re.fullmatch(SHORT[name], repr(getattr(values, name)))
    assert repr(values.description.spectra).startswith("<Spectra of denoised: 3 steps")


SHOWN = {
    "result": ("a red star", "<b>a red star</b>", 1),
    "hook": ("they part at step 1", "<pre>they part at step 1, where guided differs by", 0),
    "model": ("its vocabulary", "It knows these words: circle square", 0),
    "trip": ("there and back", "what came back: PSNR", 3),
    "walk": ("its frames", "50% of the way", 1),
    "description": ("its table", "<pre>channel", 0),
    "cost": ("its table", "<pre>sdkit/tiny on cpu", 0),
    "reading": ("its words", "Reading of &#x27;a red star&#x27;", 0),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_value_shows_itself_in_a_notebook(values, name):
    _, text, pictures = SHOWN[name]
    html = getattr(values, name)._repr_html_()
    assert text in html
    assert html.count("<img") == pictures


def test_a_comparison_begins_with_its_verdict(values):
    assert re.match(
        r"they part at step 0, where noise differs by [\d.]+; before and after the steps they differ in tokens, text,",
        str(values.words),
    )
    assert str(values.hook).startswith("they part at step 1, where guided differs by ")
    assert str(values.same).startswith(f"the runs are the same in all {len(values.same)} values that both recorded\n")
    assert str(values.trace.compare(Trace())).startswith("the runs recorded nothing that could be compared\n")
    assert values.hook.parting.step == 1


def test_a_result_counts_and_gives_its_pictures_as_a_list_does(values):
    assert len(values.result) == 2
    assert list(values.result) == values.result.images
    assert values.result[1] is values.result.images[1]
    assert values.result[-1] is values.result.images[1]
    with pytest.raises(IndexError):
        values.result[2]


def test_a_result_opens_its_pictures_on_one_page(values, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "PIL.ImageShow._viewers", [SimpleNamespace(show=lambda image, **_: shown.append(image) or True)]
    )
    values.result.show()
    assert [one.size for one in shown] == [values.result.page.size]
    assert values.result.page.width > 2 * values.result.image.width


def test_completion_offers_public_names_alone():
    assert dir(sdkit.hooks) == sdkit.hooks.__all__
    assert dir(sdkit.plots) == sdkit.plots.__all__
    assert set(dir(sdkit)) == {*sdkit.__all__, "__version__"}
