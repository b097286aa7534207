"""Guidance: each method against diffusers where it has it, and what must hold of each where not."""

import inspect

import diffusers
import pytest
import torch
from conftest import EACH_FAMILY, MAKERS
from diffusers import guiders
from diffusers.pipelines.deprecated.semantic_stable_diffusion.pipeline_semantic_stable_diffusion import (
    SemanticStableDiffusionPipeline,
)
from diffusers.pipelines.deprecated.stable_diffusion_panorama.pipeline_stable_diffusion_panorama import (
    StableDiffusionPanoramaPipeline,
)
from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import (
    StableDiffusionSAGPipeline,
)

import sdkit
from sdkit import Stage, hooks

PROMPT = "a red star on a blue background"
RUN = {"num_inference_steps": 2, "guidance_scale": 5.0, "scheduler": "ddim"}
SCHEDULERS = {"sd1": ["ddim", "euler", "dpmpp_2m"], "sd2": ["ddim", "euler"], "sdxl": ["dpmpp_2m"]}
PLAIN = {}  # what runs without hooks gave


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    """The same anatomies, trained less: their weights are a little off."""
    made = {name: sdkit.load(make(tmp_path_factory.mktemp(name))) for name, make in MAKERS.items()}
    torch.manual_seed(1)
    for model in made.values():
        for weight in model.unet.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    return made


def latents(model, *chosen, prompt=PROMPT, seed=1, **more):
    settings = {**RUN, **more}
    known = (id(model), str(prompt), str(seed), *sorted(settings.items()))
    if chosen or known not in PLAIN:
        made = sdkit.text_to_image(prompt, model=model, seed=seed, hooks=list(chosen), **settings).latents
        if chosen:
            return made
        PLAIN[known] = made
    return PLAIN[known]


def close(ours, theirs, limit=1e-4):
    assert (ours - theirs).norm() / theirs.norm() < limit


HOOKS = {
    "apg": lambda _: hooks.apg(),
    "autoguidance": lambda worse: hooks.autoguidance(worse),
    "cads": lambda _: hooks.cads(low=0.1),
    "cfg_plus_plus": lambda _: hooks.cfg_plus_plus(),
    "cfg_zero": lambda _: hooks.cfg_zero(1),
    "compose": lambda _: hooks.compose("a cat", "a blue tree", weights=[3, -2.5]),
    "from_guider": lambda _: hooks.from_guider(guiders.ClassifierFreeZeroStarGuidance(3.0)),
    "pag": lambda _: hooks.pag(),
    "sag": lambda _: hooks.sag(),
    "sega": lambda _: hooks.sega("a cat", warmup=0),
    "seg": lambda _: hooks.seg(),
}


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("name", HOOKS)
def test_each_changes_the_picture_of_every_family(name, family, models, worse):
    model, hook = models[family], HOOKS[name](worse[family])
    for scheduler in SCHEDULERS[family]:
        changed, plain = (latents(model, *chosen, scheduler=scheduler) for chosen in ([hook], []))
        assert changed.isfinite().all()
        assert (changed - plain).norm() / plain.norm() > 1e-4


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("family", ["sdxl"])
def test_each_does_in_a_batch_what_it_does_alone(name, family, models, worse):
    prompts = [PROMPT, "a small cat"]
    hook = HOOKS[name](worse[family])
    together = latents(models[family], hook, prompt=prompts, seed=[1, 5])
    alone = [latents(models[family], hook, prompt=one, seed=seed) for one, seed in zip(prompts, (1, 5), strict=True)]
    close(together, torch.cat(alone))


@pytest.mark.parametrize("name", HOOKS)
def test_each_serves_one_run_after_another_and_beside_other_hooks(name, models, worse):
    model, hook = models["sd1"], HOOKS[name](worse["sd1"])
    once = latents(model, hook)
    assert torch.equal(latents(model, hook), once)
    others = [hooks.compose("a fish", weights=[2]), hooks.pag(1.0), hooks.reweight("star", 2.0)]
    both = latents(model, hook, *others)
    assert both.isfinite().all()
    assert not torch.equal(both, once)
    assert not torch.equal(both, latents(model, *others))


OFF = {
    "autoguidance": lambda worse: hooks.autoguidance(worse, 1),
    "cads": lambda _: hooks.cads(0),
    "compose": lambda _: hooks.compose("a cat", weights=[0]),
    "pag": lambda _: hooks.pag(0),
    "sag": lambda _: hooks.sag(0),
    "sega": lambda _: hooks.sega("a cat", scale=0),
    "seg": lambda _: hooks.seg(0),
}


@pytest.mark.parametrize("name", OFF)
def test_a_scale_that_is_off_changes_no_bit(name, models, worse):
    assert torch.equal(latents(models["sd1"], OFF[name](worse["sd1"])), latents(models["sd1"]))


@pytest.mark.parametrize("hook", [hooks.apg(), hooks.cfg_plus_plus(), hooks.cfg_zero()], ids=["apg", "plus", "zero"])
def test_a_way_to_guide_changes_no_bit_without_guidance(hook, models):
    alone = [latents(models["sd1"], *chosen, guidance_scale=1.0) for chosen in ([hook], [])]
    assert torch.equal(*alone)


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize("name", ["pag", "seg", "sag", "autoguidance"])
def test_what_weakens_the_model_needs_no_guidance(name, guidance_scale, models, worse):
    hook = HOOKS[name](worse["sdxl"])
    plain = latents(models["sdxl"], guidance_scale=guidance_scale)
    assert not torch.equal(latents(models["sdxl"], hook, guidance_scale=guidance_scale), plain)


# ---------------------------------------------------------------------------------------------------------------------
# Against diffusers


def by_diffusers(kind, model, **arguments):
    """Latents of a pipeline of diffusers that is made of a model's parts."""
    known = inspect.signature(kind.__init__).parameters
    parts = {name: part for name, part in model.pipeline.components.items() if name in known}
    pipe = kind(**parts | {"scheduler": diffusers.DDIMScheduler.from_config(model.scheduler.config)}, **(
        {"requires_safety_checker": False} if "requires_safety_checker" in known else {}
    ))  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    before = model.unet.attn_processors
    try:
        return pipe(
            PROMPT,
            generator=torch.Generator().manual_seed(1),
            num_inference_steps=RUN["num_inference_steps"],
            output_type="latent",
            **{"guidance_scale": 5.0} | arguments,
        ).images
    finally:
        model.unet.set_attn_processor(before)


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_pag_is_that_of_diffusers(family, guidance_scale, models):
    kind = diffusers.StableDiffusionXLPAGPipeline if family == "sdxl" else diffusers.StableDiffusionPAGPipeline
    theirs = by_diffusers(kind, models[family], pag_scale=3.0, guidance_scale=guidance_scale)
    close(latents(models[family], hooks.pag(3.0), guidance_scale=guidance_scale), theirs)
    plain = latents(models[family], guidance_scale=guidance_scale)
    assert (plain - theirs).norm() / theirs.norm() > 1e-3


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_sag_is_that_of_diffusers(guidance_scale, models):
    kind, model = StableDiffusionSAGPipeline, models["sd1"]
    theirs = by_diffusers(kind, model, sag_scale=0.75, guidance_scale=guidance_scale)
    close(latents(model, hooks.sag(0.75), guidance_scale=guidance_scale), theirs)


def test_multidiffusion_is_the_panorama_of_diffusers(models):
    size = {"height": 512, "width": 640}  # three windows of 64 latents, one after another by 8
    theirs = by_diffusers(StableDiffusionPanoramaPipeline, models["sd1"], **size)
    close(latents(models["sd1"], hooks.multidiffusion(64, 8), **size), theirs)
    plain = latents(models["sd1"], **size)
    assert (plain - theirs).norm() / theirs.norm() > 1e-3


@pytest.mark.parametrize("warmup", [0, 1])
def test_sega_is_that_of_diffusers(warmup, models):
    options = {"edit_guidance_scale": 5.0, "edit_threshold": 0.9, "edit_warmup_steps": warmup}
    theirs = by_diffusers(
        SemanticStableDiffusionPipeline, models["sd1"], editing_prompt=["a cat", "a blue tree"], **options
    )
    close(latents(models["sd1"], hooks.sega("a cat", "a blue tree", warmup=warmup)), theirs)
    away = by_diffusers(
        SemanticStableDiffusionPipeline,
        models["sd1"],
        editing_prompt=["a cat"],
        reverse_editing_direction=[True],
        **options,
    )
    close(latents(models["sd1"], hooks.sega("a cat", scale=-5.0, warmup=warmup)), away)


GUIDERS = {
    "ClassifierFreeGuidance": {},
    "ClassifierFreeZeroStarGuidance": {"zero_init_steps": 0},
    "AdaptiveProjectedGuidance": {"adaptive_projected_guidance_momentum": -0.5, "eta": 0.0},
    "TangentialClassifierFreeGuidance": {"guidance_rescale": 0.5, "stop": 0.5},
}


@pytest.mark.parametrize("name", GUIDERS)
def test_a_guider_acts_by_its_own_formula(name, models):
    guider, own = (getattr(guiders, name)(4.0, **GUIDERS[name]) for _ in range(2))
    before, seen = repr(guider), []

    @sdkit.on(Stage.GUIDED)
    def check(event):
        uncond, cond = event.run.seen[Stage.NOISE].chunk(2)
        own.set_state(event.step, 2, event.run.visits[event.step].tensor)
        own.prepare_inputs({})
        seen.append(torch.equal(event.value, own.forward(cond, uncond).pred))

    latents(models["sd1"], hooks.from_guider(guider), check)
    assert seen == [True] * 2
    assert repr(guider) == before


def test_the_guider_of_plain_guidance_is_the_plain_run(models):
    guider = guiders.ClassifierFreeGuidance(5.0)
    assert torch.equal(latents(models["sd1"], hooks.from_guider(guider)), latents(models["sd1"]))


def test_cfg_zero_is_that_of_diffusers(models):
    guider = guiders.ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=1)
    close(latents(models["sd1"], hooks.cfg_zero(1)), latents(models["sd1"], hooks.from_guider(guider)), 1e-5)


@pytest.mark.parametrize("norm", [0.5, 15.0])
def test_apg_is_that_of_diffusers_on_x0(norm, models):
    """Its guider works on whatever the model predicts, the paper on x0."""
    guider = guiders.AdaptiveProjectedGuidance(
        4.0,
        adaptive_projected_guidance_momentum=-0.5,
        adaptive_projected_guidance_rescale=norm,
        eta=0.2,
        use_original_formulation=True,  # at one less than the scale of sdkit
    )
    seen = []

    @sdkit.on(Stage.GUIDED)
    def check(event):
        run = event.run
        uncond, cond = run.x0_of(run.seen[Stage.NOISE]).chunk(2)
        guider.set_state(event.step, 2, None)
        guider.prepare_inputs({})
        seen.append(run.noise_of(guider.forward(cond, uncond).pred))
        close(event.value, seen[-1])

    latents(models["sd2"], hooks.apg(eta=0.2, norm=norm, momentum=-0.5), check)
    assert len(seen) == 2


def test_a_guider_that_asks_the_model_for_more_is_refused():
    more = [
        guiders.PerturbedAttentionGuidance(perturbed_guidance_layers=[0]),
        guiders.AutoGuidance(auto_guidance_layers=[0], dropout=0.5),
        "cfg",
    ]
    for guider in more:
        with pytest.raises(TypeError, match="does not make guidance of pred_cond and pred_uncond alone"):
            hooks.from_guider(guider)


# ---------------------------------------------------------------------------------------------------------------------
# What must hold


def test_all_of_the_parallel_part_and_no_momentum_is_plain_guidance(models):
    for family in MAKERS:
        same = latents(models[family], hooks.apg(eta=1.0, norm=float("inf"), momentum=0.0))
        close(same, latents(models[family]))


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_cfg_plus_plus_noises_anew_with_the_unconditional_noise(family, models):
    """Algorithm 2 of the paper, written out for DDIM."""
    model = models[family]
    known = []

    @sdkit.on(Stage.LATENT, Stage.GUIDED)
    def keep(event):
        run = event.run
        if event.stage is Stage.GUIDED:
            x, (uncond, cond) = run.seen[Stage.LATENT], run.seen[Stage.NOISE].chunk(2)
            x0 = run.x0_of(uncond + 0.6 * (cond - uncond), x)
            known.append((x0, run.eps_of(uncond, x)))
        elif event.step:
            x0, eps = known[-1]
            close(event.value, event.alpha * x0 + event.sigma * eps, 1e-5)

    latents(model, hooks.cfg_plus_plus(0.6), keep, num_inference_steps=5)
    assert len(known) == 5


def test_cfg_plus_plus_says_so_where_its_edit_would_be_lost(models):
    with pytest.raises(ValueError, match="would not use the edit"):
        latents(models["sd1"], hooks.cfg_plus_plus(), scheduler="heun")


def test_blurred_queries_are_their_mean_at_infinity_and_as_they_are_at_none(models):
    wide, widest = (latents(models["sd1"], hooks.seg(sigma=sigma)) for sigma in (1e4, float("inf")))
    close(wide, widest)
    close(latents(models["sd1"], hooks.seg(sigma=0.01)), latents(models["sd1"]))


def test_a_model_is_no_worse_than_itself(models):
    close(latents(models["sd1"], hooks.autoguidance(models["sd1"], 3.0)), latents(models["sd1"]))


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_composing_a_prompt_with_itself_guides_by_the_sum_of_the_weights(family, models):
    twice = latents(models[family], hooks.compose(PROMPT, weights=[2.5]), guidance_scale=2.5)
    close(twice, latents(models[family], guidance_scale=5.0))


def test_a_prompt_that_is_negated_is_taken_away_again(models):
    both = hooks.compose("a cat", "a cat", weights=[4.0, -4.0])
    close(latents(models["sdxl"], both), latents(models["sdxl"]))


def test_an_interval_of_guidance_leaves_the_rows_of_concepts_alone(models):
    interval, concept = hooks.guidance_interval(0, 0), hooks.compose("a cat", weights=[0.5])
    own, seen = latents(models["sd1"], interval), []
    look = sdkit.on(Stage.NOISE)(lambda event: seen.append(event.value))
    both = latents(models["sd1"], interval, concept, look)
    assert {len(value) for value in seen} == {3}
    assert not torch.equal(both, own)


def test_concepts_need_guidance(models):
    for hook in (hooks.compose("a cat", weights=[1]), hooks.sega("a cat")):
        with pytest.raises(ValueError, match="give guidance_scale above 1"):
            latents(models["sd1"], hook, guidance_scale=1.0)
    with pytest.raises(ValueError, match="give at least one prompt"):
        latents(models["sd1"], hooks.sega())
    with pytest.raises(ValueError, match="weights must be one for each prompt, but there are 1 for 2"):
        hooks.compose("a cat", "a fish", weights=[1])


def test_annealed_words_come_in_as_the_noise_goes(models):
    seen = {}

    @sdkit.on(Stage.CONTEXT)
    def look(event):
        text = event.run.seen[Stage.TEXT]
        uncond, cond = (event.value - text).chunk(2)
        assert not uncond.any()
        seen[event.t] = cond.norm().item()

    latents(models["sd1"], hooks.cads(low=0.3, high=0.8, mix=0.5), look, num_inference_steps=10)
    strengths = list(seen.values())
    assert strengths[0] > 0
    assert strengths[-3:] == [0, 0, 0]
    with pytest.raises(ValueError, match="low must lie below high"):
        hooks.cads(low=0.9, high=0.6)


def test_annealed_words_differ_by_seed(models):
    seen = []
    look = sdkit.on(Stage.CONTEXT)(lambda event: seen.append(event.value))
    latents(models["sd1"], hooks.cads(low=0.1), look, prompt=[PROMPT] * 2, seed=[1, 2])
    assert not torch.equal(seen[0][2], seen[0][3])
