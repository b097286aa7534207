import math

import pytest
import torch

import sdkit
from sdkit import Stage
from sdkit.latents.statistics import rings
from sdkit.tiny.drawing import draw


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_noise_of_unit_variance_is_standard_in_every_number():
    said = sdkit.describe(noise(16, 4, 32, 32))
    for channel in said.channels:
        assert abs(channel.mean) < 0.04
        assert abs(channel.std - 1) < 0.03
        assert channel.kl < 1e-3
        assert channel.wasserstein < 0.03
    assert torch.allclose(said.correlation, torch.eye(4, dtype=torch.float64), atol=0.04)
    assert torch.allclose(said.explained, torch.full((4,), 0.25, dtype=torch.float64), atol=0.02)


def test_distances_from_the_normal_distribution_are_their_closed_forms():
    """N(m, s^2) is at a KL of (m^2 + s^2 - 1) / 2 - log s; a shift by m alone moves everything by m; two points at -1
    and 1 are at E|1 - |n||."""
    two = torch.tensor([-1.0, 1.0]).repeat(5000).view(100, 100)
    values = torch.stack([0.5 + 2 * noise(100, 100), 3 + noise(100, 100), two])
    wide, shifted, points = sdkit.describe(values[None]).channels
    assert wide.kl == pytest.approx((0.25 + 4 - 1) / 2 - math.log(2), abs=0.05)
    assert shifted.wasserstein == pytest.approx(3, abs=0.05)
    density = [math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in (0, 1)]
    folded = 4 * density[1] - 2 * density[0] + 2 * math.erf(1 / math.sqrt(2)) - 1
    assert points.wasserstein == pytest.approx(folded, abs=0.01)
    assert points.kl == pytest.approx(0, abs=1e-6)  # mean and spread are standard, only the shape is not
    assert (points.min, points.max) == (-1, 1)


def test_histograms_are_shares_with_what_lies_beyond_in_the_outermost_bins():
    values = torch.tensor([-9.0, -0.05, 0.05, 9.0]).view(1, 1, 2, 2)
    said = sdkit.describe(values)
    assert said.histogram[0].sum() == 1
    assert said.histogram[0, [0, 31, 32, -1]].tolist() == [0.25] * 4
    assert (said.edges[0], said.edges[-1], len(said.edges)) == (-4, 4, 65)


def test_channels_that_are_mixed_show_it_in_correlation_and_variance():
    a, b = noise(1, 1, 64, 64, seed=1), noise(1, 1, 64, 64, seed=2)
    said = sdkit.describe(torch.cat([a, -a, 0.5 * b], dim=1))
    assert said.correlation[0, 1] == pytest.approx(-1)
    assert said.explained.tolist() == pytest.approx([2 / 2.25, 0.25 / 2.25, 0], abs=0.02)


def test_the_numbers_are_those_of_the_latents(tiny):
    z = sdkit.encode([draw("a red star"), draw("a cat")])
    said = sdkit.describe(z)
    for c, channel in enumerate(said.channels):
        values = z.mean[:, c]
        assert (channel.mean, channel.min) == pytest.approx((values.mean().item(), values.min().item()), abs=1e-6)
        assert channel.std == pytest.approx(values.std(correction=0).item(), rel=1e-5)
    assert said.spectra is None
    assert "variance along the principal axes" in str(said)


def test_a_wave_lies_in_the_ring_of_its_number_and_power_is_kept():
    y = torch.arange(16) / 16
    z = (2**0.5 * torch.cos(2 * math.pi * 3 * y)).view(1, 1, 16, 1).expand(1, 1, 16, 16)
    trace = sdkit.Trace()
    trace.record(sdkit.Event(Stage.LATENT, z, 0, 10))
    trace.record(sdkit.Event(Stage.LATENT, z))
    power = sdkit.describe(trace).spectra.power[0]
    counts = torch.bincount(rings(16, 16).flatten())
    assert power.argmax() == 3
    assert (power * counts).sum().item() == pytest.approx(z.square().sum().item())  # Parseval
    assert rings(8, 16).max() == 4


@pytest.fixture(scope="module")
def run():
    trace = sdkit.Trace([Stage.DENOISED, Stage.LATENT])
    kinds = ["star", "cat", "boat", "house", "fish", "tree"]
    sdkit.text_to_image([f"a {kind}" for kind in kinds], seed=1, hooks=[trace])
    return trace


@pytest.mark.slow
def test_a_run_settles_coarse_shapes_first_and_details_last(run):
    spectra = sdkit.describe(run).spectra
    assert spectra.stage is Stage.DENOISED
    assert spectra.steps == list(range(20))
    assert spectra.waves == list(range(9))
    assert None not in spectra.settled
    slow, *_, fast = spectra.settled
    assert fast - slow >= 5
    assert spectra.settled[0] < spectra.settled[1] <= spectra.settled[2]
    assert all(later >= max(spectra.settled[:i]) - 1 for i, later in enumerate(spectra.settled) if i)
    assert spectra.agreement[-1].min() > 0.99
    assert "waves a picture, and the step at which they are settled" in str(sdkit.describe(run))


@pytest.mark.slow
def test_noising_loses_details_first_and_coarse_shapes_last():
    trace = sdkit.diffuse([draw("a red star", seed=3), draw("a cat", seed=4)], 40, seed=1)
    spectra = sdkit.describe(trace).spectra
    assert spectra.stage is Stage.LATENT
    assert spectra.settled[0] > spectra.settled[2] > spectra.settled[-1]
    assert spectra.agreement[0].min() > 0.99
    assert torch.allclose(spectra.power[-1][1:], torch.ones(8, dtype=torch.float64), atol=0.5)  # white in the end


def test_what_is_no_latent_is_refused():
    with pytest.raises(TypeError, match=r"a tensor \(B, C, h, w\) or a Trace, but are \(4, 8\)"):
        sdkit.describe(torch.zeros(4, 8))
