"""Gradients through the U-Net: each method against diffusers where it has it, and what must hold of each where not."""

import diffusers
import pytest
import torch
from conftest import EACH_FAMILY
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite.pipeline_stable_diffusion_attend_and_excite import (  # noqa: E501
    StableDiffusionAttendAndExcitePipeline,
)
from test_guidance import PROMPT, SCHEDULERS, close, latents

import sdkit
from sdkit import Stage, hooks


def power(x0):
    return x0.square().sum()


def left_half(x0):
    return x0[..., : x0.shape[-1] // 2]


def make(name, scale):
    return {
        "attend_and_excite": lambda: hooks.attend_and_excite("star", "background", scale=scale * 20, thresholds={}),
        "dps": lambda: hooks.dps(left_half, torch.zeros(4, 8, 4), scale),
        "freedom": lambda: hooks.freedom(power, scale),
        "freedom on pixels": lambda: hooks.freedom(power, scale, decoded=True),
        "layout": lambda: hooks.layout({"star": (0, 0, 0.5, 1)}, scale=scale * 30),
        "self_guidance": lambda: hooks.self_guidance("star", scale, centre=(0.2, 0.8), size=0.3),
    }[name]()


NAMES = ["attend_and_excite", "dps", "freedom", "freedom on pixels", "layout", "self_guidance"]


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("name", NAMES)
def test_each_changes_the_picture_of_every_family(name, family, models):
    for scheduler in SCHEDULERS[family]:
        changed, plain = (latents(models[family], *chosen, scheduler=scheduler) for chosen in ([make(name, 0.5)], []))
        assert changed.isfinite().all()
        assert (changed - plain).norm() / plain.norm() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_scale_of_zero_changes_no_bit(name, models):
    assert torch.equal(latents(models["sd1"], make(name, 0)), latents(models["sd1"]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["sdxl"])
def test_each_does_in_a_batch_what_it_does_alone(name, family, models):
    prompts = [PROMPT, "a small star and a blue background"]
    together = latents(models[family], make(name, 0.5), prompt=prompts, seed=[1, 5])
    alone = [
        latents(models[family], make(name, 0.5), prompt=one, seed=seed)
        for one, seed in zip(prompts, (1, 5), strict=True)
    ]
    close(together, torch.cat(alone))


@pytest.mark.parametrize("name", NAMES)
def test_each_serves_one_run_after_another_and_beside_other_hooks(name, models):
    hook = make(name, 0.5)
    once = latents(models["sd1"], hook)
    assert torch.equal(latents(models["sd1"], hook), once)
    others = [hooks.compose("a fish", weights=[2]), hooks.pag(1.0), hooks.cads(low=0.1)]
    both = latents(models["sd1"], *others, hook)
    assert both.isfinite().all()
    assert not torch.equal(both, latents(models["sd1"], *others))


@pytest.mark.parametrize("name", NAMES)
def test_each_works_without_guidance(name, models):
    plain = latents(models["sd1"], guidance_scale=1.0)
    assert not torch.equal(latents(models["sd1"], make(name, 0.5), guidance_scale=1.0), plain)


@pytest.mark.parametrize("thresholds", [{}, {0: 0.05, 1: 0.5}, {0: 0.0133}])
def test_attend_and_excite_is_that_of_diffusers(thresholds, models):
    model = models["sd1"]
    parts = {name: part for name, part in model.pipeline.components.items() if name != "image_encoder"}
    parts["scheduler"] = diffusers.DDIMScheduler.from_config(model.scheduler.config)
    pipe = StableDiffusionAttendAndExcitePipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    before = model.unet.attn_processors
    try:
        theirs = pipe(
            PROMPT,
            token_indices=[3, 7],
            generator=torch.Generator().manual_seed(1),
            num_inference_steps=4,
            guidance_scale=5.0,
            max_iter_to_alter=2,
            thresholds=thresholds,
            attn_res=(8, 8),
            output_type="latent",
        ).images
    finally:
        model.unet.set_attn_processor(before)
    places = []

    @sdkit.on(Stage.TEXT)
    def look(event):
        places.extend(event.run.places(word)[0] for word in ("star", "background"))

    hook = hooks.attend_and_excite("star", "background", until=0.5, thresholds=thresholds)
    close(latents(model, hook, look, num_inference_steps=4), theirs)
    assert places == [[3], [7]]
    assert (latents(model, num_inference_steps=4) - theirs).norm() / theirs.norm() > 1e-3


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_a_loss_gets_smaller_as_freedom_gets_stronger(family, scheduler, models):
    powers = [
        power(latents(models[family], make("freedom", s), scheduler=scheduler, num_inference_steps=3))
        for s in (0, 0.2, 0.5)
    ]
    assert powers[0] > powers[1] > powers[2]


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_dps_comes_nearer_to_what_was_seen(family, models):
    far = [left_half(latents(models[family], make("dps", s), num_inference_steps=10)).norm() for s in (0, 1)]
    assert far[1] < 0.9 * far[0]


def test_a_gradient_is_the_same_whatever_the_scheduler_keeps_of_x(models):
    """Euler's x has another scale than DPM++ 2M's: the first updates differ by that scale alone."""
    moved = {}
    for scheduler in ("dpmpp_2m", "euler"):
        seen = []
        look = sdkit.on(Stage.LATENT, steps=[0])(
            lambda event, seen=seen: seen.append(event.value / event.run.levels[0].scale)
        )
        hook = hooks.attend_and_excite("star", thresholds={})
        settings = {"scheduler": scheduler, "timesteps": [999, 500], "num_inference_steps": None}
        latents(models["sd1"], look, hook, look, **settings)
        moved[scheduler] = (seen[1] - seen[0]).norm()
    assert abs(moved["dpmpp_2m"] / moved["euler"] - 1) < 1e-2


def test_a_word_of_another_picture_is_left_alone(models):
    prompts, chosen = (
        [PROMPT, "a small cat"],
        [make("layout", 1), make("attend_and_excite", 1), make("self_guidance", 1)],
    )
    for hook in chosen:
        together = latents(models["sd1"], hook, prompt=prompts, seed=[1, 5])
        close(together[1:], latents(models["sd1"], prompt=prompts[1], seed=5))
        assert not torch.allclose(together[:1], latents(models["sd1"]), atol=1e-4)


def test_what_cannot_be_meant_is_refused(models):
    with pytest.raises(ValueError, match="the box of 'star' must be left, top, right and bottom"):
        hooks.layout({"star": (0.5, 0, 0.1, 1)})
    with pytest.raises(TypeError, match="boxes must be a dictionary"):
        hooks.layout([(0, 0, 1, 1)])
    with pytest.raises(ValueError, match="needs a centre or a size"):
        hooks.self_guidance("star")
    with pytest.raises(ValueError, match="needs the words that are to be there"):
        hooks.attend_and_excite()
    with pytest.raises(ValueError, match="loss must return one number"):
        latents(models["sd1"], hooks.freedom(lambda x0: x0, 0.1))
    with pytest.raises(ValueError, match="would not use the edit"):
        latents(models["sd1"], make("layout", 1), scheduler="heun", num_inference_steps=10)
