"""What somebody who installs sdkit gets: the files of the wheel, and libraries of known versions and licences."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sdkit

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = ("adapters", "batch", "compel", "plots", "schedulers")  # the extras that are for users
FREE = {  # licences that ask for no more than to be named, or, as the MPL does, for changes to their own files
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "ISC", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib",
}  # fmt: skip
IN_WORDS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = [path for path in (ROOT / "sdkit").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert held == {path.relative_to(ROOT).as_posix() for path in ours}
    assert {".py", ".typed", ".safetensors", ".json", ".txt", ".html"} <= {path.suffix for path in ours}


@pytest.mark.slow
def test_the_wheel_draws_what_the_repository_draws(wheel, tmp_path):
    ZipFile(wheel).extractall(tmp_path / "installed")  # `make release` does this with a new environment
    lines = f"""
        import sys; sys.path.insert(0, {str(tmp_path / "installed")!r})
        import sdkit; assert sdkit.__file__.startswith({str(tmp_path)!r})
        from sdkit.cli import main
        sys.exit(main(["generate", "a red star", "--seed", "7", "--device", "cpu", "-o", "star.png"]))
    """
    code = "\n".join(line.strip() for line in lines.splitlines())
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    sdkit.text_to_image("a red star", seed=7, model=sdkit.load(device="cpu")).save(tmp_path / "here.png")
    assert (tmp_path / "star.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_the_lower_bounds_are_the_versions_that_are_tested():
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for line in [
        *PROJECT["dependencies"],
        *(line for extra in OPTIONAL for line in PROJECT["optional-dependencies"][extra]),
    ]:
        needs = Requirement(line)
        (bound,) = needs.specifier
        assert bound.operator == ">=", line
        assert Requirement(f"x=={bound.version}").specifier.contains(pins[needs.name]), line


def needed(name, extras=("",)):
    """The libraries that come with another, and those that come with them."""
    found, ahead = {}, [(name, extras)]
    while ahead:
        name, extras = ahead.pop()
        if canonicalize_name(name) not in found:
            found[canonicalize_name(name)] = one = distribution(name)
            for needs in map(Requirement, one.requires or []):
                if needs.marker is None or any(needs.marker.evaluate({"extra": extra}) for extra in extras):
                    ahead.append((needs.name, ("", *needs.extras)))
    return found


def licences(metadata):
    """The licences that a library is under, which it says in one of three ways."""
    said = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License ::")]
    if metadata["License-Expression"] or not said:
        said = re.split(r" (?:AND|OR) ", metadata["License-Expression"] or metadata["License"] or "none")
    return {IN_WORDS.get(one, one) for one in said}


def test_every_library_that_comes_with_sdkit_is_free_to_use():
    proprietary = "nvidia-", "cuda-"  # what torch brings on a machine with a GPU of NVIDIA, under NVIDIA's own terms
    unknown = {
        name: strange
        for name, one in needed("sdkit-stages", ("", *OPTIONAL, "cluster")).items()
        if not name.startswith(proprietary) and (strange := licences(one.metadata) - FREE)
    }
    assert not unknown
