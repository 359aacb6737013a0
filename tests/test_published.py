"The published directions: fetched on request, checked, and used by name in an edit."

import hashlib
import http.server
import io
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stitch_nb.run import people
from stitch_nb.commands.weights import stitch_weights
from stitch_nb.core import StitchError
from stitch_nb.edit import STYLEGAN2_ROW, Edit
from stitch_nb.models import Bundle
from stitch_nb.run.people import edits_by_person, with_published
from stitch_nb.weights import catalogue, download

ROWS = np.random.default_rng(0).normal(size=(18, 512))


def as_file(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    "Serves two directions in the place of the published ones; `sends` is what it answers."
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("STITCH_OFFLINE", raising=False)
    right = {"age.npy": as_file(ROWS), "smile.npy": as_file(-ROWS)}
    sends, asked = dict(right), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            name = self.path.rpartition("/")[2]
            asked.append(name)
            self.send_response(200)
            self.send_header("Content-Length", str(len(sends[name])))
            self.end_headers()
            self.wfile.write(sends[name])

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    files = {
        name: replace(
            catalogue.REGISTRY[name],
            urls=(f"http://127.0.0.1:{web.server_port}/{name}",),
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
        )
        for name, data in right.items()
    }
    for module in (catalogue, download, people):
        monkeypatch.setattr(module, "REGISTRY", files)
    yield SimpleNamespace(sends=sends, asked=asked, right=right)
    web.shutdown()
    web.server_close()


def mobile_like(L=23, D=512):
    "A bundle whose generator has so many rows; nothing of it is drawn here."
    G = SimpleNamespace(num_ws=L, w_dim=D)
    return Bundle("toy", 32, G, directions=dict(age=torch.zeros(L, D)))


def test_the_entry_in_the_catalogue():
    "Sixteen files, all with a whole hash, at one commit, no bundle of networks."
    files = catalogue.bundle_files("stit")
    assert len(files) == 16 == len({f.sha256 for f in files})
    assert all(len(f.sha256) == 64 and f.size == 73_856 for f in files)
    assert all("fac087f2b87f75ce85b1222cb5e0e4ea24474348" in u for f in files for u in f.urls)
    assert all(f.licence.startswith("MIT") for f in files)
    assert "stit" in catalogue.entries() and "stit" not in catalogue.official_bundles()
    assert set(files) <= set(catalogue.bundle_files("ffhq"))


def test_fetched_on_request_and_used_by_name(server, capsys):
    models = mobile_like()
    with pytest.raises(StitchError, match="stitch_weights download stit"):
        with_published(models, "stit:age=3")
    assert server.asked == []  # naming one fetches nothing
    stitch_weights(["download", "stit", "--yes"])
    said = capsys.readouterr().out
    assert "MIT" in said and "stitch_edit CLIP --edit stit:age=3" in said
    found = with_published(models, ["stit:age=3", "stit:smile=0:0,9:2@1", "age=1"])
    assert set(found.directions) == {"age", "stit:age", "stit:smile"}
    assert set(models.directions) == {"age"}  # the bundle that was given stays as it was
    rows = torch.from_numpy(ROWS).float()[list(STYLEGAN2_ROW)]
    assert torch.equal(found.directions["stit:age"], rows)
    assert torch.equal(found.directions["stit:smile"], -rows)
    record = found.meta["directions_of_others"]["stit:age"]
    assert record["licence"].startswith("MIT")
    assert record["sha256"] == hashlib.sha256(server.right["age.npy"]).hexdigest()
    edits = edits_by_person(["stit:age=3", "stit:smile=0:0,9:2@1"], found)
    assert edits == {
        "largest": (Edit("stit:age", ((0, 3.0),)),),
        1: (Edit("stit:smile", ((0, 0.0), (9, 2.0))),),
    }


def test_imported_from_a_folder(server, tmp_path, capsys):
    folder = tmp_path / "w_directions"
    folder.mkdir()
    for name, data in server.right.items():
        (folder / name).write_bytes(data)
    stitch_weights(["import", str(folder)])
    assert "stit: 0 files missing" in capsys.readouterr().out and server.asked == []
    assert "stit:smile" in with_published(mobile_like(18), {0: "stit:smile=1"}).directions
    stitch_weights(["remove", "stit", "--yes"])
    with pytest.raises(StitchError, match="is not here"):
        with_published(mobile_like(), "stit:smile=1")


def test_other_bytes_are_refused(server):
    server.sends["age.npy"] = as_file(ROWS + 1)
    with pytest.raises(SystemExit):
        stitch_weights(["download", "stit", "--yes"])
    with pytest.raises(StitchError, match="is not here"):
        with_published(mobile_like(), "stit:age=1")


def test_a_generator_of_another_kind(server):
    stitch_weights(["download", "stit", "--yes"])
    with pytest.raises(StitchError, match="does not fit a generator with 12 rows of 64"):
        with_published(mobile_like(12, 64), "stit:age=1")
    with pytest.raises(StitchError, match="no published direction is called 'hair'"):
        with_published(mobile_like(), "stit:hair=1")
