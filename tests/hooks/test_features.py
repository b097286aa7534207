"""Methods on features, on pictures that are made together, and on the trajectory."""

import itertools

import pytest
import torch
from conftest import EACH_FAMILY, MAKERS

import sdkit
from sdkit import Stage, Trace, hooks

RUN = {"prompt": "a red star", "num_inference_steps": 6, "guidance_scale": 5.0, "seed": 7}
EVERY = {
    "free_u": lambda _: hooks.free_u(),
    "h_space": lambda model: hooks.h_space(torch.ones(model.unet.config.block_out_channels[-1], 1, 1)),
    "ablate": lambda _: hooks.ablate("mid_block"),
    "deep_cache": lambda _: hooks.deep_cache(2),
    "t_gate": lambda _: hooks.t_gate(3),
    "masactrl": lambda _: hooks.masactrl(1),
    "style_aligned": lambda _: hooks.style_aligned(),
    "repaint": lambda model: hooks.repaint(_half(model), torch.zeros(4, 8, 8), seed=1, jump=2, times=2),
    "restart": lambda _: hooks.restart(2, 4, seed=1, times=2),
    "multidiffusion": lambda _: hooks.multidiffusion(6, 2),
}


def _half(_model):
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    return mask


def draw(pipeline, *chosen, **more):
    return sdkit.text_to_image(model=pipeline, hooks=chosen, **RUN | more)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_each_method_acts_on_every_family_beside_another_hook_and_says_so(pipelines, family, name):
    pipeline = pipelines[family]
    more = {"prompt": ["a red star", "a blue cat"]}
    plain = draw(pipeline, **more)
    result = draw(pipeline, EVERY[name](sdkit.load(pipeline)), hooks.dynamic_threshold(limit=100.0), **more)
    assert result.latents.isfinite().all()
    assert not torch.equal(result.latents, plain.latents)
    record = result.settings
    assert name in record["edited_by"] or "given" in record or "visited" in record


@pytest.mark.parametrize(
    ("name", "scheduler"),
    list(itertools.product(["free_u", "deep_cache", "repaint", "restart"], ["euler", "ddpm"])),
)
def test_they_work_under_other_schedulers(pipelines, name, scheduler):
    result = draw(pipelines["sd2"], EVERY[name](sdkit.load(pipelines["sd2"])), scheduler=scheduler)
    assert result.latents.isfinite().all()


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_free_u_is_that_of_diffusers_to_the_bit(family, tmp_path):
    pipeline = MAKERS[family](tmp_path)
    ours = draw(pipeline, hooks.free_u(s1=0.9, s2=0.2, b1=1.3, b2=1.4))
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    assert torch.equal(ours.latents, draw(pipeline).latents)


def test_a_cache_that_is_filled_at_every_step_changes_nothing(pipelines):
    assert torch.equal(draw(pipelines["sd1"], hooks.deep_cache(1)).latents, draw(pipelines["sd1"]).latents)
    assert torch.equal(draw(pipelines["sd1"], hooks.t_gate(99)).latents, draw(pipelines["sd1"]).latents)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_between_two_whole_steps_a_cache_has_the_last_layer_of_the_unet_alone_computed(family, tmp_path):
    pipeline, called = MAKERS[family](tmp_path), []
    for name, part in pipeline.unet.named_modules():
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
            part.register_forward_hook(lambda *_, name=name: called.append(name))
    draw(pipeline, hooks.deep_cache(2), num_inference_steps=2)
    whole, again = (
        called[: len(called) - called[::-1].index("conv_in") - 1],
        called[-called[::-1].index("conv_in") - 1 :],
    )
    last = len(pipeline.unet.up_blocks) - 1
    layer = len(pipeline.unet.up_blocks[last].resnets) - 1
    own = (f"up_blocks.{last}.resnets.{layer}.", f"up_blocks.{last}.attentions.{layer}.")
    inside = [name for name in whole if "blocks." in name or "mid_block" in name]
    assert [name for name in again if name in inside] == [name for name in inside if name.startswith(own)] != []


def test_all_heads_of_a_layer_left_out_one_by_one_are_the_layer_left_out(pipelines):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2"
    heads = pipelines["sd1"].unet.get_submodule(layer).heads
    each = draw(pipelines["sd1"], *(hooks.ablate(layer, head) for head in range(heads)))
    bias = pipelines["sd1"].unet.get_submodule(layer).to_out[0].bias

    @sdkit.on(Stage.BLOCK, layer=layer)
    def bias_alone(event):
        event.value = bias.expand_as(event.value)

    assert torch.allclose(each.latents, draw(pipelines["sd1"], bias_alone).latents, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"head must be one of the layer's {heads}, from 0, but is 99"):
        draw(pipelines["sd1"], hooks.ablate(layer, 99))


def test_the_first_picture_is_what_it_is_alone_where_others_look_at_it(pipelines):
    for method in (hooks.masactrl(0), hooks.style_aligned()):
        two = draw(pipelines["sd1"], method, prompt=["a red star", "a blue cat"])
        first = draw(pipelines["sd1"], method)
        assert torch.allclose(two.latents[:1], first.latents, rtol=1e-3, atol=1e-3)
    assert torch.allclose(
        draw(pipelines["sd1"], hooks.masactrl(0)).latents, draw(pipelines["sd1"]).latents, rtol=1e-4, atol=1e-4
    )


def test_a_run_that_takes_its_own_features_is_that_run(pipelines):
    trace = Trace(["block", "query", "key"])
    plain = draw(pipelines["sd1"], trace)
    assert torch.equal(draw(pipelines["sd1"], hooks.plug_and_play(trace, until=1.0)).latents, plain.latents)
    other = draw(pipelines["sd1"], hooks.plug_and_play(trace), prompt="a blue cat")
    assert not torch.equal(other.latents, draw(pipelines["sd1"], prompt="a blue cat").latents)
    with pytest.raises(ValueError, match="record as many pictures and steps with Trace"):
        draw(pipelines["sd1"], hooks.plug_and_play(trace), prompt=["a", "b"])


def test_repainting_leaves_what_is_known_and_goes_through_each_part_as_often_as_it_says(pipelines):
    known = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    result = draw(pipelines["sd1"], hooks.repaint(_half(None), known, seed=1, jump=2, times=2))
    assert torch.equal(result.latents[0, :, :, :4], known[:, :, :4])
    assert result.settings["visited"] == [0, 1, 2, 0, 1, 2, 3, 4, 2, 3, 4, 5, 4, 5]


def test_a_restart_goes_through_its_interval_as_often_as_it_says(pipelines):
    result = draw(pipelines["sd1"], hooks.restart(1, 4, seed=1, times=3))
    assert result.settings["visited"] == [0, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5]
    assert torch.equal(
        draw(pipelines["sd1"], hooks.restart(1, 4, seed=1, times=1)).latents, draw(pipelines["sd1"]).latents
    )


def test_one_window_over_the_whole_picture_is_the_plain_run_and_several_are_their_mean(pipelines):
    plain = draw(pipelines["sd1"])
    assert torch.allclose(
        draw(pipelines["sd1"], hooks.multidiffusion(8, 4)).latents, plain.latents, rtol=1e-4, atol=1e-5
    )
    wide = draw(pipelines["sd1"], hooks.multidiffusion(8, 4), width=128)
    assert wide.image.size == (128, 64)
