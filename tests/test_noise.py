import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkit.noise import NoiseLevel, guide, lerp, prediction_from, slerp, snr, x0_from

TYPES = ["epsilon", "sample", "v_prediction"]
levels = st.floats(0.05, 1.5)  # an angle: alpha = cos, sigma = sin


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))


def truth(kind, x0, eps, alpha, sigma):
    scale = (alpha**2 + sigma**2) ** 0.5
    return {"epsilon": eps, "sample": x0, "v_prediction": (alpha * eps - sigma * x0) / scale}[kind]


@given(seed=st.integers(0, 99), level=levels, kind=st.sampled_from(TYPES), scale=st.sampled_from(["unit", "sigma"]))
def test_the_true_prediction_gives_the_clean_sample_and_back(seed, level, kind, scale):
    x0, eps = draw(seed)
    alpha, sigma = torch.tensor(level, dtype=torch.float64).cos(), torch.tensor(level, dtype=torch.float64).sin()
    if scale == "sigma":
        alpha, sigma = alpha / alpha, sigma / alpha
    x = alpha * x0 + sigma * eps
    prediction = truth(kind, x0, eps, alpha, sigma)
    assert torch.allclose(x0_from(prediction, x, alpha, sigma, kind), x0, atol=1e-9)
    assert torch.allclose(prediction_from(x0, x, alpha, sigma, kind), prediction, atol=1e-9)


def test_an_unknown_prediction_type_is_named():
    x = torch.zeros(1)
    for convert in (x0_from, prediction_from):
        with pytest.raises(ValueError, match=r"'velocity'.*'epsilon', 'sample' or 'v_prediction'"):
            convert(x, x, 1.0, 1.0, "velocity")


def test_guidance_of_one_is_the_conditional_prediction_and_of_zero_the_unconditional_one():
    uncond, cond = draw(0)
    assert torch.allclose(guide(uncond, cond, 1.0), cond)
    assert torch.equal(guide(uncond, cond, 0.0), uncond)


def test_rescaled_guidance_has_the_spread_of_the_conditional_prediction():
    uncond, cond = draw(1)
    guided = guide(uncond, cond, 9.0, guidance_rescale=1.0)
    assert torch.allclose(guided.std((1, 2, 3)), cond.std((1, 2, 3)))


def test_half_rescaled_guidance_lies_half_way():
    uncond, cond = draw(2)
    plain, whole, half = (guide(uncond, cond, 9.0, guidance_rescale=share) for share in (0.0, 1.0, 0.5))
    assert torch.allclose(half, (plain + whole) / 2)


@given(seed=st.integers(0, 99), weight=st.floats(0, 1))
def test_slerp_goes_evenly_in_norm_and_in_angle(seed, weight):
    a, b = draw(seed)
    point = slerp(a, 2 * b, weight)
    norms = a.flatten(1).norm(dim=1), 2 * b.flatten(1).norm(dim=1)
    assert torch.allclose(point.flatten(1).norm(dim=1), (1 - weight) * norms[0] + weight * norms[1])
    whole, part = angle(a, b), angle(a, point)
    assert torch.allclose(part, weight * whole, atol=1e-6)


def angle(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1).acos()


def test_between_is_exact_at_the_ends_and_straight_where_there_is_no_one_arc():
    a, b = (one.float() for one in draw(3))
    for between in (lerp, slerp):
        assert torch.equal(between(a, b, 0), a)
        assert torch.equal(between(a, b, 1.0), b)
        assert torch.allclose(between(a, a, 0.3), a)
        assert torch.allclose(between(a, -a, 0.25), a / 2, atol=1e-6)
        assert between(a.half(), b.half(), 0.5).dtype == torch.float16


def test_an_end_is_the_very_tensor_and_not_made_of_both():
    a, b = torch.zeros(1, 2), torch.full((1, 2), float("inf"))
    for between in (lerp, slerp):
        assert between(a, b, 0) is a
        assert between(b, a, 1) is a


def test_slerp_of_half_precision_is_that_of_float32_rounded():
    a, b = (one.half() for one in draw(4))
    assert torch.equal(slerp(a, b, 0.4), slerp(a.float(), b.float(), 0.4).half())


def test_slerp_of_short_samples_keeps_to_their_norms():
    a, b = torch.tensor([[0.01, 0.0]]), torch.tensor([[0.0, 0.03]])
    assert torch.allclose(slerp(a, b, 0.5), torch.full((1, 2), 0.02 * 0.5**0.5))


def test_slerp_is_a_number_where_rounding_takes_a_cosine_beyond_one():
    many = torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    unit = many / many.norm(dim=1, keepdim=True)
    assert ((unit * unit).sum(1) > 1).any()
    for other in (many, -many):
        assert slerp(many, other, 0.25).isfinite().all()


def test_half_way_noise_keeps_its_spread_along_the_arc_and_loses_it_along_the_line():
    a, b = (torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert abs(slerp(a, b, 0.5).std().item() - 1) < 0.02
    assert abs(lerp(a, b, 0.5).std().item() - 0.5**0.5) < 0.02


@given(level=levels)
def test_snr_is_the_ratio_of_variances(level):
    alpha, sigma = torch.tensor(level).cos(), torch.tensor(level).sin()
    assert torch.allclose(snr(alpha, sigma), alpha.square() / sigma.square())


def test_a_noise_level_says_ratio_share_and_scale():
    level = NoiseLevel(500, 0.6, 0.8)
    assert (level.snr, level.noise, level.scale) == pytest.approx((0.5625, 0.64, 1.0))
    karras = NoiseLevel(999, 1.0, 3.0)
    assert (karras.snr, karras.noise, karras.scale) == pytest.approx((1 / 9, 0.9, 10**0.5))
    assert NoiseLevel(0, 1.0, 0.0).snr == math.inf
