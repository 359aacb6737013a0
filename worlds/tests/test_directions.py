"The shipped directions of photographs are those of the recipes, and move the rows that the recipes name."

import json

import pytest

from stitch_nb.core import load_tensors
from stitch_nb.models import bundle_folder
from stitch_worlds.photo_directions import LIDS, LOOK_GRADIENTS, LOOKS, RECIPES


@pytest.fixture(scope="module")
def shipped():
    folder = bundle_folder("mobile")
    record = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["directions"]
    return record, load_tensors(folder / "directions.safetensors")


def test_each_shipped_direction_has_its_recipe(shipped):
    record, tensors = shipped
    assert set(record["names"]) == set(tensors) == set(RECIPES) | set(LOOKS)
    table = record["meta"]["table"]
    for name, (hold, _, length) in RECIPES.items():
        assert table[name]["length"] == length and set(table[name]["held"]) <= set(hold), name
    for name, (hold, rows, length) in LOOKS.items():
        assert table[name]["held"] == list(hold) and table[name]["rows"] == list(rows), name
        assert table[name]["length"] == length and set(hold) <= set(LOOK_GRADIENTS), name


@pytest.mark.parametrize("name", [k for k in LOOKS if k != "glasses"])
def test_a_look_moves_its_rows_alone(shipped, name):
    delta = shipped[1][name].float()
    first, last = LOOKS[name][1]
    lengths = delta.norm(dim=1)
    assert not lengths[:first].any() and not lengths[last:].any()
    assert abs(float(lengths[first:last].mean()) - LOOKS[name][2]) < 0.02


def test_glasses_open_the_lids_a_little(shipped):
    "Rows past those of glasses are those of `eyes_open` alone."
    tensors, last = shipped[1], LOOKS["glasses"][1][1]
    glasses, lids = (tensors[k].float().reshape(-1, 512) for k in ("glasses", "eyes_open"))
    assert float((glasses[last:] - LIDS * lids[last:]).abs().max()) < 1e-2
