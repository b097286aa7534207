"""What a page does with the server, for tests: read messages, send and see pictures."""

import base64
import io

from PIL import Image


def messages(stream):
    """All messages of a stream in one list."""
    return [message for some in stream for message in some]


def sent(picture, kind="PNG", **options):
    """A picture as a page sends it."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def shown(uri):
    """The picture of a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
