"Golden numbers of the authors' code: all where they are at hand, else those in tests/golden."

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "golden"
ALL = Path(os.environ.get("STITCH_NB_PARITY", ROOT.parent / "shared" / "parity"))


def golden_file(name: str) -> Path:
    "Where the file `name` is: among all golden numbers, else in tests/golden; else skips."
    for folder in (ALL, KEPT):
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"the golden numbers {name} are not here: all of them are wanted in {ALL}")


class Golden:
    """The golden arrays of one component, by name.

    An array may be kept as a sample: every k-th number of it, row by row, under the name
    'NAME every k of SHAPE'.
    A picture (...,H,W,3) is kept as (...,3,H,W) differences to the pixel at the left, as
    'NAME differences'."""

    def __init__(self, path: Path):
        self.path, self.file = path, np.load(path, allow_pickle=False)
        self.samples = {}  # name to (its name in the file, k, shape of the whole array)
        for entry in self.file.files:
            name, every, rest = entry.partition(" every ")
            if every:
                k, shape = rest.split(" of ")
                self.samples[name] = entry, int(k), tuple(map(int, shape.split("x")))

    def __contains__(self, name: str) -> bool:
        return name in self.samples or {name, f"{name} differences"} & set(self.file.files) != set()

    def __getitem__(self, name: str) -> np.ndarray:
        "The whole array; skips the test where it isn't kept whole."
        if f"{name} differences" in self.file.files:
            planes = self.file[f"{name} differences"]
            return np.moveaxis(np.cumsum(planes, axis=-1, dtype=np.uint8), -3, -1).copy()
        if name not in self.file.files:
            pytest.skip(
                f"tests/golden keeps no whole {self.path.stem}/{name}; all are wanted in {ALL}"
            )
        return self.file[name]

    def pair(self, name: str, got) -> tuple:
        "`got` and the golden numbers that it should be, of one shape: as much of both as is kept."
        if name not in self.samples:
            return got, self[name]
        entry, k, shape = self.samples[name]
        ones = lambda s: tuple(n for n in s if n > 1)
        assert ones(got.shape) == ones(shape), f"{name} has shape {shape}, got {got.shape}"
        return got.reshape(-1)[::k], self.file[entry]

    def close(self):
        self.file.close()


def load_manifest() -> dict:
    "The description of golden arrays (their tolerances) and of every network's entries."
    if (ALL / "manifest.json").is_file():
        return json.loads((ALL / "manifest.json").read_text())
    return json.loads(gzip.decompress(golden_file("manifest.json.gz").read_bytes()))
