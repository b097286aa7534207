import pytest
import torch

import sdkit
from sdkit import Stage
from sdkit.model.schedulers import noise_schedule
from sdkit.tiny.drawing import draw

PICTURE = draw("a red star on a blue background", seed=3)


def test_every_level_is_the_closed_form_of_the_same_picture_and_noise(tiny):
    trace = sdkit.diffuse([PICTURE, draw("a cat")], 5, seed=2)
    x0, (noise,) = sdkit.encode([PICTURE, draw("a cat")]).tensor, trace[Stage.NOISE]
    alpha_bar = tiny.scheduler.alphas_cumprod
    assert noise.step is None
    assert [record.t for record in trace[Stage.LATENT]] == [0, 250, 500, 749, 999]
    for step, (record, level) in enumerate(zip(trace[Stage.LATENT], trace.settings["levels"], strict=True)):
        alpha, sigma = alpha_bar[record.t] ** 0.5, (1 - alpha_bar[record.t]) ** 0.5
        assert torch.allclose(record.value, alpha * x0 + sigma * noise.value, atol=1e-5)
        assert (record.step, level["t"]) == (step, record.t)
        assert (level["alpha"], level["sigma"]) == pytest.approx((alpha.item(), sigma.item()), abs=1e-6)
        assert level["snr"] == pytest.approx((alpha_bar[record.t] / (1 - alpha_bar[record.t])).item(), rel=1e-4)


def test_each_level_shows_its_decoded_picture_and_the_order_is_that_of_the_process(tiny):
    trace = sdkit.diffuse(PICTURE, [100, 600], seed=2)
    assert [record.stage for record in trace] == [
        Stage.PIXELS, Stage.POSTERIOR, Stage.NOISE, Stage.LATENT, Stage.IMAGE, Stage.LATENT, Stage.IMAGE
    ]  # fmt: skip
    for x, image in zip(trace[Stage.LATENT], trace[Stage.IMAGE], strict=True):
        assert torch.equal(image.value, tiny.decode(x.value))
    assert len(trace.images) == 2
    assert torch.equal(trace.latents, trace[Stage.LATENT][-1].value)


def test_a_seed_is_that_of_the_reverse_process():
    noise = sdkit.diffuse([PICTURE] * 2, 1, seed=7)[Stage.NOISE][0].value
    for i in range(2):
        assert torch.equal(noise[i], torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(7 + i)))


@pytest.mark.slow
def test_step_by_step_has_the_distribution_of_the_closed_form():
    """Of 512 samples from one latent: mean and variance at each level, and the correlation between two levels."""
    levels, count = [49, 299, 699], 512
    pictures = torch.zeros(1, 3, 8, 8).expand(count, 3, 8, 8) + torch.linspace(0, 0.9, 8)
    trace = sdkit.diffuse(pictures, levels, step_by_step=True, seed=1, space="pixel")
    x0 = trace[Stage.PIXELS][0].value
    error = 4 * (1 / x0.numel()) ** 0.5  # four standard errors of a mean
    residues = []
    for record, level in zip(trace[Stage.LATENT], trace.settings["levels"], strict=True):
        residue = (record.value - level["alpha"] * x0) / level["sigma"]
        assert abs(residue.mean().item()) < error
        assert abs(residue.var().item() - 1) < 2**0.5 * error
        residues.append(residue)
    # cov(x_s, x_t) = alpha_t / alpha_s * sigma_s^2 for s < t
    for i, s in enumerate(trace.settings["levels"]):
        for j, t in list(enumerate(trace.settings["levels"]))[i + 1 :]:
            expected = t["alpha"] / s["alpha"] * s["sigma"] / t["sigma"]
            assert abs((residues[i] * residues[j]).mean().item() - expected) < 2 * error
    for record in trace[Stage.NOISE]:  # new in each step, so independent
        assert abs(record.value.var().item() - 1) < 2**0.5 * error


def test_a_chain_of_one_training_step_each_is_the_markov_chain_itself(tiny):
    betas = noise_schedule(tiny.scheduler).betas
    trace = sdkit.diffuse(PICTURE, [0, 1, 2], step_by_step=True, seed=1)
    x = sdkit.encode(PICTURE).tensor
    for record, noise in zip(trace[Stage.LATENT], trace[Stage.NOISE], strict=True):
        beta = betas[record.t].item()
        x = (1 - beta) ** 0.5 * x + beta**0.5 * noise.value
        assert torch.allclose(record.value, x, atol=1e-5)


def test_in_pixel_space_the_picture_itself_is_noised():
    trace = sdkit.diffuse(PICTURE, 3, space="pixel", seed=1)
    pixels, noise = trace[Stage.PIXELS][0].value, trace[Stage.NOISE][0].value
    level = trace.settings["levels"][1]
    assert torch.allclose(trace[Stage.IMAGE][1].value, level["alpha"] * pixels + level["sigma"] * noise)
    assert not trace[Stage.POSTERIOR]


def test_edits_are_heard_and_recorded(tiny):
    @sdkit.on(Stage.NOISE)
    def none(event):
        event.value = torch.zeros_like(event.value)

    trace = sdkit.diffuse(PICTURE, [500], seed=1, hooks=[none])
    level = trace.settings["levels"][0]
    assert torch.allclose(trace.latents, level["alpha"] * sdkit.encode(PICTURE).tensor)
    assert trace.settings["edited_by"] == [none.__qualname__]


def test_a_forward_trace_is_saved_opened_and_compared_like_any_other_but_not_branched(tmp_path):
    trace = sdkit.diffuse(PICTURE, 2, seed=1)
    again = sdkit.Trace.load(trace.save(tmp_path / "forward.safetensors"))
    assert again.settings == trace.settings
    assert again.settings["process"] == "forward"
    assert trace.compare(again).parting is None
    assert noise_schedule(again.settings["scheduler"]).alphas_cumprod.shape == (1000,)
    with pytest.raises(ValueError, match="cannot be branched: it shows the forward process"):
        again.branch(0)


def test_another_scheduler_brings_its_own_noise_schedule():
    from diffusers import DDPMScheduler

    trace = sdkit.diffuse(PICTURE, [500], seed=1, scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    assert trace.settings["levels"][0]["alpha"] ** 2 == pytest.approx(0.49, abs=0.02)  # cos^2(pi / 4) about half-way


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"timesteps": 0}, "timesteps must be a number from 1 to 1000"),
        ({"timesteps": [500, 1000]}, "rising timesteps from 0 to 999"),
        ({"timesteps": [500, 400]}, "rising timesteps from 0 to 999"),
        ({"timesteps": "all"}, "timesteps must be a number, or rising timesteps"),
        ({"space": "pixels"}, "unknown space 'pixels'; did you mean 'pixel'"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 pictures"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        sdkit.diffuse(PICTURE, **arguments)
