"The wheel has everything that a run needs, and works in an empty directory."

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # builds the wheel
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is needed to build without the network")
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = [n for n in listed.stdout.split("\0") if n] if listed.returncode == 0 else []
    if not names:
        pytest.skip("the files of the project are known from its repository only")
    for name in names:
        if not (ROOT / name).is_file() or name.startswith("nbs/"):
            continue
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder / "dist"),
        str(folder / "source"),
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next((folder / "dist").glob("*.whl"))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "stitch_nb/pipeline.py" in names and "stitch_nb/bundles/people/bundle.json" in names
    assert (
        "stitch_nb/bundles/people/generator.safetensors" in names
        and "stitch_nb/data_samples/talk.mp4" in names
    )
    scripts = (
        zipfile.ZipFile(wheel)
        .read(next(n for n in names if n.endswith("entry_points.txt")))
        .decode()
    )
    assert (
        "stitch_demo = stitch_nb.commands.start:stitch_demo" in scripts
        and "stitch_edit = stitch_nb.commands.start:stitch_edit" in scripts
    )
    foreign = "tests/", "nbs/", "tools/", "worlds/", "stitch_worlds/", "stitch_nb/people/"
    assert not [n for n in names if n.startswith(foreign)]


def test_runs_in_an_empty_directory(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    script = (
        "import sys, stitch_nb; print(stitch_nb.__file__); sys.argv = ['stitch_demo']; from stitch_nb.commands.edit import stitch_demo; "
        "stitch_demo(frames='0:3', pti_steps=1, stitch_steps=2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.splitlines()[0]).is_relative_to(site)
    assert json.loads((empty / "stitch_run_demo" / "metrics.json").read_text())["leak"] == 0
    assert sorted(p.name for p in empty.iterdir()) == ["stitch_run_demo"]
