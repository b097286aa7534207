import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from sdkit import contact_sheet, read_settings
from sdkit.pictures import save_png, to_mask, to_pil, to_pixels


def test_the_ends_and_the_middle_of_the_range_become_black_white_and_gray():
    image = torch.tensor([-1.0, 0.0, 1.0, 3.0]).expand(1, 3, 1, 4)
    assert [to_pil(image)[0].getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 255]


def test_a_contact_sheet_shows_every_picture_in_its_place():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    page = contact_sheet([Image.new("RGB", (10, 6), colour) for colour in colours], columns=2, gap=2)
    assert page.size == (2 + 2 * 12, 2 + 2 * 8)
    assert [page.getpixel(at) for at in ((3, 3), (15, 3), (3, 11), (15, 11))] == [*colours, (255, 255, 255)]


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])


def test_settings_survive_the_file(tmp_path):
    settings = {"prompt": "ein Bär 🐻", "seed": [2**62], "guidance_scale": 7.5}
    save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", settings)
    assert read_settings(tmp_path / "a.png") == settings


def test_a_png_of_another_program_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png carries no settings of sdkit"):
        read_settings(tmp_path / "b.png")


RED, SIZE = (200, 30, 40), (16, 8)  # width, height


def red(mode="RGB"):
    return Image.new("RGB", SIZE, RED).convert(mode)


def as_bytes(pixels):
    return [round((float(v) + 1) * 127.5) for v in pixels[0, :, 3, 5]]


def palette():
    return red().quantize(4)


def with_alpha(alpha):
    return Image.merge("RGBA", (*red().split(), Image.new("L", SIZE, alpha)))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (red(), RED),
        (palette(), RED),
        (with_alpha(255), RED),
        (with_alpha(0), (255, 255, 255)),
        (Image.new("L", SIZE, 77), (77, 77, 77)),
        (Image.fromarray(np.full(SIZE[::-1], 51 * 257, dtype=np.uint16)), (51, 51, 51)),
        (Image.new("CMYK", SIZE, (0, 255, 255, 0)), (255, 0, 0)),
        (np.asarray(red()), RED),
        (np.asarray(with_alpha(0)), (255, 255, 255)),
        (np.full(SIZE[::-1], 77, dtype=np.uint8), (77, 77, 77)),
        (np.full((*SIZE[::-1], 3), 0.2), (51, 51, 51)),
        (torch.full((3, *SIZE[::-1]), 0.2), (51, 51, 51)),
        (torch.full((1, 3, *SIZE[::-1]), -0.6), (51, 51, 51)),
    ],
    ids=lambda value: getattr(value, "mode", None) or type(value).__name__,
)
def test_pictures_of_every_form_become_the_same_pixels(image, expected):
    pixels = to_pixels(image)
    assert pixels.shape == (1, 3, 8, 16)
    assert as_bytes(pixels) == list(expected)


def test_a_file_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    red().save(tmp_path / "photo.png", exif=exif)
    assert to_pixels(tmp_path / "photo.png").shape == (1, 3, 16, 8)


def test_a_list_becomes_a_batch_and_sizes_may_be_given():
    assert to_pixels([red(), red()]).shape == (2, 3, 8, 16)
    assert to_pixels([red(), Image.new("RGB", (40, 40))], height=24, width=32).shape == (2, 3, 24, 32)


def test_sizes_that_8_does_not_divide_are_fitted_and_it_is_said():
    with pytest.warns(UserWarning, match="the picture is 21x30, which 8 does not divide; fitted to 16x24"):
        assert to_pixels(Image.new("RGB", (21, 30))).shape == (1, 3, 24, 16)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ("no.png", FileNotFoundError, "there is no picture 'no.png'"),
        (7, TypeError, "a picture is PIL, a path, an array or a tensor, but is a int"),
        ([], ValueError, "image is an empty list"),
        ([red(), Image.new("RGB", (8, 8))], ValueError, r"different sizes \(16x8, 8x8\)"),
        (Image.new("RGB", (7, 80)), ValueError, "7x80 pixels; expected at least 8x8"),
        (torch.zeros(1, 4, 8, 8), ValueError, r"\(3, H, W\) or \(N, 3, H, W\), but is torch.float32 \(1, 4, 8, 8\)"),
        (torch.full((3, 8, 8), 255.0), ValueError, "goes from 255 to 255"),
        (np.zeros((8, 8, 3), dtype=np.int64), ValueError, "holds uint8 or floats, but is int64"),
        (np.zeros((8, 8, 7), dtype=np.uint8), ValueError, r"but is \(8, 8, 7\)"),
    ],
)
def test_what_is_no_picture_is_said(image, error, words):
    with pytest.raises(error, match=words):
        to_pixels(image)


# ---------------------------------------------------------------------------------------------------------------------
# The forms that a mask comes in


HALF = np.zeros((16, 16), bool)
HALF[:, :8] = True


def white_on_transparent():
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((255, 255, 255, 255), (0, 0, 8, 16))
    return picture


def as_mode(mode):
    return Image.fromarray(np.uint8(HALF * 255)).convert(mode)


@pytest.mark.parametrize(
    "mask",
    [
        HALF,
        np.uint8(HALF),
        np.uint8(HALF * 255),
        np.int64(HALF),
        np.float32(HALF),
        np.float64(HALF)[..., None],
        np.stack([np.uint8(HALF * 255)] * 3, -1),
        torch.tensor(HALF),
        torch.tensor(HALF).half(),
        torch.tensor(HALF).bfloat16()[None],
        torch.tensor(HALF).float()[None, None],
        torch.tensor(HALF).float().requires_grad_(),
        torch.tensor(HALF).int(),
        torch.tensor(HALF).float().expand(3, 16, 16),
        white_on_transparent(),
        *(as_mode(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "F")),
        Image.fromarray(np.float32(HALF)),
        Image.fromarray(np.uint16(HALF) * 65535),
    ],
    ids=lambda mask: f"{type(mask).__name__}-{getattr(mask, 'dtype', getattr(mask, 'mode', ''))}",
)
def test_a_mask_is_the_same_in_every_form(mask):
    assert torch.equal(to_mask(mask, 16, 16), torch.tensor(HALF).float()[None, None])


@pytest.mark.parametrize("picture", [white_on_transparent(), as_mode("L"), as_mode("RGBA"), as_mode("1"), as_mode("P")])
def test_a_mask_means_what_it_means_to_diffusers(picture):
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    assert torch.equal(to_mask(picture, 16, 16), processor.preprocess(picture, 16, 16))


def test_several_masks_in_one_tensor_or_a_list_stay_several():
    both = torch.stack([torch.tensor(HALF), ~torch.tensor(HALF)]).float()[:, None]
    assert torch.equal(to_mask(both, 16, 16), both)
    assert torch.equal(to_mask([HALF, ~HALF], 16, 16), both)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.array([[0, 3], [5, 1]]), "goes from 0 to 5; of labels, compare with the one that is meant"),
        (np.full((4, 4), -1), "goes from -1 to -1"),
        (np.full((4, 4), 300), "goes from 300 to 300"),
        (np.full((4, 4), 1.5), "goes from 1.5 to 1.5"),
        (np.full((4, 4), np.nan), "goes from nan to nan"),
        (np.zeros((2, 5, 7)), r"has one or three channels, but is \(5, 7, 2\)"),
        (np.zeros(5), r"but is \(5,\)"),
        ([], "empty list"),
    ],
)
def test_what_is_no_mask_is_said(mask, words):
    with pytest.raises(ValueError, match=words):
        to_mask(mask, 16, 16)


@pytest.mark.parametrize(
    "ramp",
    [
        Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)),
        Image.fromarray(np.linspace(0, 255, 256, dtype=np.float32).reshape(16, 16)),
        Image.fromarray(np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)),
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("I"),
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("F"),
    ],
    ids=["F in [0, 1]", "F in 0..255", "I;16", "I", "F of L"],
)
def test_a_picture_of_a_wide_range_is_what_its_values_mean(ramp, tmp_path):
    expected = torch.arange(256).view(16, 16) / 255
    assert torch.allclose(to_pixels(ramp, signed=False)[0, 0], expected, atol=0.003)
    ramp.save(tmp_path / "ramp.tiff")
    assert torch.allclose(to_pixels(tmp_path / "ramp.tiff", signed=False)[0, 0], expected, atol=0.003)


def test_a_dark_picture_of_mode_i_stays_what_it_was():
    assert np.unique(np.asarray(to_pil(to_pixels(Image.new("L", (8, 8), 77).convert("I")))[0])).tolist() == [77]
    with pytest.raises(ValueError, match=r"of mode 'F' lies in .* but goes from -1 to -1"):
        to_pixels(Image.new("F", (8, 8), -1.0))
