"""The page over HTTP, as programs and strangers meet it."""

import inspect
import json
import re
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from visiting import sent, shown

import sdkit
from sdkit import cli
from sdkit.live import limits
from sdkit.live.stubs import unwritten

pytest.importorskip("gradio", reason="the live page needs the extra 'app'")
httpx = pytest.importorskip("httpx")
Client = pytest.importorskip("gradio_client").Client
DOCS = Path(sdkit.__file__).parents[1] / "docs" / "live.md"


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


def events_of(client, *arguments, **options):
    job = client.submit(*arguments, **options)
    events = [event for some in job for event in some]
    job.result()  # raises what was wrong
    return events


def test_a_program_of_ten_lines_draws_a_picture(address, tmp_path, monkeypatch, tiny):
    (code,) = re.findall(r"```python\n(from gradio_client.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(code.replace("http://127.0.0.1:7860", address), {})
    drawn = sdkit.text_to_image("a red star on a blue background", model=tiny, seed=7, num_inference_steps=5).image
    assert np.array_equal(np.asarray(Image.open("star.webp").convert("RGB")), np.asarray(drawn))


def test_the_api_is_described(client):
    calls = client.view_api(return_format="dict")["named_endpoints"]
    assert set(calls) == {
        *("/text_to_image", "/image_to_image", "/compare", "/go_on", "/noised", "/inspect", "/interpolate", "/restore")
    }
    names = [one["parameter_name"] for one in calls["/go_on"]["parameters"]]
    assert names == ["run", "step", "steps", "prompt", "negative_prompt", "guidance_scale", "paint", "look"]


def test_what_is_wrong_is_said_in_one_sentence(client):
    with pytest.raises(Exception, match="num_inference_steps may be at most 100 here, but is 1000"):
        events_of(client, "a star", num_inference_steps=1000, api_name="/text_to_image")


@pytest.mark.parametrize("many", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_visitors_at_once_get_each_their_own_picture(address, tiny, many):
    drawn = {}

    def visit(seed):
        events = events_of(
            Client(address, verbose=False), "a star", seed=seed, num_inference_steps=2, api_name="/text_to_image"
        )
        drawn[seed] = shown(events[-1]["picture"])

    threads = [threading.Thread(target=visit, args=[seed]) for seed in range(many)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for seed in range(0, many, 2):
        alone = sdkit.text_to_image("a star", model=tiny, seed=seed, num_inference_steps=2).image
        assert np.array_equal(np.asarray(drawn[seed]), np.asarray(alone))
    assert len({one.tobytes() for one in drawn.values()}) == many


def test_a_visitor_who_leaves_makes_room_for_the_next(address):
    with httpx.Client(base_url=address) as http:
        asked = {"prompt": "a star", "num_inference_steps": 100}
        event = http.post("gradio_api/call/v2/text_to_image", json=asked).json()["event_id"]
        with http.stream("GET", f"gradio_api/call/text_to_image/{event}", timeout=60) as stream:
            for line in stream.iter_lines():
                if '"kind": "begin"' in line:
                    break
    (*_, last) = events_of(
        Client(address, verbose=False), "a star", num_inference_steps=1, api_name="/text_to_image"
    )  # which the other's hundred steps would keep waiting
    assert last["kind"] == "end"
    with httpx.Client(base_url=address) as http:  # the run that was left has not come to its picture
        run = json.loads(line.removeprefix("data: "))[0][0]["run"]
        answer = http.get(f"runs/{run}/picture.png")
    assert (answer.status_code, answer.text) == (404, "this run was left before its picture; go on with it first")


def test_who_comes_when_too_many_wait_is_told_at_once(studio, monkeypatch):
    from sdkit.live.server import launched, served

    monkeypatch.setattr(limits, "WAITING", 2)
    free = threading.Event()
    server = served(lambda: free.wait(60) and studio, None, None)
    address, _ = launched(server)
    with httpx.Client(base_url=address, timeout=60) as http:
        ask = partial(
            http.post, "gradio_api/call/v2/text_to_image", json={"prompt": "a star", "num_inference_steps": 1}
        )
        first = ask()
        while server.get_blocks()._queue.get_active_worker_count() == 0:
            time.sleep(0.01)
        others = [ask() for _ in range(3)]
        assert [one.status_code for one in (first, *others)] == [200, 200, 200, 503]
        free.set()
        last = http.get(f"gradio_api/call/text_to_image/{others[1].json()['event_id']}").text
        assert '"kind": "end"' in last
        assert ask().status_code == 200
    server.get_blocks().close()


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd", "gradio_api/file//etc/passwd", "gradio_api/proxy=http://example.com",
        "gradio_api/upload_progress", "web/../server.py", "web/%2e%2e%2fserver.py", "web/page.html", "static/x",
        "runs/../../etc/passwd", "runs/x/..%2f..%2fetc%2fpasswd", "docs", "openapi.json", "login", "monitoring",
    ],
)  # fmt: skip
def test_there_is_no_way_to_the_disk(address, path):
    answer = httpx.get(f"{address}{path}")
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_nothing_is_uploaded_to_the_disk(address):
    assert httpx.post(f"{address}gradio_api/upload", files={"files": b"x"}).status_code == 404
    answer = httpx.post(f"{address}gradio_api/call/v2/inspect", json={"image": "/etc/passwd"})
    stream = httpx.get(f"{address}gradio_api/call/inspect/{answer.json()['event_id']}", timeout=30).text
    assert "event: error" in stream
    assert "root:" not in stream


def test_other_names_for_this_computer_are_turned_away(address):
    """A page elsewhere whose name is made to lead here (DNS rebinding) asks under that name."""
    assert httpx.get(address).status_code == 200
    assert httpx.get(address, headers={"Host": "evil.example:7860"}).status_code == 403


def test_a_request_says_how_long_it_is_and_is_not_too_long(address):
    path = f"{address}gradio_api/call/v2/inspect"
    assert httpx.post(path, content=(b"x" for _ in range(3))).status_code == 413
    assert httpx.post(path, content=b"x" * (40 * 2**20)).status_code == 413


def test_the_page_runs_its_own_scripts_alone(address):
    answer = httpx.get(address)
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"<script(?! type=\"module\" src=\"/web/page.js\")", answer.text)
    assert httpx.get(f"{address}web/run.js").headers["content-type"].startswith("text/javascript")


def test_wishes_and_downloads_of_runs_that_nobody_knows_are_sentences(address):
    assert "no longer kept" in httpx.post(f"{address}wish", json={"run": "x", "wish": "stop"}).json()["error"]
    assert "no longer kept" in httpx.get(f"{address}runs/x/picture.png").text
    assert httpx.post(f"{address}wish", json=[]).status_code == 400


def test_others_have_to_give_name_and_password():
    from starlette.responses import PlainTextResponse
    from starlette.testclient import TestClient

    from sdkit.live.server import Gate

    http = TestClient(Gate(PlainTextResponse("the page"), auth=("ada", "secret")))
    assert http.get("/").status_code == 401
    assert http.get("/", auth=("ada", "wrong")).status_code == 401
    assert http.get("/", auth=("ada", "secret")).text == "the page"


def test_the_page_is_open_to_others_only_with_a_password(capsys):
    for given, match in (
        ({"host": "0.0.0.0"}, "opens the page to others; give auth"),
        ({"auth": ("ada", "")}, "user name without a colon, and a password"),
        ({"auth": ("a:da", "secret")}, "user name without a colon"),
    ):
        with pytest.raises(ValueError, match=match):
            sdkit.app(**given)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        sdkit.app("nowhere.safetensors")
    assert cli.main(["app", "--host", "0.0.0.0"]) == 2
    assert "give auth" in capsys.readouterr().err


def test_a_picture_can_be_sent_by_a_program(client):
    (seen,) = events_of(client, sent(Image.new("RGB", (64, 64), "red")), strength=0.5, api_name="/noised")
    assert (seen["kind"], seen["steps"]) == ("noised", 10)


@pytest.mark.slow
def test_the_page_stands_before_torch_is_imported():
    code = "import sys; from sdkit.live.server import served; served(None, None, None); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_gradio_alone_finds_no_source_to_make_stubs_of():
    ask = {"__name__": "gradio.component_meta", "kind": Path}
    there = inspect.getfile(Path)
    exec("def asked(): return __import__('inspect').getfile(kind)", ask)
    with unwritten():
        assert inspect.getfile(Path) == there
        with pytest.raises(OSError, match="no stub"):
            ask["asked"]()
    assert ask["asked"]() == there
