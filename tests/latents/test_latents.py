import math

import numpy as np
import pytest
import torch
from conftest import EACH_FAMILY, SD2, random_pipeline, random_xl_pipeline
from PIL import Image

import sdkit
from sdkit.measure import psnr, ssim
from sdkit.pictures import to_pixels
from sdkit.tiny.drawing import draw


@pytest.fixture(scope="module")
def drawings():
    return [draw("a red star on a blue background", seed=3), draw("a green cat on a white background", seed=4)]


def test_encode_gives_what_diffusers_encoder_does_scaled_as_the_unet_knows_it(sd1):
    picture = draw("a red star").resize((64, 48))
    posterior = sd1.vae.encode(to_pixels(picture)).latent_dist
    found = sdkit.encode(picture, model=sd1)
    assert torch.equal(found.tensor, posterior.mean * sd1.vae.config.scaling_factor)
    assert torch.allclose(found.std, posterior.std * sd1.vae.config.scaling_factor)
    assert found.tensor.shape == (1, 4, 6, 8)
    generator = torch.Generator().manual_seed(5)
    assert torch.allclose(found.sample(5), posterior.sample(generator) * sd1.vae.config.scaling_factor, atol=1e-6)


def test_samples_have_the_mean_and_spread_of_the_posterior():
    latents = sdkit.Latents(torch.full((2, 4, 32, 32), 3.0), torch.full((2, 4, 32, 32), 0.5))
    drawn = latents.sample(7)
    assert abs(drawn.mean().item() - 3) < 4 * 0.5 / drawn.numel() ** 0.5
    assert abs(drawn.std().item() - 0.5) < 0.02
    assert torch.equal(latents.sample([7, 8]), drawn)
    assert torch.equal(sdkit.Latents(latents.mean[1:], latents.std[1:]).sample(8), drawn[1:])
    with pytest.raises(ValueError, match="3 seeds were given for 2 pictures"):
        latents.sample([1, 2, 3])


def test_decode_gives_the_picture_of_a_run_from_its_latents():
    result = sdkit.text_to_image("a red star", seed=7, num_inference_steps=2)
    assert np.array_equal(np.asarray(sdkit.decode(result.latents)[0]), np.asarray(result.image))


def test_a_round_trip_is_decode_of_encode_and_its_numbers_are_those_of_its_pictures(drawings):
    trip = sdkit.round_trip(drawings)
    back = sdkit.decode(sdkit.encode(drawings))
    for i, picture in enumerate(drawings):
        assert np.array_equal(np.asarray(trip.images[i]), np.asarray(back[i]))
        assert np.array_equal(np.asarray(trip.originals[i]), np.asarray(picture))
        error = (np.asarray(picture, dtype=float) - np.asarray(back[i], dtype=float)) ** 2
        assert trip.psnr[i] == pytest.approx(10 * math.log10(255**2 / error.mean()), abs=0.05)  # 8 bits are rounded
        change = np.asarray(back[i], dtype=float) - np.asarray(picture, dtype=float)
        shown = np.asarray(trip.differences[i], dtype=float) - 127.5
        small = np.abs(change) < 60
        assert np.abs(shown - 2 * change)[small].max() <= 2.5
    assert min(trip.psnr) > 26
    assert min(trip.ssim) > 0.9


def test_the_compression_is_told_in_numbers_and_bytes(drawings):
    trip = sdkit.round_trip(drawings[0])
    assert (trip.pixel_values, trip.latent_values) == (128 * 128 * 3, 16 * 16 * 4)
    assert (trip.pixel_values, trip.latent_bytes) == (49152, 4096)
    assert "48.0 times fewer numbers and 12.0 times fewer bytes" in str(trip)


def test_a_batch_is_encoded_as_each_picture_alone(drawings):
    both = sdkit.encode(drawings)
    for i, picture in enumerate(drawings):
        assert torch.allclose(both.mean[i : i + 1], sdkit.encode(picture).mean, atol=1e-5)


def test_a_large_picture_goes_in_tiles_at_least_nearly_as_well_as_whole_and_nothing_stays_on_the_model(
    tiny, monkeypatch
):
    page = sdkit.contact_sheet([draw("a red star", seed=i) for i in range(4)], gap=0)  # 256x256
    sizes = []
    monkeypatch.setattr(tiny.vae.encoder, "forward", _watched(tiny.vae.encoder.forward, sizes))
    whole, tiled = sdkit.round_trip(page), sdkit.round_trip(page, tiled=True)
    assert sizes[0] == (256, 256)
    assert set(sizes[1:]) == {(128, 128), (128, 64), (64, 128), (64, 64)}
    assert tiled.latents.mean.shape == whole.latents.mean.shape == (1, 4, 32, 32)
    assert tiled.psnr[0] > whole.psnr[0] - 1  # it is larger than what the model was trained on
    assert not tiny.vae.use_tiling


def _watched(forward, sizes):
    def watched(x, *rest):
        sizes.append(tuple(x.shape[-2:]))
        return forward(x, *rest)

    return watched


def test_ssim_is_wangs_formula():
    """Against the formula written as loops over windows, on a small picture."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, 14, 13, generator=generator) * 2 - 1
    b = (a + 0.3 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)
    reach = np.arange(11) - 5.0
    window = np.exp(-(reach[:, None] ** 2 + reach**2) / 4.5)
    window /= window.sum()
    x, y = ((picture[0].double().numpy() + 1) / 2 for picture in (a, b))
    values = []
    for c, i, j in np.ndindex(3, 4, 3):
        p, q = x[c, i : i + 11, j : j + 11], y[c, i : i + 11, j : j + 11]
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
        cov = (window * (p - mp) * (q - mq)).sum()
        values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert ssim(a, b)[0] == pytest.approx(np.mean(values), abs=1e-9)
    assert ssim(a, a)[0] == pytest.approx(1)
    assert ssim(a[..., :8, :8], a[..., :8, :8])[0] == pytest.approx(1)


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 3, 8, 8)
    assert psnr(a, a + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)) == pytest.approx([20, 40], abs=1e-4)
    assert psnr(a, a) == [math.inf, math.inf]


def test_what_is_no_latent_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"latents of this model are floats \(B, 4, h, w\), but .* \(4, 16, 16\)"):
        sdkit.decode(torch.zeros(4, 16, 16))
    with pytest.raises(TypeError, match="latents must be Latents or a tensor, but are a str"):
        sdkit.decode("star.png")
    with pytest.raises(FileNotFoundError, match=r"there is no picture 'none\.png'"):
        sdkit.encode("none.png")


def test_pictures_of_any_kind_are_taken(drawings, tmp_path):
    drawings[0].save(tmp_path / "star.png")
    expected = sdkit.encode(drawings[0]).mean
    assert torch.equal(sdkit.encode(tmp_path / "star.png").mean, expected)
    assert torch.equal(sdkit.encode(np.asarray(drawings[0])).mean, expected)
    assert torch.allclose(sdkit.encode(to_pixels(drawings[0])).mean, expected)
    assert isinstance(sdkit.decode(sdkit.encode(drawings[0]))[0], Image.Image)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_every_function_runs_on_components_of_every_family(family, tmp_path):
    makers = {"sd1": random_pipeline, "sdxl": random_xl_pipeline}
    makers["sd2"] = lambda folder: random_pipeline(folder, "v_prediction", **SD2)
    pipeline = makers[family](tmp_path)
    picture = draw("a red star").resize((96, 64))
    assert sdkit.round_trip(picture, model=pipeline).latents.mean.shape == (1, 4, 8, 12)
    forward = sdkit.diffuse(picture, 3, model=pipeline, seed=1)
    back = sdkit.invert(picture, "a star", model=pipeline, num_inference_steps=3, refinements=1)
    assert forward.latents.shape == back.latents.shape == (1, 4, 8, 12)
    for trace in (forward, back):
        assert len(sdkit.describe(trace).spectra.settled) == 5
    assert sdkit.latent_to_rgb(pipeline)(forward.latents)[0].size == (96, 64)
    walk = sdkit.interpolate(forward.latents, back.latents, model=pipeline, frames=2)
    assert walk.images[0].size == (96, 64)
    assert sdkit.cost(pipeline).pixel.measured
    between = sdkit.interpolate("a star", "a cat", model=pipeline, frames=3, num_inference_steps=2, seed=4)
    alone = sdkit.text_to_image("a cat", model=pipeline, num_inference_steps=2, seed=4)
    assert torch.equal(between.latents[-1:], alone.latents)
    assert not torch.equal(between.latents[1], between.latents[0])
