import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdkit import contact_sheet, read_settings
from sdkit.files import FORMATS, settings_text
from sdkit.pictures import crop_to_mask, same_pixels, save_picture, to_mask, to_pil, to_pixels, to_rgb


def test_the_ends_and_the_middle_of_the_range_become_black_white_and_gray():
    image = torch.tensor([-1.0, 0.0, 1.0, 3.0]).expand(1, 3, 1, 4)
    assert [to_pil(image)[0].getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 255]


def test_a_contact_sheet_shows_every_picture_in_its_place():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    page = contact_sheet([Image.new("RGB", (10, 6), colour) for colour in colours], columns=2, gap=2)
    assert page.size == (2 + 2 * 12, 2 + 2 * 8)
    assert [page.getpixel(at) for at in ((3, 3), (15, 3), (3, 11), (15, 11))] == [*colours, (255, 255, 255)]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([],), ValueError, "needs at least one picture, but none was given"),
        (("x.png",), TypeError, "a contact sheet takes a list of PIL pictures"),
        ((["a.png"],), TypeError, "a contact sheet takes a list of PIL pictures"),
        ((Image.new("RGB", (8, 8)),), TypeError, "a contact sheet takes a list of PIL pictures"),
        (([Image.new("RGB", (8, 8))], 0), ValueError, "columns must be a whole number from 1 to 10000, but is 0"),
        (([Image.new("RGB", (8, 8))], True), ValueError, "columns must be a whole number .* but is True"),
        (([Image.new("RGB", (8, 8))], 2.5), ValueError, "columns must be a whole number .* but is 2.5"),
        (([Image.new("RGB", (8, 8))], 1, -1), ValueError, "gap must be a whole number from 0 to 10000, but is -1"),
    ],
)
def test_what_makes_no_contact_sheet_is_said(arguments, error, words):
    with pytest.raises(error, match=words):
        contact_sheet(*arguments)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "PNG"])
def test_settings_and_pixels_survive_the_file(ending, tmp_path):
    settings, path = {"prompt": "ein Bär 🐻", "seed": [2**62], "guidance_scale": 7.5}, tmp_path / f"a.{ending}"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))
    save_picture(noise, path, settings)
    assert read_settings(path) == settings
    assert same_pixels(path, noise)
    assert np.array_equal(np.asarray(to_rgb(path)), np.asarray(noise)) == ("jp" not in ending)
    noise.putpixel((3, 4), (0, 0, 0))
    assert not same_pixels(path, noise)


def test_settings_that_a_jpeg_cannot_hold_are_one_sentence_and_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"longer than '.*a.jpg' can hold as a JPEG; save it as PNG or WebP"):
        save_picture(red(), tmp_path / "a.jpg", {"prompt": "x" * 70_000})
    assert list(tmp_path.iterdir()) == []


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


def test_a_mask_that_marks_nothing_has_no_part_to_paint():
    with pytest.raises(ValueError, match="the mask is black, so there is no part of the picture"):
        crop_to_mask(red(), Image.new("L", SIZE), 8, 8, 4)
    mask = Image.new("L", SIZE)
    mask.putpixel((3, 4), 255)
    pixels, small, _ = crop_to_mask(red(), mask, 8, 8, 4)
    assert (pixels.shape, small.shape, small.max()) == ((1, 3, 8, 8), (1, 1, 8, 8), 1)


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


# ---------------------------------------------------------------------------------------------------------------------
# Pictures of strangers

BOMB = zlib.compress(bytes(3_000_000), 9)
BROKEN_METADATA = {
    "a zTXt bomb": (b"zTXt", b"Comment\0\0" + BOMB),
    "an iTXt bomb": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "a huge iTXt": (b"iTXt", b"Comment\0\0\0\0\0" + b"x" * 70_000_000),
    "a bomb of settings": (b"zTXt", b"sdkit\0\0" + BOMB),
    "zTXt of no known method": (b"zTXt", b"Comment\0\7" + BOMB),
    "an iCCP bomb": (b"iCCP", b"icc\0\0" + BOMB),
    "broken EXIF": (b"eXIf", b"MM\0*\0\0\0\7nonsense"),
    "no EXIF": (b"eXIf", b""),
    "EXIF as broken text": (b"tEXt", b"Raw profile type exif\0not hex at all\n\n\n\nxyz"),
    "short gAMA": (b"gAMA", b"1"),
    "broken APNG": (b"fcTL", bytes(26)),
    "no such chunk": (b"quUx", b"?" * 9),
}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks(png):
    at = 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += length + 12


def as_bytes_of(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("where", [1, -1], ids=["before the pixels", "after the pixels"])
@pytest.mark.parametrize("name", BROKEN_METADATA)
def test_broken_metadata_leaves_the_pixels_and_the_settings(name, where, tmp_path):
    save_picture(red(), tmp_path / "a.png", {"seed": [7]})
    parts = [chunk(*one) for one in chunks((tmp_path / "a.png").read_bytes())]
    parts.insert(where, chunk(*BROKEN_METADATA[name]))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.array_equal(np.asarray(to_rgb(tmp_path / "b.png")), np.asarray(red()))
    if name == "a bomb of settings":
        with pytest.raises(ValueError, match=r"b.png carries no settings of sdkit that can be read"):
            read_settings(tmp_path / "b.png")
    else:
        assert read_settings(tmp_path / "b.png") == {"seed": [7]}


def test_settings_that_are_too_large_are_one_sentence(tmp_path):
    save_picture(red(), tmp_path / "a.png", {"prompt": "x" * 2**24})
    with pytest.raises(ValueError, match=r"a.png carries no settings of sdkit that can be read"):
        read_settings(tmp_path / "a.png")


@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_file_is_its_content_says_and_not_its_name(kind, tmp_path):
    red().save(tmp_path / "a.dat", kind)
    assert np.abs(np.asarray(to_rgb(tmp_path / "a.dat"), int) - RED).max() <= 8
    (tmp_path / "a.dat").rename(tmp_path / "a.ppm")
    assert to_rgb(tmp_path / "a.ppm").size == SIZE


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "PCX", "EPS", "PDF"])
def test_a_picture_of_another_format_is_not_decoded(kind, tmp_path):
    red().save(tmp_path / "a.png", kind)
    with pytest.raises(ValueError, match=r"a.png' is damaged, or no picture in PNG, JPEG, .* or AVIF$"):
        to_rgb(tmp_path / "a.png")


def test_a_picture_of_too_many_pixels_is_one_sentence_and_half_of_them_is_no_surprise(tmp_path, monkeypatch):
    red().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of which Pillow reads the double, with a warning
    with warnings.catch_warnings(action="error"):
        assert to_rgb(tmp_path / "a.png").size == SIZE
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ValueError, match=r"a.png' has more pixels than can be read, 100; make it smaller first"):
        to_rgb(tmp_path / "a.png")


def test_a_picture_that_was_opened_and_turns_out_damaged_is_one_sentence(tmp_path):
    (tmp_path / "a.jpg").write_bytes(wild()["JPEG"][:-200])
    with pytest.raises(ValueError, match=r"the picture '.*a.jpg' is damaged: image file is truncated"):
        to_pixels(Image.open(tmp_path / "a.jpg"))


def wild():
    """Small pictures of all kinds, with all that they can carry."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngInfo()
    info.add_itxt("sdkit", '{"seed": [7]}', zip=True)
    info.add_text("Comment", "words " * 9, zip=True)
    more = {"exif": exif, "icc_profile": b"profile" * 20}
    clear = noise.quantize(16)
    return {
        "PNG": as_bytes_of(noise, "PNG", pnginfo=info, dpi=(72, 72), **more),
        "PNG with a palette": as_bytes_of(clear, "PNG", transparency=bytes(range(16))),
        "PNG of 16 bits": as_bytes_of(Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 99), "PNG"),
        "PNG with transparency": as_bytes_of(noise.convert("RGBA"), "PNG"),
        "APNG": as_bytes_of(noise, "PNG", save_all=True, append_images=[noise.rotate(180)]),
        "JPEG": as_bytes_of(noise, "JPEG", **more),
        "progressive JPEG": as_bytes_of(noise.convert("CMYK"), "JPEG", progressive=True),
        "WebP": as_bytes_of(noise, "WEBP", xmp=b"<tiff:Orientation>6</tiff:Orientation>", **more),
        "GIF": as_bytes_of(clear, "GIF", save_all=True, append_images=[clear.rotate(180)], transparency=3),
        "BMP": as_bytes_of(clear, "BMP"),
        "TIFF": as_bytes_of(noise, "TIFF", compression="tiff_lzw", **more),
        "plain TIFF": as_bytes_of(noise, "TIFF"),
        "AVIF": as_bytes_of(noise, "AVIF", **more),
    }


def damaged(data, dice):
    """A file cut short, with bytes changed, or, of a PNG, with chunks moved, gone, doubled, strange or too long."""
    how = dice.choice(["cut", "bytes", "chunks", "chunks"])
    if how == "cut":
        return data[: dice.randrange(len(data))]
    if how == "bytes" or not data.startswith(b"\x89PNG"):
        spoilt = bytearray(data)
        for _ in range(dice.choice([1, 1, 2, 8])):
            spoilt[dice.randrange(len(spoilt))] = dice.choice([0, 1, 127, 128, 255, dice.randrange(256)])
        return bytes(spoilt)
    parts = list(chunks(data))
    for _ in range(dice.choice([1, 1, 2, 5])):
        at = dice.randrange(len(parts))
        match dice.randrange(5):
            case 0:
                dice.shuffle(parts)
            case 1 if len(parts) > 1:
                del parts[at]
            case 2:
                parts.insert(at, dice.choice(parts))
            case 3:
                name = dice.choice([one for one in BROKEN_METADATA if one != "a huge iTXt"])
                parts.insert(at, BROKEN_METADATA[name])
            case _ if parts[at][1]:  # with a check sum that is right, so that more than that is tried
                kind, body = parts[at]
                cut = dice.randrange(len(body))
                parts[at] = kind, body[:cut] + dice.randbytes(dice.choice([0, 1, 4])) + body[cut + 1 :]
    whole = [chunk(*one) for one in parts]
    if dice.random() < 0.2:
        at = dice.randrange(len(whole))
        whole[at] = struct.pack(">I", dice.choice([0, 2**31, 2**32 - 1])) + whole[at][4:]
    return data[:8] + b"".join(whole)


def attack(cases, seed, place):
    """How many damaged pictures still gave pixels, and how many a sentence."""
    dice, pictures, outcomes = random.Random(seed), list(wild().items()), [0, 0]
    for case in range(cases):
        name, data = pictures[case % len(pictures)]
        place.write_bytes(damaged(data, dice))
        for read in (lambda path: to_rgb(path).size, settings_text):
            try:
                with warnings.catch_warnings(action="error"):
                    read(place)
                outcomes[0] += 1
            except ValueError as error:
                said = str(error)
                assert place.name in said, (name, case)
                assert "\n" not in said
                outcomes[1] += 1
            except Exception as error:
                (place.parent / "failed").write_bytes(place.read_bytes())
                raise AssertionError(f"{name}, case {case}: {error!r}") from error
    return outcomes


def test_damaged_pictures_give_pixels_or_one_sentence_that_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    pixels, sentences = attack(1300, 1, tmp_path / "wild.dat")
    assert pixels > 200
    assert sentences > 200


@pytest.mark.slow
def test_many_damaged_pictures_give_pixels_or_one_sentence_that_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    assert sum(attack(20_000, 2, tmp_path / "wild.dat")) == 40_000
