"""Files of strangers and our own: pictures, whoever made them; and the one way of writing, whole or not at all, so that
nothing that was there before is lost. Without torch, so that the command line can look at a picture at once."""

from __future__ import annotations

import os
import secrets
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # of pictures that are read
METADATA_KEY = "sdkit"  # of the PNG text chunk that holds the settings as JSON
EXIF, USER_COMMENT = 0x8769, 0x9286  # where JPEG and WebP hold them,
COMMENT = b"ASCII\0\0\0sdkit "  # and what they then begin with
LONGEST = 2**24  # letters of settings that are read
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # chunks of a PNG that pixels need


def open_picture(path: str | Path) -> Image.Image:
    """A picture of one of `FORMATS`, known by its content, decoded; metadata that is broken is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture of these, damaged, or too large; the message names it.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise FileNotFoundError(f"there is no picture {str(path)!r}")
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of what it reads all the same
            return _decoded(place)
    except (Image.DecompressionBombError, MemoryError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(f"{str(path)!r} has more pixels than can be read, {most}; make it smaller first") from None
    except Exception as error:  # Pillow raises what it happens to
        reason = "" if isinstance(error, UnidentifiedImageError) else f": {' '.join(str(error).split())}"
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise ValueError(f"{str(path)!r} is damaged, or no picture in {known}{reason}") from error


def settings_text(path: str | Path) -> str:
    """The JSON that a picture of sdkit carries, as it stands there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture, or carries none that can be read.
    """
    picture = open_picture(path)
    text = picture.info.get(METADATA_KEY)
    with suppress(Exception), warnings.catch_warnings(action="ignore"):  # of EXIF data that is broken
        comment = picture.getexif().get_ifd(EXIF).get(USER_COMMENT)
        if isinstance(comment, bytes) and comment.startswith(COMMENT):
            text = comment.removeprefix(COMMENT).decode()
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError(f"{path} carries no settings of sdkit that can be read; expected a picture that sdkit saved")
    return text


def _decoded(path: Path) -> Image.Image:
    """With all metadata; if that fails, of a PNG, with our settings alone; if that fails too, with none."""
    with path.open("rb") as file:
        tries = 3 if file.read(len(_PNG)) == _PNG else 1
    for source in (lambda: path, lambda: _bare(path, METADATA_KEY), lambda: _bare(path, None))[:tries]:
        try:
            with Image.open(source(), formats=FORMATS) as opened:
                opened.load()
                return opened
        except (Image.DecompressionBombError, MemoryError):
            raise
        except Exception as error:
            failed = error
    raise failed


def _bare(path: Path, key: str | None) -> BytesIO:
    """A PNG with the chunks that pixels need, and the text of one name."""
    kept, size = BytesIO(), path.stat().st_size
    with path.open("rb") as file:
        kept.write(file.read(len(_PNG)))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            body = file.read(min(length + 4, size))  # and its check sum; no more than there is is asked for
            if kind in _PIXELS or (key is not None and body.startswith(key.encode() + b"\0")):
                kept.write(head + body)
    kept.seek(0)
    return kept


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A place to write to that becomes the file in the end, once it is complete and on the disk.

    What was there before stays until then, and stays for good if writing fails. A link goes on leading where it led,
    and the permissions of what was there are kept; a new file gets those that the user's files usually have.

    Raises:
        OSError: it cannot be written; the message names the file and the reason.
    """
    place = Path(path).expanduser()
    target = Path(os.path.realpath(place))
    part = target.with_name(f".{target.stem[:40]}-{secrets.token_hex(6)}.part{target.suffix}")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = (target if target.exists() else part).stat().st_mode & 0o7777
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(mode)  # a library may have put another file in its place
        part.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{str(place)!r} could not be written, and what was there is unchanged: {reason}") from error
    finally:
        part.unlink(missing_ok=True)
