"""The command that serves the live page: `sdkit app`."""

from __future__ import annotations

import argparse

from sdkit.inputs.paths import model_source


def add_app(app: argparse.ArgumentParser) -> None:
    """The options of `sdkit app`."""
    app.description = (
        "Serve a page on which runs are watched and steered as they form, and open it in the browser. It "
        'needs the extra "app" and ends with Ctrl-C.'
    )
    add = app.add_argument
    add("models", nargs="*", metavar="model", help="folders or files to choose from (default: the embedded model)")
    add("--host", default="127.0.0.1", help="address to serve on; another than 127.0.0.1 only with --auth")
    add("--port", type=int, default=None, help="port (default: the first that is free from 7860 on)")
    add("--auth", nargs=2, metavar=("USER", "PASSWORD"), default=None, help="what whoever opens the page has to give")
    add("--share", action="store_true", help="a public link, through Gradio's servers")
    add("--no-browser", action="store_true", help="do not open the page")
    app.set_defaults(do=_serve)


def _serve(options: argparse.Namespace) -> None:
    from sdkit.live.app import app, check_app

    check_app(options.host, options.auth)
    for model in options.models:
        model_source(model)
    app(
        *options.models, host=options.host, port=options.port, auth=options.auth, share=options.share,
        browse=not options.no_browser, wait=True,
    )  # fmt: skip
