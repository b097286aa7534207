import os
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import sdkit
from sdkit.many.cluster import Denoise, Words, Write
from sdkit.many.jobs import job_of
from sdkit.many.work import groups
from sdkit.tiny.drawing import draw

pytestmark = pytest.mark.filterwarnings("ignore:sdkit/tiny does not know")  # numbers in prompts

ray = pytest.importorskip("ray")
NOISE = 2  # levels of 255, as in test_batch.py


def by_stages(jobs, folder, load):
    """Jobs through the three stages, as they are carried on a cluster, in this process."""
    book = sdkit.many.book.Book(folder)
    words, denoise, write = (stage(load, str(folder), False) for stage in (Words, Denoise, Write))
    for group in groups([job_of(one) for one in jobs], 4):
        work = words.go_on({"jobs": group})
        assert ("embeds" in work) == (group[0].asked.get("hooks") is None)
        write.go_on(denoise.go_on(work))
    book.close([], [])
    return book.rows()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"guidance_scale": 1},
        {"negative_prompt": "a cat", "num_images_per_prompt": 2, "clip_skip": 1},
        {"hooks": {"stop_after": {"step": 0}}},
        {"prompt": "a star " * 40, "long_prompt": "split"},
    ],
    ids=str,
)
def test_stage_by_stage_makes_the_very_bytes_of_a_single_process(more, tmp_path, tiny):
    jobs = [{"prompt": prompt, "num_inference_steps": 2, **more} for prompt in ("a red star", "a blue fish")]
    rows = by_stages(jobs, tmp_path / "stages", lambda _: tiny)
    single = sdkit.batch(jobs, tmp_path / "single", batch_size=4, model=tiny).rows()
    assert {row["file"]: row["sha256"] for row in rows} == {row["file"]: row["sha256"] for row in single}


def test_stage_by_stage_a_picture_is_varied_as_in_a_single_process(tmp_path, tiny):
    draw("a red star").save(tmp_path / "star.png")
    draw("a red star").save(tmp_path / "mask.png")
    start = {"image": str(tmp_path / "star.png"), "prompt": "a cat", "num_inference_steps": 3}
    jobs = [start, {**start, "seed": 5}]
    rows = by_stages(jobs, tmp_path / "stages", lambda _: tiny)
    single = sdkit.batch(jobs, tmp_path / "single", batch_size=4, model=tiny).rows()
    assert {row["file"]: row["sha256"] for row in rows} == {row["file"]: row["sha256"] for row in single}


def test_stage_by_stage_sdxl_takes_its_pooled_embeddings_along(tmp_path, sdxl):
    jobs = [{"prompt": prompt, "num_inference_steps": 2} for prompt in ("a red star", "a blue fish")]
    model = sdkit.load(sdxl)
    rows = by_stages(jobs, tmp_path / "stages", lambda _: model)
    single = sdkit.batch(jobs, tmp_path / "single", batch_size=4, model=model).rows()
    assert {row["file"]: row["sha256"] for row in rows} == {row["file"]: row["sha256"] for row in single}


def test_a_model_that_is_no_name_does_not_go_to_a_cluster(tmp_path, tiny):
    with pytest.raises(ValueError, match="a cluster loads the model by itself, so give its name"):
        sdkit.batch(["a star"], tmp_path, model=tiny, address="local")


def test_what_is_the_fault_of_no_job_goes_to_the_end_as_a_reason(tmp_path):
    def load(_):
        raise FileNotFoundError("there is no such model")

    job = job_of("a star")
    row = {"work": pickle.dumps({"jobs": [job]})}
    for stage in (Words, Denoise, Write):
        row = stage(load, str(tmp_path), False)(row)
    assert pickle.loads(row["work"]) == {"broken": "there is no such model"}


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one processor each on this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # its workers step back behind other tests otherwise

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def denoising():
    """The processes that denoise, of those that this one has started."""
    every = psutil.Process().children(recursive=True)
    return [one.pid for one in every if "Denoise" in " ".join(one.cmdline())]


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")  # of Ray's own code
@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_and_a_node_makes_every_picture_once(cluster, tmp_path, tiny):
    jobs = [{"prompt": f"a {colour} star", "seed": seed, "num_inference_steps": 1}
            for colour in ("red", "blue", "green", "pink") for seed in range(125)]  # fmt: skip
    lost, here = [], tmp_path / "model"
    tiny.pipeline.save_pretrained(here)

    def lose():
        def rows():
            return len(list((tmp_path / "ray" / "rows").glob("*.json")))

        while rows() < 10:
            time.sleep(0.05)
        here.rename(tmp_path / "elsewhere")  # the worker that is to come finds no folder
        lost.append(denoising()[0])
        os.kill(lost[0], signal.SIGKILL)
        while rows() < 25:
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)
        lost.append(rows())

    threading.Thread(target=lose, daemon=True).start()
    made = sdkit.batch(jobs, tmp_path / "ray", model=here, address=cluster.address, workers=2)
    assert len(lost) == 2
    assert lost[1] < 63, "the node was lost when all was done"
    assert (made.made, made.bad) == (500, [])
    (tmp_path / "elsewhere").rename(here)
    single = sdkit.batch(jobs, tmp_path / "single", model=here)
    ours, theirs = made.rows(), single.rows()
    assert [row["key"] for row in ours] == [row["key"] for row in theirs]
    assert [row["settings"] for row in ours] == [row["settings"] for row in theirs]
    files = sorted(path.name for path in (tmp_path / "ray" / "pictures").rglob("*.*"))
    assert files == sorted(Path(row["file"]).name for row in ours)
    for one, other in zip(ours, theirs, strict=True):
        pair = [np.asarray(Image.open(tmp_path / folder / one["file"])).astype(int) for folder in ("ray", "single")]
        assert one["file"] == other["file"]
        assert np.abs(pair[0] - pair[1]).max() <= NOISE
