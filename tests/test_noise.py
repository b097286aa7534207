import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkit.noise import guide, lerp, prediction_from, slerp, snr, x0_from

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


def test_half_way_noise_keeps_its_spread_along_the_arc_and_loses_it_along_the_line():
    a, b = (torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert abs(slerp(a, b, 0.5).std().item() - 1) < 0.02
    assert abs(lerp(a, b, 0.5).std().item() - 0.5**0.5) < 0.02


@given(level=levels)
def test_snr_is_the_ratio_of_variances(level):
    alpha, sigma = torch.tensor(level).cos(), torch.tensor(level).sin()
    assert torch.allclose(snr(alpha, sigma), alpha.square() / sigma.square())
