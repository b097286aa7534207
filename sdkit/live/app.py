"""The function `sdkit.app`: the live page, served on this computer, and shown in the cell of a notebook."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.collecting import paused
from sdkit.inputs.checks import installed, typed
from sdkit.inputs.paths import model_source

if TYPE_CHECKING:
    from sdkit.live.studio import Studio

LOOPBACK = "127.0.0.1"


@typed()
def app(
    *models: str | Path,
    host: str = LOOPBACK,
    port: int | None = None,
    auth: Sequence[str] | None = None,
    share: bool = False,
    browse: bool = False,
    wait: bool = False,
) -> str:
    """Serve the live page, and show it in the cell of a notebook. Needs the extra "app".

    Args:
        models: folders and files to choose from on the page, as `load` takes them; the embedded model without any.
        host: the address to serve on. Beyond this computer (127.0.0.1) only with `auth`.
        port: by default the first that is free from 7860 on.
        auth: user name and password, which whoever opens the page has to give.
        share: a public link for as long as the page is served, through Gradio's servers. In Colab it is needed.
        browse: open the page in a browser.
        wait: return only when it is interrupted.

    Returns:
        The address of the page.

    Raises:
        ValueError: Gradio is not installed, or the page would be open to others without `auth`.

    Example:
        >>> sdkit.app()
    """
    check_app(host, auth)
    for model in models:
        model_source(model)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

    from sdkit.live.stubs import unwritten

    with paused(), unwritten():
        from sdkit.live.server import launched, served

    studio: Future[Studio] = Future()
    alone = host == LOOPBACK and not share and "COLAB_RELEASE_TAG" not in os.environ  # Colab shares by itself
    names = (LOOPBACK, "localhost") if alone else None
    server = served(studio.result, None if auth is None else (auth[0], auth[1]), names)
    local, public = launched(server, server_name=host, server_port=port, share=share or None, inbrowser=browse)
    threading.Thread(target=_prepare, args=(studio, models), daemon=True).start()  # while the browser opens
    address = str(public or local)
    print(f"The page is at {address}", flush=True)
    if wait:
        server.get_blocks().block_thread()
    return address


def _prepare(studio: Future[Studio], models: Sequence[str | Path]) -> None:
    """Import torch, and load the first model: what visitors wait for, and the page itself does not."""
    try:
        with paused():
            from sdkit.live import looking, runs  # noqa: F401  what the first visitor will ask for
            from sdkit.live.studio import Studio

        studio.set_result(Studio({str(model): model for model in models}) if models else Studio())
    except BaseException as error:
        studio.set_exception(error)
        raise
    studio.result().model()
    studio.result().colours()


def check_app(host: str, auth: Sequence[str] | None) -> None:
    """Say what is in the way of the page before anything is loaded.

    Raises:
        ValueError: Gradio is not installed, or the page would be open to others without `auth`.
    """
    installed("gradio", "the live page needs gradio", "app")
    if auth is not None and (len(auth) != 2 or not all(auth) or ":" in auth[0]):
        raise ValueError("auth must be a user name without a colon, and a password")
    if host != LOOPBACK and auth is None:
        raise ValueError(f"host {host!r} opens the page to others; give auth, a user name and a password, as well")
