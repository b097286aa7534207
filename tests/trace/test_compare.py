"""Two runs held against each other, number by number and word by word."""

import pytest
import torch

from sdkit import Stage
from sdkit.trace.compare import Comparison, Difference, compare
from sdkit.trace.record import Record


def record(stage, value, step=None, layer=None):
    return Record(stage, step, None if step is None else 900 - step, [], torch.as_tensor(value), layer)


def test_the_numbers_are_cosine_and_euclidean_distance():
    one = [record(Stage.LATENT, [[3.0, 4.0]], 2)]
    (row,) = compare(one, [record(Stage.LATENT, [[4.0, 3.0]], 2)])
    assert (row.stage, row.step, row.layer, row.psnr) == (Stage.LATENT, 2, None, None)
    assert (row.cosine, row.distance) == pytest.approx((24 / 25, 2**0.5))


@pytest.mark.parametrize(("a", "b", "cosine"), [([0, 0], [0, 0], 1.0), ([0, 0], [0, 1], 0.0), ([1, 1], [-2, -2], -1.0)])
def test_nothing_points_the_way_of_nothing_alone(a, b, cosine):
    (row,) = compare([record(Stage.TOKENS, a)], [record(Stage.TOKENS, b)])
    assert row.cosine == pytest.approx(cosine)
    assert row.distance == pytest.approx(torch.tensor([a, b]).double().diff(dim=0).norm().item())


def test_pictures_alone_have_a_ratio_to_noise():
    picture = torch.zeros(1, 3, 2, 2)
    rows = compare(
        [record(Stage.IMAGE, picture), record(Stage.PIXELS, picture)],
        [record(Stage.IMAGE, picture + 0.2), record(Stage.PIXELS, picture + 0.2)],
    )
    assert rows[0].psnr == pytest.approx(20.0)  # 0.2 of a range of 2: 20 log10(2 / 0.2)
    assert rows[1].psnr is None


def test_what_both_have_is_compared_where_it_is_of_one_shape():
    one = [
        record(Stage.LATENT, [1.0], 0),
        record(Stage.LATENT, [2.0], 1),
        record(Stage.NOISE, [1.0], 0),
        record(Stage.BLOCK, [1.0], 0, "mid_block"),
        record(Stage.BLOCK, [1.0], 0, "up_blocks.1"),
    ]
    other = [
        record(Stage.BLOCK, [5.0], 0, "up_blocks.1"),
        record(Stage.NOISE, [1.0, 1.0], 0),
        record(Stage.LATENT, [4.0], 1),
        record(Stage.LATENT, [9.0], 3),
    ]
    rows = compare(one, other)
    assert [(row.stage, row.step, row.layer, row.distance) for row in rows] == [
        (Stage.LATENT, 1, None, 2.0),
        (Stage.BLOCK, 0, "up_blocks.1", 4.0),
    ]
    assert len(rows) == 2
    assert list(rows[1:]) == [rows[1]]


def difference(stage, step, distance, cosine=0.5, psnr=None, layer=None):
    return Difference(stage, step, cosine, distance, psnr, layer)


SAME = difference(Stage.LATENT, 0, 0.0)
PARTED = difference(Stage.NOISE, 3, 12.34567)
LATER = difference(Stage.LATENT, 4, 1.0)
TEXT, PICTURE = difference(Stage.TEXT, None, 2.0), difference(Stage.IMAGE, None, 3.0, psnr=21.346)


@pytest.mark.parametrize(
    ("rows", "parting", "verdict"),
    [
        ([], None, "the runs recorded nothing that could be compared"),
        ([SAME, SAME], None, "the runs are the same in all 2 values that both recorded"),
        ([SAME, PARTED, LATER], PARTED, "they part at step 3, where noise differs by 12.35"),
        (
            [TEXT, SAME, PICTURE, PICTURE],
            TEXT,
            "they are the same at every step that both recorded, and differ in text, image",
        ),
        (
            [TEXT, SAME, PARTED, LATER, PICTURE],
            TEXT,
            "they part at step 3, where noise differs by 12.35; before and after the steps they differ in text, image",
        ),
        ([difference(Stage.TEXT, None, 0.0), PARTED], PARTED, "they part at step 3, where noise differs by 12.35"),
    ],
)
def test_a_verdict_says_where_they_part(rows, parting, verdict):
    compared = Comparison(rows)
    assert compared.parting is parting
    assert compared.verdict == verdict
    assert repr(compared) == f"<Comparison of {len(rows)} values: {verdict}>"
    assert str(compared).splitlines()[0] == verdict


def test_printed_it_is_a_table():
    rows = [difference(Stage.BLOCK, 0, 0.25, 0.987654, layer="mid_block"), PICTURE]
    assert str(Comparison(rows)).splitlines()[1:] == [
        "",
        "stage          step    cosine   distance    PSNR",
        "block             0   0.98765     0.2500         mid_block",
        "image                 0.50000     3.0000   21.35",
    ]
