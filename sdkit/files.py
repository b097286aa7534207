"""The one way of writing a file: whole or not at all, so that nothing that was there before is lost."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if target.exists():
            part.chmod(target.stat().st_mode & 0o7777)
        part.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{str(place)!r} could not be written, and what was there is unchanged: {reason}") from error
    finally:
        part.unlink(missing_ok=True)
