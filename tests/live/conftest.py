"""A studio with the embedded model, and the page as it is served."""

import base64
import io
import socket

import pytest
from PIL import Image

from sdkit.live.studio import Studio


@pytest.fixture(scope="session")
def studio():
    return Studio()


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


@pytest.fixture(scope="session")
def address():
    """The page, served on a port of its own."""
    pytest.importorskip("gradio", reason="the live page needs the extra 'app'")
    import sdkit

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return sdkit.app(port=port)
