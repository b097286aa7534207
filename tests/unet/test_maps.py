"""Attention maps: which words, steps, layers and heads they hold, in how much memory, how well they cover things."""

import warnings

import pytest
import torch
from conftest import random_pipeline
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import sdkit
from benchmarks.embedded import judge
from sdkit import AttentionMaps, Stage, Trace
from sdkit.model.tokens import Word, find, read_tokens, words_of

OPTIONS = {"seed": 3, "num_inference_steps": 3, "height": 64, "width": 64}


def record(model, prompt="a red star", trace=False, maps=None, **more):
    maps, events = maps or AttentionMaps(), Trace(["attention"])
    sdkit.text_to_image(prompt, model=model, hooks=[maps, events] if trace else [maps], **(OPTIONS | more))
    return (maps, events) if trace else maps


def column(trace, place, row=-1, size=64, step=None):
    """The truth from a trace: the mean over layers of one size, over heads and steps, (h*w,)."""
    values = [r.value for r in trace if r.value.shape[2] == size and step in (None, r.step)]
    return torch.stack([value[row, ..., place].mean(0) for value in values]).mean(0)


def test_a_share_is_the_mean_over_layers_heads_and_steps(sd1):
    maps, trace = record(sd1, trace=True, num_images_per_prompt=2)
    assert maps.resolutions == [(8, 8), (4, 4)]
    assert maps.steps == [0, 1, 2]
    for picture in range(2):
        row = 2 + picture
        found = maps.share("star", picture=picture, resolution=(8, 8))
        assert torch.allclose(found.flatten(), column(trace, 3, row), atol=1e-6)
        found = maps.share("star", picture=picture, step=1, resolution=(4, 4))
        assert torch.allclose(found.flatten(), column(trace, 3, row, 16, step=1), atol=1e-6)


def test_layers_and_heads_can_be_kept_by_themselves(sd1):
    maps, trace = record(sd1, trace=True, maps=AttentionMaps(heads=True))
    assert len(maps.layers) == 4
    for layer in maps.layers:
        at = trace.at(2, layer)[Stage.ATTENTION].value
        found = maps.share("red", layer=layer, step=2, head=1)
        assert torch.allclose(found.flatten(), at[1, 1, :, 2], atol=1e-6)
    middle = record(sd1, maps=AttentionMaps(layers=["mid_block"]))
    assert (len(middle.layers), middle.resolutions) == (1, [(4, 4)])
    assert torch.allclose(middle.share("red"), maps.share("red", layer="mid_block"), atol=1e-6)


def test_the_negative_prompt_and_each_of_a_batch_have_their_own_words(sd1):
    maps, trace = record(
        sd1,
        ["a red star", "one cat"],
        trace=True,
        maps=AttentionMaps(negative=True),
        negative_prompt=["a fish", "a boat"],
    )
    assert maps.words == ["a", "red", "star"]
    size = {"resolution": (8, 8)}
    for row, (word, picture, negative) in enumerate(
        [("fish", 0, True), ("boat", 1, True), ("red", 0, False), ("cat", 1, False)]
    ):
        found = maps.share(word, picture=picture, negative=negative, **size)
        assert torch.allclose(found.flatten(), column(trace, 2, row), atol=1e-6)
    with pytest.raises(ValueError, match="no word 'cat' in the prompt; its words are 'a', 'red', 'star'"):
        maps.heat("cat")
    with pytest.raises(ValueError, match="picture must be 0 to 1"):
        maps.heat("cat", picture=2)
    with pytest.raises(ValueError, match="the negative prompt was not kept"):
        record(sd1).heat("fish", negative=True)


def test_tokens_of_a_word_are_joined_and_so_is_what_is_said_twice(sd1):
    maps, trace = record(sd1, "a zebra and a red star", trace=True)
    assert maps.words == ["a", "zebra", "and", "a", "red", "star"]
    places = [i for i, token in enumerate(trace_tokens(sd1, "a zebra and a red star")) if token.word == 1]
    assert len(places) > 1
    size = {"resolution": (8, 8)}
    assert torch.allclose(maps.share("Zebra", **size).flatten(), sum(column(trace, p) for p in places), atol=1e-6)
    assert torch.allclose(
        maps.share("a", **size).flatten(), column(trace, 1) + column(trace, places[-1] + 4), atol=1e-6
    )
    both = maps.share("red", **size) + maps.share("star", **size)
    assert torch.allclose(maps.share("red star", **size), both, atol=1e-6)
    assert torch.allclose(maps.share(1, **size).flatten(), column(trace, 1), atol=1e-6)


def trace_tokens(model, prompt):
    return read_tokens(sdkit.load(model).tokenize([prompt]), model.tokenizer)[0]


def test_words_of_every_window_are_found(sd1):
    prompt = "a red star " * 14 + "and a cat"
    maps, trace = record(sd1, prompt, trace=True, long_prompt="split")
    place = next(word.places[0] for word in maps._words[1][0] if word.text == "cat")
    assert place > sd1.tokenizer.model_max_length
    assert torch.allclose(maps.share("cat", resolution=(8, 8)).flatten(), column(trace, place), atol=1e-6)


def test_oblong_pictures_have_oblong_maps(sd1):
    maps = record(sd1, height=96, width=40)
    assert maps.resolutions == [(12, 5), (6, 3)]
    assert maps.heat("star").shape == (96, 40)
    assert maps.share("star", resolution=(6, 3)).shape == (6, 3)


def test_chosen_words_are_kept_alone(sd1):
    every, chosen = (
        record(sd1, ["a red star", "a star"]),
        record(sd1, ["a red star", "a star"], maps=AttentionMaps(["star"])),
    )
    for picture in range(2):
        assert torch.allclose(chosen.heat("star", picture=picture), every.heat("star", picture=picture), atol=1e-5)
    assert chosen.nbytes * 16 == every.nbytes  # two places of 32
    with pytest.raises(ValueError, match="'a' was not kept; AttentionMaps keeps star"):
        chosen.heat("a")
    with pytest.raises(ValueError, match="there is no word 'moon' in the prompt; its words are 'a', 'red', 'star'"):
        record(sd1, maps=AttentionMaps(["moon"]))


def test_steps_that_are_added_up_take_the_memory_of_one(sd1):
    each, total = record(sd1), record(sd1, maps=AttentionMaps(each_step=False))
    assert torch.allclose(total.heat("star"), each.heat("star"), atol=1e-5)
    assert total.nbytes * 3 == each.nbytes
    assert total.nbytes == 32 * 4 * (8 * 8 + 4 * 4)  # float32 of every token
    assert total.steps == [0, 1, 2]
    with pytest.raises(ValueError, match="step 1 was not kept by itself; kept: only the sum"):
        total.heat("star", step=1)


def test_no_budget_is_broken_and_thinning_is_said_once(sd1):
    one = record(sd1, num_inference_steps=1).nbytes
    with pytest.warns(UserWarning, match="keep fewer steps") as said:
        maps = record(sd1, maps=AttentionMaps(budget=3 * one), num_inference_steps=10)
    assert len(said) == 1
    assert maps.steps == [0, 4, 8]
    assert maps.nbytes == 3 * one
    assert maps.heat("star", step=4).shape == (64, 64)
    with pytest.raises(ValueError, match="step 1 was not kept by itself; kept: 0, 4, 8"):
        maps.heat("star", step=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert record(sd1, maps=AttentionMaps(budget=10 * one), num_inference_steps=10).steps == list(range(10))


def test_what_maps_cannot_be_told_or_asked_is_said(sd1):
    maps = record(sd1)
    with pytest.raises(TypeError, match="put 'star' in brackets"):
        AttentionMaps("star")
    with pytest.raises(ValueError, match="budget must be a size"):
        AttentionMaps(budget="much")
    with pytest.raises(ValueError, match="already hold a run"):
        record(sd1, maps=maps)
    with pytest.raises(ValueError, match="hold no run"):
        AttentionMaps().heat("star")
    with pytest.raises(ValueError, match=r"give resolution, one of \(8, 8\), \(4, 4\)"):
        maps.share("star")
    with pytest.raises(ValueError, match=r"nothing was kept .* at resolution \(3, 3\); kept: \(8, 8\)"):
        maps.heat("star", resolution=(3, 3))
    with pytest.raises(ValueError, match=r"layers and heads were joined; record with AttentionMaps\(layers=True\)"):
        maps.heat("star", layer="mid_block")
    assert repr(maps).startswith("<AttentionMaps of ['a', 'red', 'star']: 3 steps at 8x8, 4x4,")
    assert repr(AttentionMaps()) == "<AttentionMaps of no run>"


def test_embeddings_have_no_words_but_their_places_can_be_asked_for(sd1):
    maps = AttentionMaps()
    sdkit.text_to_image(model=sd1, prompt_embeds=torch.randn(1, 32, 32), hooks=[maps], **OPTIONS)
    assert maps.words == []
    assert maps.heat(2).shape == (64, 64)
    with pytest.raises(ValueError, match="was given no words there; give the place of a token"):
        maps.heat("star")


def test_the_map_of_a_noun_covers_its_thing(tiny):
    for prompt, word in (("a red star on a white background", "star"), ("a green tree on the left", "tree")):
        maps = AttentionMaps()
        picture = sdkit.text_to_image(prompt, seed=2, num_inference_steps=10, hooks=[maps]).image
        drawn = judge.silhouette(picture)
        assert judge.best_cover(maps.heat(word, resolution=(16, 16)), torch.from_numpy(drawn)) >= 0.75


# ---------------------------------------------------------------------------------------------------------------------
# Words


def words_from(pieces, added):
    """The words in which the pieces of a tokenizer come out."""
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "</s>", *dict.fromkeys(pieces)])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary)), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_tokens(added)
    ids = tokenizer.convert_tokens_to_ids(["<s>", *pieces, "</s>", "</s>"])
    (row,) = read_tokens(torch.tensor([ids]), tokenizer)
    return ["".join(pieces[place - 1] for place in word.places) for word in words_of(row, tokenizer)]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["a</w>", "ze", "bra</w>"], ["a</w>", "zebra</w>"]),
        (["▁a", "▁ze", "bra"], ["▁a", "▁zebra"]),
        (["a", "Ġze", "bra"], ["a", "Ġzebra"]),
        (["a", "ze", "##bra"], ["a", "ze##bra"]),
        (["a</w>", "<cat>", "<cat>_1", "<cat>_2", "red</w>"], ["a</w>", "<cat><cat>_1<cat>_2", "red</w>"]),
        (["<cat>", "<cat>", "<dog>", "red</w>"], ["<cat>", "<cat>", "<dog>", "red</w>"]),
    ],
)
def test_words_are_told_apart_as_their_tokenizer_marks_them(pieces, words):
    assert words_from(pieces, [piece for piece in pieces if piece.startswith("<")]) == words


def test_padding_is_no_word_even_where_it_is_one_elsewhere(tmp_path):
    """Stable Diffusion 2 pads with the exclamation mark."""
    own = random_pipeline(tmp_path)
    own.tokenizer.pad_token = "!"
    tokens = read_tokens(sdkit.load(own).tokenize(["a star!"]), own.tokenizer)[0]
    assert [token.word for token in tokens[:5]] == [None, 0, 1, 2, None]
    assert {(token.text, token.word) for token in tokens[5:]} == {("!", None)}


def test_a_word_is_found_wherever_it_stands():
    words = [Word("a", (1,)), Word("red", (2,)), Word("don", (3, 4)), Word("'t", (5,)), Word("red", (6,))]
    assert find(words, "RED") == [2, 6]
    assert find(words, "don't") == [3, 4, 5]
    assert find(words, "a red") == [1, 2]
    with pytest.raises(ValueError, match=r"its words are 'a', 'red', 'don', \"'t\"$"):
        find(words, "")


def test_heats_are_the_heat_of_each_word(tiny):
    maps = AttentionMaps(negative=True)
    sdkit.text_to_image("a red star", model=tiny, seed=1, num_inference_steps=2, hooks=[maps])
    every = maps.heats(["red", "star"], step=1, size=(128, 128))
    assert torch.equal(every, torch.stack([maps.heat(word, step=1) for word in ("red", "star")]))
    assert maps.heats(["star"], step=0, size=(16, 16)).shape == (1, 16, 16)
    with pytest.raises(ValueError, match="step 7 was not kept"):
        maps.heats(["star"], step=7, size=(16, 16))
