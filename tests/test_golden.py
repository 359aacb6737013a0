"The golden numbers that the repository keeps: small, whole in names, and the same as all of them."

import gzip
import json

import numpy as np
import pytest
from golden_numbers import ALL, KEPT, Golden


def names() -> list:
    return sorted(p.name for p in KEPT.glob("*.npz"))


def test_they_are_small():
    assert len(names()) == 11
    assert sum(p.stat().st_size for p in KEPT.iterdir()) < 2_000_000


@pytest.mark.parametrize("name", names())
def test_they_are_a_part_of_all(name):
    "Each kept array is what `pair` takes of the whole one."
    if not (ALL / name).is_file():
        pytest.skip(f"all golden numbers are wanted in {ALL}")
    whole, kept = np.load(ALL / name), Golden(KEPT / name)
    found = [k for k in whole.files if k in kept]
    assert len(found) == len(kept.file.files) > 0
    for k in found:
        assert np.array_equal(*kept.pair(k, whole[k])), k


def test_the_manifest_is_a_part_of_all():
    if not (ALL / "manifest.json").is_file():
        pytest.skip(f"all golden numbers are wanted in {ALL}")
    whole = json.loads((ALL / "manifest.json").read_text())
    kept = json.loads(gzip.decompress((KEPT / "manifest.json.gz").read_bytes()))
    assert kept["models"] == whole["models"] and kept["seed"] == whole["seed"]
    for name, fixture in kept["fixtures"].items():
        for k, v in fixture["arrays"].items():
            assert v["suggested_atol"] == whole["fixtures"][name]["arrays"][k]["suggested_atol"]


def test_a_wrong_number_is_seen(tmp_path):
    "Samples and pictures come back, and a result that is off, or of another shape, is not taken."
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    planes = np.diff(np.moveaxis(image, -1, -3), axis=-1, prepend=np.uint8(0))
    x = np.arange(24.0).reshape(2, 12)
    file = tmp_path / "a.npz"
    np.savez(file, **{"p differences": planes, "x every 5 of 2x12": x.reshape(-1)[::5]})
    gold = Golden(file)
    assert np.array_equal(gold["p"], image) and "p" in gold and "x" in gold and "y" not in gold
    assert np.array_equal(*gold.pair("x", x[:, None]))
    got, want = gold.pair("x", x + (x == 15))
    assert np.abs(got - want).max() == 1
    with pytest.raises(AssertionError, match="has shape"):
        gold.pair("x", x.T)
    with pytest.raises(pytest.skip.Exception, match="keeps no whole"):
        gold["x"]
