"""The server of the live page: Gradio's queue and HTTP API around what `runs` and `looking` tell, and a gate in front.

Nothing here imports torch before a visitor asks for what needs it, so that the page stands early.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from importlib import import_module, resources
from inspect import signature
from typing import TYPE_CHECKING, Any

from gradio.exceptions import Error
from gradio.server import Server
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sdkit.inputs.checks import pick
from sdkit.live import limits
from sdkit.show.web import MODULES, web_file

if TYPE_CHECKING:
    from sdkit.live.runs import Messages
    from sdkit.live.studio import Studio

BODY = limits.UPLOAD * 2 * 4 // 3 + 2**20  # bytes of a request: a picture and its mask
SESSIONS = 8  # whose state Gradio keeps, 0.2 MB each; there is nothing in it, and each call is one
OPEN = ("/gradio_api/startup-events",)  # what Gradio asks itself as it starts
PATHS = (  # where requests may go; all else of Gradio, its uploads, files and proxies, is shut
    "/web/", "/runs/", "/about", "/wish", "/config", "/gradio_api/info", "/gradio_api/call/", "/gradio_api/queue/",
    "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/heartbeat/", "/favicon.ico", *OPEN,
)  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
KINDS = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
Auth = tuple[str, str]


class Gate:
    """Lets through what the page needs, of those who may, and no more than there is room for."""

    def __init__(self, app: Any, *, auth: Auth | None = None, hosts: Iterable[str] | None = None) -> None:
        self.app, self.hosts = app, None if hosts is None else {host.encode() for host in hosts}
        self.secret = None if auth is None else b"Basic " + base64.b64encode(":".join(auth).encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers, path = dict(scope["headers"]), scope["path"]
        if path != "/" and not path.startswith(PATHS):
            await _refuse(send, 404, "there is nothing here")
        elif self.hosts is not None and headers.get(b"host", b"").rpartition(b":")[0] not in self.hosts:
            await _refuse(send, 403, "this page is for this computer alone")
        elif not self._may(headers.get(b"authorization", b""), path):
            ask = (b"www-authenticate", b'Basic realm="sdkit"')
            await _refuse(send, 401, "give user name and password", [ask])
        elif scope["method"] == "POST" and not _short(headers.get(b"content-length", b"")):
            await _refuse(send, 413, f"a request may be at most {BODY // 2**20} MB, and says how long it is")
        else:
            await self.app(scope, receive, send)

    def _may(self, given: bytes, path: str) -> bool:
        return self.secret is None or path in OPEN or secrets.compare_digest(given, self.secret)


def _short(length: bytes) -> bool:
    return length.isdigit() and int(length) <= BODY


async def _refuse(send: Any, status: int, text: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    said = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [said, *headers]})
    await send({"type": "http.response.body", "body": text.encode()})


def served(studio: Callable[[], Studio], auth: Auth | None, hosts: Iterable[str] | None) -> Server:
    """The page and its calls, ready to be launched. They wait for the studio when they are asked."""
    server = Server(title="sdkit", docs_url=None, redoc_url=None, openapi_url=None)
    server.add_middleware(Gate, auth=auth, hosts=hosts)
    add_pages(server, studio)
    add_calls(server, studio)
    return server


def launched(server: Server, **options: Any) -> tuple[str, str | None]:
    """Launch it; its address on this computer, and the public one if it is shared."""
    _, local, public = server.launch(
        quiet=True, prevent_thread_lock=True, show_error=True, height=900, run_history=False, ssr_mode=False,
        footer_links=[], state_session_capacity=SESSIONS, **options,
    )  # fmt: skip
    queue = server.get_blocks()._queue  # for whose limits `launch` has no arguments
    queue.max_size = limits.WAITING
    queue.pending_messages_per_session.max_size = 2 * limits.WAITING  # requests whose answers nobody has fetched yet
    return local, public


def add_pages(server: Any, studio: Callable[[], Studio]) -> None:
    """What is asked for without the queue: the page, what belongs to it, downloads, and wishes of running runs."""
    web = {f"{name}.js": partial(web_file, f"{name}.js") for name in MODULES}
    web |= {"viewer.css": partial(web_file, "viewer.css")}
    web |= {name: partial(_own, name) for name in ("page.js", "page.css", "calls.js", "paint.js")}

    def page() -> Response:
        text = _own("page.html").replace("<!--sdkit:viewer-->", web_file("viewer.html"))
        return Response(text, media_type="text/html", headers={"Content-Security-Policy": POLICY})

    def part(name: str) -> Response:
        if name not in web:
            return Response("there is nothing here", 404)
        kind = KINDS[name.rpartition(".")[2]]
        return Response(web[name](), media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

    def about(model: str = "") -> Response:
        try:
            return JSONResponse(studio().about(model))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)

    async def wish(request: Request) -> Response:
        try:
            asked = await request.json()
            studio().wish(asked["run"], asked["wish"])
        except (ValueError, KeyError, TypeError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({})

    def fetch(run: str, what: str) -> Response:
        from sdkit.live.files import DOWNLOADS, download

        try:
            body, kind = download(studio().shelf.get(run), pick("download", what, list(DOWNLOADS)))
        except ValueError as error:
            return Response(str(error), 404)
        attached = {"Content-Disposition": f'attachment; filename="{what}"', "X-Content-Type-Options": "nosniff"}
        return Response(body, media_type=kind, headers=attached)

    for path, answer in (("/", page), ("/web/{name}", part), ("/about", about), ("/runs/{run}/{what}", fetch)):
        server.add_api_route(path, answer)
    server.add_api_route("/wish", wish, methods=["POST"])


def add_calls(server: Any, studio: Callable[[], Studio]) -> None:
    """What goes through the queue, one at a time: the model serves one run, and the others wait."""

    def call(module: str, name: str) -> Callable[[Callable[..., Any]], None]:
        """Answer a call, which has the arguments and the words of the function below, with what this one tells."""

        def add(function: Callable[..., Any]) -> None:
            @wraps(function)
            def told(*given: Any) -> Messages:
                asked = signature(function).bind(*given)
                asked.apply_defaults()
                tell = getattr(import_module(f"sdkit.live.{module}"), name)
                try:
                    yield from tell(studio(), **asked.arguments)
                except (ValueError, TypeError, FileNotFoundError, ArithmeticError) as error:
                    # what is wrong with a request goes to whoever made it; anything else is a fault of ours
                    raise Error(str(error), print_exception=False) from error

            server.api(told, name=function.__name__, concurrency_limit=1, concurrency_id="model")

        return add

    @call("runs", "generate")
    def text_to_image(
        prompt: str,
        negative_prompt: str | None = None,
        seed: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        method: str = "",
        model: str = "",
    ) -> Any:
        """Draw from words; the messages of the run as it forms."""

    @call("runs", "generate")
    def image_to_image(
        image: str,
        prompt: str,
        mask_image: str | None = None,
        strength: float | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        method: str = "",
        model: str = "",
    ) -> Any:
        """Go on from a picture (base64, or a data URI), with a mask only where that is white."""

    @call("runs", "compare")
    def compare(a: dict[str, Any], b: dict[str, Any]) -> Any:
        """Two runs from words, each with arguments of text_to_image, that advance together; messages say their side."""

    @call("runs", "go_on")
    def go_on(
        run: str,
        step: int,
        steps: int | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        guidance_scale: float | None = None,
        paint: dict[str, Any] | None = None,
        look: dict[str, Any] | None = None,
    ) -> Any:
        """Go on with a run from one of its steps, changed."""

    @call("looking", "noised")
    def noised(
        image: str,
        strength: float | None = None,
        seed: int | None = None,
        num_inference_steps: int | None = None,
        scheduler: str | None = None,
        model: str = "",
    ) -> Any:
        """A picture as image to image would begin with it."""

    @call("looking", "inspect")
    def inspect(image: str, model: str = "") -> Any:
        """A picture through the autoencoder and back, and on its way to noise."""

    @call("looking", "interpolate")
    def interpolate(
        start: str,
        end: str,
        frames: int = 12,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        model: str = "",
    ) -> Any:
        """A film from one prompt to another."""

    @call("looking", "restore")
    def restore(file: str) -> Any:
        """What a PNG or a trace of sdkit (base64) says: settings, and of a trace the run itself."""


def _own(name: str) -> str:
    return resources.files("sdkit.live").joinpath(name).read_text(encoding="utf-8")
