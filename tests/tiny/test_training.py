"""The trainings, at a length that tests can wait for: the loop, where words look, the whole way from nothing."""

import itertools
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

import sdkit
from benchmarks.embedded import autoencoders
from sdkit.tiny import anatomy, discriminator, grammar, train
from sdkit.tiny.fitting import Recipe, fit

RECIPE = Recipe(steps=12, batch=4, learning_rate=0.05, warmup=2)


def learn(out, recipe=RECIPE, stop_at=None):
    """Fit y = 2x with a noisy loss; `stop_at` breaks the run as a power cut would."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)

    def loss_of(step):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(recipe.batch, 1)
        return (model(x) - 2 * x + 0.1 * torch.randn_like(x)).square().mean()

    fit("line", model, loss_of, recipe, out, Accelerator(cpu=True), lambda: {"slope": model.weight.item()}, every=4)
    return model


def test_a_run_that_was_interrupted_ends_where_an_unbroken_one_does(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    unbroken = learn(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "b", stop_at=10)
    resumed = learn(tmp_path / "b")
    assert torch.equal(resumed.weight, unbroken.weight)
    assert torch.equal(resumed.bias, unbroken.bias)
    assert (tmp_path / "a" / "line.csv").read_text() == (tmp_path / "b" / "line.csv").read_text()


def test_it_learns_and_logs(tmp_path):
    model = learn(tmp_path, Recipe(steps=400, batch=16, learning_rate=0.05, warmup=2, ema=0.9))
    assert abs(model.weight.item() - 2) < 0.05
    header, *rows = (tmp_path / "line.csv").read_text().splitlines()
    assert header == "step,loss,slope"
    assert len(rows) == 100


def test_the_learning_rate_rises_stays_and_falls():
    recipe = Recipe(steps=100, batch=1, learning_rate=1.0, warmup=10, decay=0.3)
    assert [round(recipe.rate(step), 3) for step in (0, 4, 9, 50, 70, 85, 99)] == [0.1, 0.5, 1, 1, 1, 0.5, 0.033]


def test_rates_slow_one_child_of_a_model_down(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"fast": nn.Linear(1, 1, bias=False), "still": nn.Linear(1, 1, bias=False)})
    before = {name: child.weight.item() for name, child in model.items()}

    def loss_of(step):
        return sum((child.weight - 3).square().sum() for child in model.values())

    fit("two", model, loss_of, RECIPE, tmp_path, Accelerator(cpu=True), dict, every=12, rates={"still": 0.0})
    assert model["still"].weight.item() == before["still"]
    assert model["fast"].weight.item() != before["fast"]


def test_watched_attention_computes_what_diffusers_computes():
    torch.manual_seed(0)
    unet = anatomy.unet().eval()
    nn.init.normal_(unet.conv_out.weight)
    x, t, text = torch.randn(2, 4, 16, 16), torch.tensor(500), torch.randn(2, 32, anatomy.TEXT_WIDTH)
    seen = []
    with torch.no_grad():
        plain = unet(x, t, text).sample
        unet.set_attn_processor(train.WatchedAttention(seen))
        assert torch.allclose(unet(x, t, text).sample, plain, atol=1e-3)  # of values up to 30
    assert [tuple(layer.shape) for layer in seen] == [(2, 256, 32)] * 3
    assert torch.allclose(torch.stack(seen).sum(-1), torch.ones(3, 2, 256), atol=1e-5)


def test_the_word_loss_is_least_where_nouns_look_at_their_things():
    masks = torch.zeros(2, 2, 16, 16, dtype=torch.uint8)
    masks[0, 0, :, :8], masks[0, 1, :, 8:] = 255, 255
    nouns = torch.tensor([[1, 3], [0, 0]])  # the second caption is emptied
    right = torch.zeros(2, 256, 4)
    right[0, :, 1], right[0, :, 3] = masks[0].flatten(1) / 255
    swapped = right[:, :, [0, 3, 2, 1]]
    losses = [float(train.word_loss([heat], nouns, masks)) for heat in (right, swapped)]
    assert losses[0] < 1e-3
    assert losses[1] > 5
    assert float(train.word_loss([right, swapped], nouns, masks)) == pytest.approx(sum(losses) / 2)
    assert float(train.word_loss([right], torch.zeros_like(nouns), masks)) == 0


def test_wordings_of_a_picture_differ_and_say_where_its_nouns_stand(tiny):
    seeds = range(40, 60)
    ids, nouns = train.worded(tiny.tokenizer, seeds, train.scene)
    assert (ids.shape, nouns.shape) == ((20, train.WORDINGS, 32), (20, train.WORDINGS, 2))
    for seed, of_picture, places in zip(seeds, ids, nouns, strict=True):
        shown = train.scene(seed)
        assert len(set(map(tuple, of_picture.tolist()))) > 1
        for tokens, (first, second) in zip(of_picture, places.tolist(), strict=True):
            said = grammar.parse(tiny.tokenizer.decode(tokens, skip_special_tokens=True))
            assert [thing.kind for thing in said.things] == [thing.kind for thing in shown.things]
            words = [tiny.tokenizer.decode(tokens[[place]]).strip() for place in (first, second) if place]
            assert words == [thing.kind for thing in shown.things]


@pytest.mark.slow
def test_the_whole_training_runs_from_nothing_to_a_model_that_loads(tmp_path):
    short = Recipe(steps=2, batch=2, learning_rate=1e-3, warmup=1)
    parts = dict.fromkeys(("crops", "whole", "text", "denoiser"), short)
    preset = replace(train.PRESETS["minutes"], pictures=64, latents=40, every=2, **parts)
    pages = []
    folder = train.train(tmp_path, preset, show=pages.append)
    assert [page.size for page in pages] == [(408, 256)]
    assert isinstance(pages[0], Image.Image)
    picture = sdkit.text_to_image("a red star", model=folder, num_inference_steps=2).image
    assert picture.size == (64, 64)
    assert len(train.load_file(tmp_path / "latents" / "000000.safetensors")["mean"]) == 40  # as many as were asked for


def test_an_unknown_preset_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="unknown preset 'minute'; did you mean 'minutes'"):
        train.train(tmp_path / "out", "minute")
    assert not (tmp_path / "out").exists()


def test_each_variant_of_the_autoencoder_differs_and_a_decoder_that_trains_on_leaves_the_latents_as_they_are():
    pictures = train.pixels(range(1))
    x = train.as_input(pictures)
    recipe = Recipe(steps=1, batch=1, learning_rate=1e-3, warmup=1)
    made = [vae.eval() for _, vae in autoencoders.variants(1, pictures, recipe)]
    with torch.no_grad():
        latents = [vae.encode(x).latent_dist.mean for vae in made]
        restored = [vae.decode(z).sample for vae, z in zip(made, latents, strict=True)]
    assert [[torch.equal(a, b) for a in latents] for b in latents[:3]] == [
        [True, False, False, False, False],
        [False, True, False, False, False],
        [False, False, True, True, True],
    ]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(restored, 2))


def test_a_picture_is_as_sharp_as_itself_and_a_blurred_one_less():
    x = train.as_input(train.pixels(range(4)))
    vae = anatomy.autoencoder().eval()  # averages blocks of 8x8
    assert autoencoders.measure(vae, x)["sharpness of edges"] < 0.5
    assert discriminator.sharpness(x, x) == 1


def test_a_logit_of_the_discriminator_sees_16_by_16_pixels():
    torch.manual_seed(0)
    picture = torch.randn(1, 3, 64, 64, requires_grad=True)
    discriminator.Discriminator()(picture)[0, 0, 16, 16].backward()
    seen = picture.grad[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [16, 16]


def test_the_discriminator_learns_from_telling_and_the_decoder_alone_from_fooling():
    torch.manual_seed(0)
    x = train.as_input(train.pixels(range(2)))
    critic, restored = discriminator.Discriminator(), (0.5 * x).requires_grad_()
    discriminator.fooling_loss(critic, x, restored).backward()
    assert restored.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in critic.parameters())
    restored.grad = None
    discriminator.telling_loss(critic, x, restored).backward()
    assert restored.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in critic.parameters() if weight.ndim > 1)


def test_a_discriminator_is_asked_only_where_there_are_edges():
    flat = torch.zeros(1, 3, 32, 32)
    split = flat.clone()
    split[..., 16:] = 1
    critic = discriminator.Discriminator()
    assert discriminator.telling_loss(critic, flat, split).item() == 0
    assert discriminator.telling_loss(critic, split, flat).item() > 0


def test_a_discriminator_that_knows_every_edge_costs_nothing_until_it_is_fooled():
    split = torch.zeros(1, 3, 32, 32)
    split[..., 16:] = 1

    def sure(picture):
        return 2 * torch.sign(picture[:, :1, ::2, ::2] + picture[:, :1].amax() - 0.75)

    sure.requires_grad_ = bool  # nothing to learn
    assert discriminator.telling_loss(sure, split, 0.1 * split).item() == 0
    assert discriminator.fooling_loss(sure, split, 0.1 * split).item() == 2
    assert discriminator.fooling_loss(sure, split, split).item() == -2


@pytest.mark.slow
def test_balanced_losses_pull_equally_at_the_last_layer():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    one, other = (3 * last).square().sum(), last.sum()
    weight = discriminator.balance(one, other, last)
    (a,), (b,) = torch.autograd.grad(one, last), torch.autograd.grad(weight * other, last)
    assert torch.allclose(a.norm(), b.norm())
