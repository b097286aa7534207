"""The little world and the embedded model: its grammar, its pen, its anatomy, its files."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sdkit
from benchmarks.embedded import details, eyes, judge
from sdkit.tiny import anatomy, drawing, grammar, train
from sdkit.tiny.grammar import COLOURS, HELD_OUT, KINDS, Scene, Thing

WEIGHTS = Path(sdkit.__file__).parent / "tiny" / "weights"


@given(st.integers(0, 2**32), st.sampled_from([1, 2]))
def test_a_caption_says_its_scene_and_nothing_else(seed, things):
    rng = random.Random(seed)
    scene = grammar.leave_out(grammar.random_scene(rng, things), rng)
    heard = train.mute_medium(scene)
    assert grammar.parse(grammar.caption_of(scene, rng)) == heard


@given(st.integers(0, 2**32), st.sampled_from([1, 2]))
def test_chance_never_lands_on_a_held_out_pair(seed, things):
    scene = grammar.random_scene(random.Random(seed), things)
    assert not {(thing.colour, thing.kind) for thing in scene.things} & HELD_OUT


def test_training_scenes_have_no_held_out_pair_and_every_other():
    seen = {(t.colour, t.kind) for seed in range(3000) for t in train.scene(seed).things}
    assert seen == {(colour, kind) for colour in COLOURS for kind in KINDS} - HELD_OUT


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("a red star", Scene((Thing("star", "red"),))),
        ("A Big GREY-ish", None),
        ("a small red fish at the top on a gray background", Scene((Thing("fish", "red", "small"),), "gray", "top")),
        ("a red house to the left of a cat", Scene((Thing("house", "red"), Thing("cat")), None, None, "left of")),
        ("a pink background with an orange boat", Scene((Thing("boat", "orange"),), "pink")),
        ("a little cat in the middle", Scene((Thing("cat", None, "small"),), None, "centre")),
        ("a red zebra", None),
        ("a star a cat", None),
        ("", None),
        ("a star on the left above a cat", None),
    ],
)
def test_captions_are_read_or_refused_with_what_was_expected(caption, scene):
    if scene is None:
        with pytest.raises(ValueError, match="caption"):
            grammar.parse(caption)
    else:
        assert grammar.parse(caption) == scene


def test_the_same_seed_leaves_the_same_things_to_chance():
    star, fish = (drawing.draw_with_facts(f"a {words}", seed=5).scene for words in ("red star", "blue fish"))
    assert (star.background, star.place, star.things[0].size) == (fish.background, fish.place, fish.things[0].size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_is_mostly_of_its_colour(kind, colour):
    """Of the pixels that are near to any paint, most are near to the one that was named, on the boat hull and sail."""
    found = drawing.draw_with_facts(f"a large {colour} {kind} in the centre", seed=1)
    paints = np.array([drawing.PAINTS[name] for name in COLOURS], dtype=float)
    inside = np.asarray(found.image, dtype=float)[found.masks[0] > 0.99]
    distance = np.linalg.norm(inside[:, None] - paints[None], axis=-1)
    nearest = np.bincount(distance.argmin(1)[distance.min(1) < 40], minlength=len(COLOURS))
    assert COLOURS[int(nearest.argmax())] == colour


@given(st.integers(0, 10_000))
def test_masks_cover_their_things_and_nothing_else(seed):
    found = drawing.draw_with_facts("a red cat left of a blue fish on a white background", seed)
    cat, fish = found.masks
    assert not ((cat > 0) & (fish > 0)).any()
    image = np.asarray(found.image, dtype=float)
    empty = (cat == 0) & (fish == 0)
    assert image[empty].min() > 200
    assert (np.nonzero(cat)[1].mean() < np.nonzero(fish)[1].mean()) == (found.scene.relation == "left of")


@pytest.mark.parametrize(
    ("place", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("top", 0, -1), ("bottom", 0, 1)]
)
def test_things_are_where_the_caption_puts_them(place, axis, sign):
    preposition = "on" if axis == 1 else "at"
    for seed in range(20):
        mask = drawing.draw_with_facts(f"a red star {preposition} the {place}", seed).masks[0]
        centre = (np.nonzero(mask)[axis].mean() - 63.5) * sign
        assert 12 < centre < 40


def test_sizes_are_apart():
    areas = {
        size: [drawing.draw_with_facts(f"a {size} red square", seed).masks[0].sum() for seed in range(20)]
        for size in ("small", "large")
    }
    assert max(areas["small"]) * 2 < min(areas["large"])


def test_drawing_is_a_function_of_caption_and_seed():
    same = [np.asarray(drawing.draw("a red star", seed)) for seed in (3, 3, 4)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])
    assert same[0].shape == (128, 128, 3)


def test_every_word_of_the_grammar_is_one_token(tiny):
    words = [*COLOURS, *grammar.BACKGROUNDS, *KINDS, "background", "left", "above", "centre", "small"]
    assert [tiny.tokenizer.tokenize(word) for word in words] == [[f"{word}</w>"] for word in words]


def test_an_untrained_autoencoder_already_is_a_coarse_one():
    torch.manual_seed(0)
    vae = anatomy.autoencoder().eval()
    pictures = train.as_input(train.pixels(range(16)))
    with torch.no_grad():
        assert train.psnr(vae(pictures).sample, pictures) > 19


def test_standardising_latents_changes_no_picture():
    torch.manual_seed(0)
    vae = anatomy.autoencoder().eval()
    pictures = train.as_input(train.pixels(range(4)))
    with torch.no_grad():
        before, z = vae(pictures).sample, vae.encode(pictures).latent_dist.mean
        anatomy.standardise_latents(vae, z.mean((0, 2, 3)), z.std((0, 2, 3)))
        z = vae.encode(pictures).latent_dist.mean
        assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
        assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=1e-4)
        assert torch.allclose(vae(pictures).sample, before, atol=1e-4)


@pytest.mark.slow
def test_the_autoencoder_restores_unseen_drawings_from_standard_latents(tiny):
    first = train.VALIDATION + 1000
    pictures = train.as_input(train.pixels(range(first, first + 256)))
    with torch.no_grad():
        z = torch.cat([tiny.vae.encode(part).latent_dist.mean for part in pictures.split(32)])
        assert train.psnr(tiny.vae.decode(z[:64]).sample, pictures[:64]) >= 32
    # The mean of a channel over pictures varies with their backgrounds, by some 0.06 over this many.
    assert z.mean((0, 2, 3)).abs().max() < 0.2
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_the_weights_are_half_precision_safetensors_in_diffusers_layout_within_16_megabytes():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    assert pipeline.unet.config.sample_size == 16


def test_the_model_draws_the_colours_and_kinds_that_it_is_told(tiny):
    """A coarse guard of what `python -m benchmarks.embedded.judge` measures in full: one picture of each kind."""
    eye = judge.trained_eye()
    asked = [(kind, next(c for c in COLOURS[i % 8 :] if (c, kind) not in HELD_OUT)) for i, kind in enumerate(KINDS)]
    result = sdkit.text_to_image([f"a {colour} {kind}" for kind, colour in asked], seed=0)
    said = torch.tensor([grammar.answers(Scene((Thing(kind, colour),))) for kind, colour in asked])
    right = eye.read(result.images)[:, :2] == said[:, :2]
    assert right[:, 1].float().mean() >= 0.75
    assert right.all(1).float().mean() >= 0.5


@pytest.mark.parametrize("trained", [eyes.trained_eye, eyes.trained_second_eye])
def test_the_judges_read_drawings_right(trained):
    for part, share in eyes.check_on_drawings(trained(), count=200).items():
        assert share >= 0.98, part


@pytest.mark.parametrize("kind", details.DETAILS)
def test_the_judge_of_details_tells_a_thing_with_its_detail_from_the_same_without(kind):
    scenes = details.large_things()[kind][::2]
    whole, bare = (
        [details.drawn(grammar.complete(s, i), i, whole=w).image for i, s in enumerate(scenes)] for w in (True, False)
    )
    outlines = [np.array_equal(eyes.silhouette(a), eyes.silhouette(b)) for a, b in zip(whole, bare, strict=True)]
    assert all(outlines) == (kind not in ("fish", "boat"))  # whose fins and sails are part of it
    eye = details.trained_detail_eye()
    assert eye.sees(whole).float().mean() >= 0.9
    assert eye.sees(bare).float().mean() <= 0.1


def test_the_spread_of_a_background_is_that_of_its_noise():
    rng = np.random.default_rng(0)
    ramp = np.linspace(100, 120, 128)[:, None, None] * np.ones((1, 128, 3))
    picture = ramp + rng.normal(0, 4, ramp.shape)
    picture[40:80, 40:80] = 0
    assert judge.background_spread(Image.fromarray(picture.round().astype(np.uint8))) == pytest.approx(4, rel=0.03)
    assert judge.background_spread(Image.fromarray(ramp.astype(np.uint8))) < 0.5
    full = np.zeros((128, 128, 3), np.uint8)
    full[4:-4, 4:-4] = 255
    assert judge.background_spread(Image.fromarray(full)) is None


@pytest.mark.slow
def test_a_clean_drawing_has_one_shape_for_each_thing_and_a_spot_is_one_more():
    for seed in range(9_000_000, 9_000_060):
        scene = train.scene(seed)
        picture = drawing.draw_scene(scene, seed).image
        assert len(judge.shapes(picture)) == len(scene.things)
    picture.paste((255, 0, 0), (2, 2, 7, 7))
    assert sorted(judge.shapes(picture))[0] == 25


def test_the_best_cover_is_the_intersection_over_union_at_the_best_threshold():
    mask = torch.tensor([True, True, False, False])
    assert judge.best_cover(torch.tensor([0.9, 0.8, 0.2, 0.1]), mask) == 1
    assert judge.best_cover(torch.tensor([0.9, 0.1, 0.2, 0.1]), mask) == 0.5
    assert judge.best_cover(torch.tensor([0.1, 0.1, 0.9, 0.9]), mask) == 0.5


def test_words_look_at_their_things(tiny):
    before = dict(tiny.unet.attn_processors)
    covers, _ = judge.where_words_look(tiny, 1, count=16)
    _, own = judge.where_words_look(tiny, 2, count=16)
    assert sum(covers) / len(covers) >= 0.75
    assert sum(own) >= 0.9 * len(own)
    assert tiny.unet.attn_processors == before


def test_a_straight_line_between_two_latents_decodes_to_plausible_pictures(tiny):
    """Half way between two drawings lies their blend: nothing darker or lighter than both, up to what packing costs."""
    a, b = (train.as_input(train.pixels(range(i, i + 16))) for i in (train.VALIDATION, train.VALIDATION + 16))
    with torch.no_grad():
        z = (tiny.vae.encode(a).latent_dist.mean + tiny.vae.encode(b).latent_dist.mean) / 2
        middle = tiny.vae.decode(z).sample
    outside = torch.relu(torch.minimum(a, b) - middle) + torch.relu(middle - torch.maximum(a, b))
    assert outside.mean() < 0.1  # of a range of 2


@pytest.mark.slow
def test_image_to_image_recolours_a_thing_and_keeps_its_place(tiny):
    kinds = [kind for kind in KINDS if kind != "star"] * 2
    drawn = [drawing.draw_with_facts(f"a purple {kind}", seed) for seed, kind in enumerate(kinds)]
    prompts = [f"a {'red' if d.scene.things[0].kind != 'fish' else 'green'} {d.scene.things[0].kind}" for d in drawn]
    result = sdkit.image_to_image([d.image for d in drawn], prompts, strength=0.5, seed=0)
    read = judge.trained_eye().read(result.images)
    asked = [COLOURS.index(prompt.split()[1]) + 1 for prompt in prompts]
    places = [1 + grammar.PLACES.index(d.scene.place) for d in drawn]
    assert (read[:, 1] == torch.tensor(asked)).float().mean() >= 0.7
    assert (read[:, 7] == torch.tensor(places)).float().mean() >= 0.8


@pytest.mark.slow
def test_an_empty_prompt_gives_clean_pictures_of_one_or_two_things(tiny):
    result = sdkit.text_to_image([""] * 12, seed=0)
    plausible = [len(found) in (1, 2) and min(found) > 150 for found in map(judge.shapes, result.images)]
    assert sum(plausible) >= 9


@pytest.mark.slow
def test_guidance_trades_variety_for_obedience(tiny):
    obedience, variety = [], []
    for guidance_scale in (1.0, 8.0):
        result = sdkit.text_to_image(["a cat"] * 24, seed=0, guidance_scale=guidance_scale)
        read = judge.trained_eye().read(result.images)
        obedience.append(int((read[:, 0] == KINDS.index("cat") + 1).sum()))
        # Of colour, size, background and place, none of which the caption gives: their entropy in nats, summed.
        shares = [torch.bincount(read[:, part]) / len(read) for part in (1, 2, 6, 7)]
        variety.append(sum(float(torch.special.entr(share).sum()) for share in shares))
    assert obedience[1] > obedience[0]
    assert variety[1] < variety[0] - 0.2


@pytest.mark.slow
def test_a_negative_prompt_removes_what_it_names(tiny):
    """Each seed's star comes in some colour of its own; naming that star in the negative prompt gives another."""
    eye = judge.trained_eye()
    colours = eye.read(sdkit.text_to_image(["a star"] * 12, seed=0).images)[:, 1]
    named = [f"a {COLOURS[colour - 1]} star" for colour in colours]
    again = eye.read(sdkit.text_to_image(["a star"] * 12, negative_prompt=named, seed=0).images)[:, 1]
    assert (again == colours).float().mean() <= 0.2


@pytest.mark.slow
def test_neighbouring_seeds_give_different_pictures(tiny):
    pictures = [np.asarray(image, dtype=float) for image in sdkit.text_to_image(["a star"] * 6, seed=7).images]
    apart = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(apart) > 5  # of 255


def test_unknown_words_do_not_break_a_picture(tiny):
    """The known ones among them are heard, and no picture falls to pieces; some stay empty."""
    pictures = sdkit.text_to_image(["a red zebra", "qwertz uiop", "\U0001f98a"], seed=0).images
    assert all(len(judge.shapes(picture)) <= 3 for picture in pictures)
    assert judge.trained_eye().read(pictures)[0, 1] == COLOURS.index("red") + 1


def test_intervals_are_wilsons():
    low, high = judge.interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
