"""What a batch gains and costs, measured side by side in one run: `python benchmarks/many.py`, and with `--ray` on two
workers as well."""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sdkit.many.book import Book, Made
from sdkit.many.grid import plan
from sdkit.many.jobs import digest, job_of
from sdkit.many.work import Maker
from sdkit.measure import psnr
from sdkit.model.loading import load
from sdkit.pictures import to_pixels

SHAPES = ("circle", "square", "triangle", "star", "heart", "house", "tree", "flower")
JOBS = [job_of({"prompt": f"a {colour} {shape}", "seed": 1}) for colour in ("red", "blue") for shape in SHAPES]


def _timed(maker: Maker, jobs: list, size: int) -> tuple[float, float, list[Made]]:
    """Seconds a picture, by the clock and of the processor, and what was made."""
    began, worked, made = time.perf_counter(), time.process_time(), []
    for start in range(0, len(jobs), size):
        for some, _ in maker.make(jobs[start : start + size]):
            made += some
    return (time.perf_counter() - began) / len(jobs), (time.process_time() - worked) / len(jobs), made


def throughput(sizes: tuple[int, ...] = (2, 4, 8, 16), pairs: int = 3) -> None:
    """Seconds a picture alone over those together, in turns; and how far their pictures are apart."""
    model = load()
    maker = Maker(lambda _: model)
    _timed(maker, JOBS[:2], 2)
    for size in sizes:
        both = [(_timed(maker, JOBS, 1), _timed(maker, JOBS, size)) for _ in range(pairs)]
        clock, processor = ([alone[which] / together[which] for alone, together in both] for which in (0, 1))
        apart, near = _apart(both[0][0][2], both[0][1][2])
        print(
            f"{size:2} pictures at once: {statistics.median(clock):.2f} times as many a second "
            f"({min(clock):.2f} to {max(clock):.2f}), {statistics.median(processor):.2f} a second of the processor; "
            f"apart by {apart} of 255 at most, PSNR {near:.0f} dB at least"
        )


def _apart(ours: list[Made], theirs: list[Made]) -> tuple[int, float]:
    pictures = [[Image.open(io.BytesIO(one.pictures[0])) for one in made] for made in (ours, theirs)]
    values = [np.stack([np.asarray(one).astype(int) for one in some]) for some in pictures]
    near = psnr(*(to_pixels(some) for some in pictures))
    return int(np.abs(values[0] - values[1]).max()), min(float(one) for one in near)


def resuming(many: int = 10_000) -> None:
    """Seconds in which the command finds out that so many jobs are done, from the start of Python to its end."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "jobs.txt").write_text("".join(f"a star {number}\n" for number in range(many)))
        began = time.perf_counter()
        jobs = plan(here / "jobs.txt").jobs
        planned = time.perf_counter() - began
        book = Book(here / "out")
        settings = {"prompt": "a star", "seed": [7], "scheduler": {"class": "DDIMScheduler"}, "model": "sdkit/tiny"}
        for start in range(0, many, 8):
            book.keep(
                [Made(job.key, job.function, [b"0"], [(8, 8)], settings, 1.0, 8) for job in jobs[start : start + 8]]
            )
        command = [sys.executable, "-m", "sdkit", "batch", str(here / "jobs.txt"), str(here / "out")]
        for what in ("rows of which lie beside the manifest", "all in the manifest"):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            print(f"{many} jobs that are done, {what}: {time.perf_counter() - began:.2f} s")
        size = (here / "out" / "manifest.parquet").stat().st_size
        print(f"a job is planned in {planned / many * 1e6:.0f} microseconds; a row has {size / many:.0f} bytes")


def closing(many: int = 50_000) -> None:
    """What the manifest of so many rows takes to write, with settings as the embedded model's."""
    import json

    model = load()
    (made,), _ = next(Maker(lambda _: model).make([job_of({"prompt": "a star", "num_inference_steps": 1})]))
    with tempfile.TemporaryDirectory() as folder:
        book = Book(folder)
        book.keep([made])
        row = book.rows()[0]
        (Path(folder) / "rows").mkdir(exist_ok=True)
        for start in range(0, many, 1000):
            rows = [
                {
                    **row,
                    "key": digest(f"{number}"),
                    "seed": number,
                    "sha256": digest(f"{number} a") + digest(f"{number} b"),
                    "settings": row["settings"].replace('"a star"', f'"a star {number}"'),
                }
                for number in range(start, start + 1000)
            ]
            (Path(folder) / "rows" / f"{start}.json").write_text(json.dumps(rows))
        began = time.perf_counter()
        book.close([], [])
        seconds, size = time.perf_counter() - began, (Path(folder) / "manifest.parquet").stat().st_size
        print(f"a manifest of {many} rows: {seconds:.1f} s, {size / many:.0f} bytes a row")


def on_ray(pairs: int = 3, many: int = 20) -> None:
    """Pictures a second on two workers over those of one process, from the first group that is kept to the last."""

    def rate(*options: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            lines = "".join(f"- {{prompt: a red {shape}, seed: {seed}}}\n" for shape in SHAPES for seed in range(many))
            (Path(folder) / "jobs.yaml").write_text(lines)
            command = [sys.executable, "-m", "sdkit", "batch", "jobs.yaml", "out", *options]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            times = sorted(path.stat().st_mtime for path in Path(folder).glob("out/pictures/*/*.png"))
            return (len(times) - 8) / (times[-1] - times[7])

    ratios = [1 / (rate() / rate("--ray", "--workers", "2")) for _ in range(pairs)]
    print(
        f"two workers on Ray over one process: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    resuming()
    closing()
    throughput()
    if "--ray" in sys.argv:
        on_ray()
