import pytest
import torch
from diffusers import UNet2DConditionModel

import sdkit
from sdkit.tasks.cost import count, unet_call


def test_the_operations_of_a_linear_layer_and_a_convolution_are_their_products():
    class Both(torch.nn.Module):
        config = None

        def __init__(self, _config):
            super().__init__()
            self.linear, self.conv = torch.nn.Linear(7, 5), torch.nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, device):
            self.linear(torch.zeros(2, 7, device=device))
            return self.conv(torch.zeros(1, 3, 8, 8, device=device))

    counted = count(Both(None), lambda both, device, _: both(device))
    assert counted == 2 * (2 * 7 * 5) + 2 * (3 * 4 * 9 * 64)


@pytest.mark.slow
def test_the_unet_of_stable_diffusion_1_costs_what_is_known_of_it():
    """860 million parameters, and about 0.8 TFLOP for one prediction at 64x64 latents; on pixels hundreds of times."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    assert sum(weight.numel() for weight in unet.parameters()) == 859_520_964
    latent, pixel = (count(unet, unet_call(unet, (1, 4, side, side), 77)) for side in (64, 512))
    assert latent == pytest.approx(0.80e12, rel=0.02)
    assert 600 < pixel / latent < 700


@pytest.fixture(scope="module")
def found():
    return sdkit.cost(height=64, width=64)


def test_the_table_tells_parts_shares_and_what_pixels_would_cost(tiny, found):
    text, unet, decoder = found.parts
    assert (text.name, unet.name, decoder.name) == ("text encoder", "U-Net", "decoder")
    assert unet.parameters == sum(weight.numel() for weight in tiny.unet.parameters())
    assert unet.bytes == 4 * unet.parameters
    assert (text.calls, unet.calls, decoder.calls) == (2, 20, 1)
    assert found.flops == 2 * text.flops + 20 * unet.flops + decoder.flops
    assert (found.latent.shape, found.pixel.shape) == ((4, 8, 8), (4, 64, 64))
    assert found.latent.flops == unet.flops
    assert found.pixel.measured
    assert found.pixel.flops > 64 * found.latent.flops  # 64 times the places, and attention grows with their square
    assert found.pixel.seconds > 10 * found.latent.seconds
    assert unet.calls * unet.flops > 0.8 * found.flops
    assert "times the operations" in str(found)


def test_what_would_take_too_long_is_estimated_and_said(sd1):
    found = sdkit.cost(sd1, measure_up_to=0)
    assert not found.pixel.measured
    ratio = found.pixel.flops / found.latent.flops
    assert found.pixel.seconds == pytest.approx(found.latent.seconds * ratio)
    assert "estimated from the operations" in str(found)


def test_sizes_cost_what_their_places_do(tiny):
    one, four = (count(tiny.unet, unet_call(tiny.unet, (1, 4, side, side), 32)) for side in (16, 32))
    assert 4 < four / one < 8
