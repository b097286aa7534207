"""What is shown of the inside of the U-Net is what it computes, looking changes nothing, and edits do what they say."""

import pytest
import torch
from accelerate import cpu_offload
from conftest import random_pipeline
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

import sdkit
from sdkit import AttentionMaps, Stage, Trace
from sdkit.events import INNER
from sdkit.unet.attention import grid
from sdkit.unet.scope import Scope

OPTIONS = {"seed": 3, "num_inference_steps": 2}
ALL = ("attention", "self_attention", "block")


class Written:
    """Attention written out with diffusers' own parts: the truth. `change` may replace the probabilities."""

    def __init__(self, change=None):
        self.seen, self.change = [], change

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, source.shape[1], len(source))
        q, k, v = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)))
        p = attn.get_attention_scores(q, k, mask)
        if encoder_hidden_states is not None:
            self.seen.append(p.unflatten(0, (-1, attn.heads)))
            if self.change is not None:
                p = self.change(self.seen[-1]).flatten(0, 1)
        return attn.to_out[0](attn.batch_to_head_dim(p @ v))


def looker(*stages):
    """A hook that gathers what it is shown."""
    seen = []
    hook = sdkit.on(*stages)(lambda event: seen.append((event.stage.value, event.layer, event.value)))
    return hook, seen


def bare(unet):
    """Whether nothing hangs on a U-Net."""
    return not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def generate(model, prompt="a red star", hooks=(), **more):
    return sdkit.text_to_image(prompt, model=model, hooks=hooks, **(OPTIONS | more))


@pytest.fixture
def own(tmp_path):
    """A random pipeline of one's own, to hang things on."""
    return random_pipeline(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The truth, and nothing changed


def test_what_is_shown_is_what_attention_written_out_computes(own):
    hook, seen = looker("attention")
    generate(own, hooks=[hook], num_inference_steps=1)
    truth = Written()
    own.unet.set_attn_processor(truth)
    generate(own, num_inference_steps=1)
    assert len(seen) == len(truth.seen) == 4
    for (_, _, value), expected in zip(seen, truth.seen, strict=True):
        assert torch.allclose(value, expected, atol=1e-6)
        assert torch.allclose(value.sum(-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"prompt": ["a red star", "a cat"], "num_images_per_prompt": 2, "negative_prompt": ["a fish", ""]},
        {"height": 96, "width": 64},
        {"height": 72, "width": 56},
        {"guidance_scale": 1.0},
        {"prompt": "a red star " * 20, "long_prompt": "split"},
        {"scheduler": "heun"},
    ],
    ids=["plain", "batch", "oblong", "odd", "unguided", "windows", "heun"],
)
def test_looking_changes_no_bit_and_leaves_nothing(sd1, more):
    given = {"height": 64, "width": 64} | more
    plain = generate(sd1, **given)
    processors = dict(sd1.unet.attn_processors)
    hook, seen = looker(*ALL)
    maps, chosen = AttentionMaps(negative=True, heads=True), AttentionMaps(["star"])
    looked = generate(sd1, **given, hooks=[maps, hook, chosen])
    assert torch.equal(looked.latents, plain.latents)
    assert torch.equal(generate(sd1, **given, hooks=[AttentionMaps()]).latents, plain.latents)
    assert looked.settings == plain.settings
    assert {stage for stage, *_ in seen} == set(ALL)
    assert bare(sd1.unet)
    assert all(sd1.unet.attn_processors[name] is one for name, one in processors.items())
    heat = maps.heat("star")
    assert heat.shape == (given["height"], given["width"])
    assert (heat.min(), heat.max()) == (0, 1)
    assert torch.allclose(chosen.heat("star"), heat, atol=1e-4)


@pytest.mark.parametrize("processor", [AttnProcessor(), AttnProcessor2_0(), SlicedAttnProcessor(1), "fused"])
def test_any_processor_makes_the_output(own, processor):
    if processor == "fused":
        own.fuse_qkv_projections(vae=False)
    else:
        own.unet.set_attn_processor(processor)
    plain = generate(own)
    hook, seen = looker("attention")
    maps = AttentionMaps()
    assert torch.equal(generate(own, hooks=[maps]).latents, plain.latents)
    assert torch.equal(generate(own, hooks=[hook]).latents, plain.latents)
    own.unet.set_attn_processor(truth := Written())
    generate(own)
    assert all(torch.allclose(value, one, atol=1e-6) for (_, _, value), one in zip(seen, truth.seen, strict=True))


def test_lora_is_heard_and_left_as_it_was(own):
    peft = pytest.importorskip("peft")
    before = generate(own).latents
    own.unet.add_adapter(
        peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    plain = generate(own)
    hook, seen = looker("attention")
    assert torch.equal(generate(own, hooks=[hook]).latents, plain.latents)
    assert torch.equal(generate(own, hooks=[AttentionMaps(["star"])]).latents, plain.latents)
    own.unet.set_attn_processor(truth := Written())
    generate(own)
    assert all(torch.allclose(value, one, atol=1e-5) for (_, _, value), one in zip(seen, truth.seen, strict=True))
    own.unet.delete_adapters("default")
    own.unet.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(generate(own).latents, before)


def with_ip_adapter(unet):
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(16, 32, 4)])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    width = {name: attn.to_q.out_features for name, attn in unet.named_modules() if name.endswith("attn2")}
    torch.manual_seed(1)
    unet.set_attn_processor(
        {
            name: IPAdapterAttnProcessor2_0(width[name.removesuffix(".processor")], 32)
            if "attn2" in name
            else AttnProcessor2_0()
            for name in unet.attn_processors
        }
    )
    return {"added_cond_kwargs": {"image_embeds": [torch.randn(2, 1, 16)]}}


@torch.no_grad()
def test_an_ip_adapter_goes_on_with_lora_and_offloading_beside_it(own):
    peft = pytest.importorskip("peft")
    unet, x, text = own.unet, torch.randn(2, 4, 8, 8), torch.randn(2, 32, 32)
    own.unet.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k"]))
    given = with_ip_adapter(unet)
    cpu_offload(unet, "cpu")
    plain = unet(x, 5, text, **given).sample
    hook, seen = looker("attention")
    with (scope := Scope(unet, [hook])).at():
        looked = scope.unet(x, 5, text, **given).sample
    assert torch.equal(looked, plain)
    assert all(value.shape[-1] == 32 for _, _, value in seen)  # of the words alone, not of the picture's tokens

    @sdkit.on(Stage.ATTENTION)
    def nowhere(event):
        event.value = event.value * 0

    with (scope := Scope(unet, [nowhere])).at():
        deaf = scope.unet(x, 5, text, **given).sample
    for processor in unet.attn_processors.values():
        if isinstance(processor, IPAdapterAttnProcessor2_0):
            processor.scale = [0.0]
    with (scope := Scope(unet, [nowhere])).at():
        deaf_and_blind = scope.unet(x, 5, text, **given).sample
    assert not torch.allclose(deaf, plain, atol=1e-4)
    assert not torch.allclose(deaf, deaf_and_blind, atol=1e-4)  # what the adapter adds was still there


def of_family(family):
    """A small U-Net with the traits of SD 2.x or SDXL, and what it is called with."""
    torch.manual_seed(0)
    more = {"cross_attention_dim": 32, "use_linear_projection": True, "norm_num_groups": 4, "layers_per_block": 1}
    if family == "sd2":
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=(2, 4), **more,
        )  # fmt: skip
        return unet.eval(), {}
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16, **more,
    )  # fmt: skip
    return unet.eval(), {"added_cond_kwargs": {"text_embeds": torch.randn(2, 16), "time_ids": torch.ones(2, 6)}}


@torch.no_grad()
@pytest.mark.parametrize(("family", "layers"), [("sd2", 4), ("sdxl", 8)])
def test_other_families_show_the_truth_too(family, layers):
    unet, given = of_family(family)
    x, text = torch.randn(2, 4, 12, 8), torch.randn(2, 7, 32)
    mask = torch.ones(2, 7)
    mask[0, 4:] = 0
    plain = unet(x, 5, text, encoder_attention_mask=mask, **given).sample
    hook, seen = looker(*ALL)
    with (scope := Scope(unet, [hook])).at(0, 5):
        assert torch.equal(scope.unet(x, 5, text, encoder_attention_mask=mask, **given).sample, plain)
    unet.set_attn_processor(truth := Written())
    unet(x, 5, text, encoder_attention_mask=mask, **given)
    found = [value for stage, _, value in seen if stage == "attention"]
    assert len(found) == len(truth.seen) == layers
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, truth.seen, strict=True))
    assert found[0][0, ..., 4:].max() < 1e-6  # what is masked is not looked at
    assert all(grid(value.shape[2], 12, 8) in ((12, 8), (6, 4)) for value in found)


def test_hooks_see_layers_by_the_names_of_their_modules(sd1):
    hook, seen = looker(*ALL)
    generate(sd1, hooks=[hook], num_inference_steps=1)
    for stage, layer, value in seen:
        module = sd1.unet.get_submodule(layer)
        assert stage == "block" or value.shape[1] == module.heads
    assert [layer for stage, layer, _ in seen if stage == "block"] == [
        "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1",
    ]  # fmt: skip


def test_a_hook_that_names_no_stage_inside_is_not_called_there(sd1):
    seen = []
    generate(sd1, hooks=[lambda event: seen.append(event.stage)])
    assert not INNER & set(seen)


# ---------------------------------------------------------------------------------------------------------------------
# Editing


def test_new_probabilities_are_what_the_output_is_made_from(own):
    @sdkit.on(Stage.ATTENTION)
    def sharpen(event):
        event.value = event.value.square() / event.value.square().sum(-1, keepdim=True)

    edited = generate(own, hooks=[sharpen])
    own.unet.set_attn_processor(Written(lambda p: p.square() / p.square().sum(-1, keepdim=True)))
    assert torch.allclose(edited.latents, generate(own).latents, atol=1e-4)
    assert "sharpen" in edited.settings["edited_by"][0]


def test_an_edit_that_changes_nothing_changes_no_bit_and_one_of_a_half_leaves_the_other(sd1):
    @sdkit.on(Stage.ATTENTION)
    def assign(event):
        event.value = event.value.clone()

    assert torch.equal(generate(sd1, hooks=[assign]).latents, generate(sd1).latents)

    @sdkit.on(Stage.ATTENTION)
    def mute(event):
        uncond, cond = event.value.chunk(2)
        event.value = torch.cat([uncond, cond * 0])

    traces = [Trace(["noise"]), Trace(["noise"])]
    generate(sd1, hooks=[traces[0]], num_inference_steps=1)
    generate(sd1, hooks=[mute, traces[1]], num_inference_steps=1)
    (uncond, cond), (uncond_too, muted) = (trace["noise"][0].value for trace in traces)
    assert torch.equal(uncond, uncond_too)
    assert not torch.allclose(cond, muted, atol=1e-4)


def test_maps_are_of_what_hooks_have_left(sd1):
    @sdkit.on(Stage.ATTENTION)
    def stare(event):
        event.value = torch.zeros_like(event.value)
        event.value = event.value.index_fill(-1, torch.tensor([3]), 1.0)

    maps, chosen = AttentionMaps(), AttentionMaps(["star"])
    generate(sd1, hooks=[maps, stare, chosen], height=64, width=64)
    assert maps.share("star", resolution=(8, 8)).eq(1).all()
    assert chosen.share("star", resolution=(8, 8)).eq(1).all()
    assert maps.share("red", resolution=(8, 8)).eq(0).all()


@pytest.mark.parametrize("name", ["down_blocks.0", "mid_block", "up_blocks.0"])
def test_a_block_can_be_edited(sd1, name):
    @sdkit.on(Stage.BLOCK)
    def halve(event):
        if event.layer == name:
            event.value = event.value / 2

    edited = generate(sd1, hooks=[halve])

    def by_hand(module, arguments, output):
        if not isinstance(output, tuple):
            return output / 2
        return output[0] / 2, (*output[1][:-1], output[1][-1] / 2)

    handle = sd1.unet.get_submodule(name).register_forward_hook(by_hand)
    try:
        assert torch.equal(edited.latents, generate(sd1).latents)
    finally:
        handle.remove()
    assert not torch.equal(edited.latents, generate(sd1).latents)


def test_self_attention_can_be_edited_and_is_capped(sd1):
    @sdkit.on(Stage.SELF_ATTENTION)
    def look_at_oneself(event):
        assert event.value.shape[-1] <= 32 * 32
        event.value = torch.eye(event.value.shape[-1]).expand_as(event.value).clone()

    assert not torch.equal(generate(sd1, hooks=[look_at_oneself]).latents, generate(sd1).latents)
    hook, seen = looker("self_attention")
    generate(sd1, hooks=[hook], height=320, width=256, num_inference_steps=1)
    assert {value.shape[-1] for *_, value in seen} == {20 * 16}  # those of 40x32 places are left out


def test_an_edit_that_does_not_fit_and_a_hook_that_fails_say_where_and_leave_the_model_as_it_was(sd1):
    plain = generate(sd1)

    @sdkit.on(Stage.ATTENTION)
    def shrink(event):
        event.value = event.value[:1]

    @sdkit.on(Stage.BLOCK)
    def stumble(event):
        if event.layer == "up_blocks.0" and event.step == 1:
            raise KeyError("lost")

    with pytest.raises(ValueError, match=r"stage 'attention', step 0 \(t=\d+\), layer 'down_blocks.0.*shape"):
        generate(sd1, hooks=[shrink])
    with pytest.raises(KeyError) as caught:
        generate(sd1, hooks=[stumble, AttentionMaps(["star"])])
    assert "stumble' at stage 'block', step 1" in caught.value.__notes__[0]
    assert bare(sd1.unet)
    assert torch.equal(generate(sd1).latents, plain.latents)


def test_a_failure_between_keys_and_output_leaves_nothing(own):
    class Broken(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            attn.to_q(hidden_states)
            attn.to_k(hidden_states if encoder_hidden_states is None else encoder_hidden_states)
            raise MemoryError("no room")

    own.unet.set_attn_processor(Broken())
    with pytest.raises(MemoryError):
        generate(own, hooks=[AttentionMaps(["star"], layers=["up"])])
    assert bare(own.unet)


@pytest.mark.parametrize("grad", [True, False])
def test_hooks_inside_run_in_the_grad_mode_of_the_caller(sd1, grad):
    modes = []
    with torch.set_grad_enabled(grad):
        generate(sd1, hooks=[sdkit.on("block")(lambda _: modes.append(torch.is_grad_enabled()))])
    assert set(modes) == {grad}


# ---------------------------------------------------------------------------------------------------------------------
# Everywhere that a run can be started from


def test_two_runs_driven_in_turn_keep_their_own_maps(sd1):
    alone = [AttentionMaps() for _ in range(2)]
    for maps, prompt in zip(alone, ("a red star", "a blue cat"), strict=True):
        generate(sd1, prompt, hooks=[maps])
    turns = [AttentionMaps() for _ in range(2)]
    runs = [
        sdkit.stages(prompt, model=sd1, hooks=[maps], **OPTIONS)
        for prompt, maps in zip(("a red star", "a blue cat"), turns, strict=True)
    ]
    for _ in zip(*runs, strict=True):
        assert bare(sd1.unet)
    for a, b, word in zip(alone, turns, ("star", "cat"), strict=True):
        assert torch.equal(a.heat(word), b.heat(word))


def test_a_branch_a_rerun_and_a_variation_show_their_inside(sd1, tmp_path):
    trace, whole = Trace(), AttentionMaps()
    result = generate(sd1, hooks=[trace, whole], num_inference_steps=3)
    maps = AttentionMaps()
    trace.branch(1, hooks=[maps])
    assert maps.steps == [1, 2]
    assert torch.equal(maps.heat("star", step=2), whole.heat("star", step=2))
    (path,) = result.save(tmp_path / "star.png")
    again = AttentionMaps()
    sdkit.rerun(path, model=sd1, hooks=[again])
    assert torch.equal(again.heat("red"), whole.heat("red"))
    varied = AttentionMaps()
    sdkit.image_to_image(result.image, "a cat", strength=0.5, model=sd1, hooks=[varied], seed=1, num_inference_steps=4)
    assert (varied.words, varied.steps) == (["a", "cat"], [0, 1])


def test_hooks_of_a_loop_of_ones_own_come_before_it(sd1):
    @sdkit.on(Stage.GUIDED)
    def mark(event):
        event.value = event.value * 0 + 5

    events = sdkit.stages("a star", model=sd1, hooks=[mark], **OPTIONS)
    assert all(event.value.eq(5).all() for event in events if event.stage is Stage.GUIDED)
    with pytest.raises(TypeError, match="in brackets"):
        sdkit.stages("a star", model=sd1, hooks=mark, **OPTIONS)


def test_a_trace_records_the_inside_on_demand_in_its_file_too(sd1, tmp_path):
    trace = Trace(["attention", "block", "latent"])
    generate(sd1, hooks=[trace])
    opened = Trace.load(trace.save(tmp_path / "run.safetensors"))
    for one in (trace, opened):
        layers = [record.layer for record in one if record.step == 1]
        assert layers.count(None) == 1
        assert len(layers) == 1 + 4 + 5
        mid = one.at(1, layer="mid_block")
        assert list(mid) == [Stage.BLOCK]
        assert mid[Stage.BLOCK].value.shape == (2, 32, 4, 4)
        assert list(one.at(1)) == [Stage.LATENT]
        assert "layer 'mid_block'" in repr(mid[Stage.BLOCK])
    assert opened.compare(trace).parting is None
    other = Trace(["attention", "block"])
    generate(sd1, "a blue star", hooks=[other])
    parting = trace.compare(other).parting
    assert (parting.stage, parting.step, parting.layer) == (
        Stage.ATTENTION, 0, "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
    )  # fmt: skip
    assert parting.layer in str(trace.compare(other))


@pytest.mark.filterwarnings("ignore:the trace reached its budget")
def test_a_trace_of_the_inside_keeps_its_budget(sd1):
    trace = Trace(["attention"], budget=200_000)
    generate(sd1, hooks=[trace], num_inference_steps=6, height=64, width=64)
    assert sum(record.value.nbytes for record in trace) <= 200_000
    assert len({record.layer for record in trace if record.step == trace.steps[0]}) == 4


def test_asking_for_what_is_not_there_is_said(sd1):
    with pytest.raises(ValueError, match=r"no layer of cross-attention begins with 'middle'; there are down_blocks\.0"):
        generate(sd1, hooks=[AttentionMaps(layers=["middle"])])
    torch.manual_seed(0)
    convolutions = UNet2DConditionModel(
        block_out_channels=(16,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        mid_block_type=None, norm_num_groups=4, layers_per_block=1, cross_attention_dim=32,
    )  # fmt: skip
    hook, _ = looker("attention")
    with (
        pytest.raises(ValueError, match=r"'attention', but there is none in this U-Net; its layers are none"),
        Scope(convolutions, [hook]).at(),
    ):
        convolutions(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 7, 32))
    hook, _ = looker("self_attention")
    unet, _ = of_family("sd2")
    unet.set_attn_processor(Written())
    with pytest.raises(ValueError, match="at most 1024 places"), Scope(unet, [hook]).at(), torch.no_grad():
        unet(torch.zeros(1, 4, 96, 96), 1, torch.zeros(1, 7, 32))


def test_the_grid_of_a_layer_follows_from_its_places():
    assert [grid(n, 9, 7) for n in (63, 20, 6, 2)] == [(9, 7), (5, 4), (3, 2), (2, 1)]
    with pytest.raises(ValueError, match="10 places are no halving of latents of 9x7"):
        grid(10, 9, 7)
