import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkit.noise import guide, prediction_from, x0_from

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
