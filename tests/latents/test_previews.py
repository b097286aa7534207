import pytest
import torch

import sdkit
from sdkit import Stage
from sdkit.latents import previews
from sdkit.tiny import train
from sdkit.tiny.drawing import draw


def test_the_map_shows_unseen_drawings_nearly_as_the_decoder_does(tiny):
    rgb = sdkit.latent_to_rgb()
    z = sdkit.encode([draw("a red star", seed=i) for i in range(4)] + [draw("a blue fish", seed=i) for i in range(4)])
    decoded = torch.nn.functional.avg_pool2d(tiny.decode(z.tensor).clamp(-1, 1), 8)
    error = (rgb.pixels(z) - decoded).square().mean()
    spread = (decoded - decoded.mean((0, 2, 3), keepdim=True)).square().mean()
    assert 1 - error / spread > 0.7
    assert rgb.r2 > 0.7  # what it says of itself
    assert rgb.psnr > 18


def test_of_a_decoder_that_is_linear_it_finds_the_very_map(tiny, monkeypatch):
    weight, bias = torch.tensor([[0.1, 0, 0, 0.05], [0, 0.1, 0, 0], [0, 0.02, 0.1, 0]]), torch.tensor([0.1, 0, -0.1])

    def decode(_model, z):
        colours = torch.einsum("rc,bchw->brhw", weight, z) + bias.view(1, 3, 1, 1)
        return colours.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)

    monkeypatch.setattr(sdkit.Model, "decode", decode)
    found = previews._fit(tiny, previews._pictures(previews.LESSONS, previews.SIDE))
    assert torch.allclose(found.weight, weight, atol=1e-4)
    assert torch.allclose(found.bias, bias, atol=1e-4)
    assert found.r2 > 0.9999


def test_the_embedded_model_has_the_map_that_would_be_fitted_to_it(tiny):
    kept, fitted = sdkit.latent_to_rgb(tiny), previews._fit(tiny, train.as_input(train.pixels(range(96))))
    assert kept is previews._fitted[tiny.fingerprint()]
    assert torch.allclose(kept.weight, fitted.weight, atol=2e-4)
    assert torch.allclose(kept.bias, fitted.bias, atol=2e-4)
    assert (kept.r2, kept.psnr) == pytest.approx((fitted.r2, fitted.psnr), abs=0.01)


def test_it_is_fitted_once_for_the_same_weights_and_anew_for_others(sd1):
    first = sdkit.latent_to_rgb(sd1)
    assert sdkit.latent_to_rgb(sdkit.load(sd1)) is first
    assert sdkit.latent_to_rgb() is not first
    assert sdkit.latent_to_rgb() is sdkit.latent_to_rgb()


def test_any_step_of_a_trace_can_be_seen_without_the_decoder():
    trace = sdkit.Trace()
    result = sdkit.text_to_image("a red star on a white background", seed=7, num_inference_steps=5, hooks=[trace])
    rgb = sdkit.latent_to_rgb()
    (picture,) = rgb(trace.at(4)[Stage.DENOISED].value)
    assert picture.size == result.image.size
    assert rgb(result.latents, scale=1)[0].size == (16, 16)
