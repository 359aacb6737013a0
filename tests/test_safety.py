"No file is ever executed: every load call of the package is listed, and hostile, forged and damaged files are refused, each with one line, in bounded memory and time."

import ast
import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from pickled import (
    ada_module,  # noqa: F401
    fake_modules,
    filled,  # noqa: F401
    write_ada,
    write_e4e,
    write_pickle,
    write_rosinality,
    write_run,
    write_stats,
)  # noqa: F401
from test_project import NOTEBOOKS, ROOT, SOURCES, cells_of, tree_of

from stitch_nb.nets.bisenet import BiSeNet
from stitch_nb.core import StitchError
from stitch_nb.encode import Encoder
from stitch_nb.weights.formats import convert_file, read_network, to_source_keys
from stitch_nb.generator import Generator
from stitch_nb.weights.pickles import MAGIC, read_pickle

# ---- what the sources say -------------------------------------------------------------------------------------------------------------------------------------------

EXECUTING = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "imp",
    "runpy",
    "code",
    "ctypes.util",
}
CALLS = re.compile(
    r"(^|\.)(load|loads|load_state_dict_from_url|Unpickler|__import__|read_pickle|unsafe_load|full_load|load_module|import_module|run_path|run_module)$|^(builtins\.)?(eval|exec|compile)$"
)
ALLOWED = {  # the call as it is written -> files; every other call that loads is an error
    "torch.load": {"perceptual.py"},  # weights_only=True, checked below
    "torch.hub.load_state_dict_from_url": {"perceptual.py"},
    "import_module": {  # names of a table in the same file
        *("models.py", "judges.py", "start.py")
    },
    "task.network.load": {"frames.py"},  # a lane takes a frame into its tensors
    ".load": {"pickles.py"},  # of `CheckpointReader`, whose names come from a table: checked below
    "im.load": {"video.py"},  # Pillow decodes an open picture
}
HARMLESS = re.compile(
    r"^(np|numpy)\.load$|^json\.loads?$|^re\.compile$|^read_pickle$|^tomllib\.loads?$"
)  # np.load: no pickles unless asked, checked below


def code_of(path):
    "The Python of a file, or of a notebook's cells, parsed; cells with magics are left out."
    if path.suffix == ".py":
        return [tree_of(path)]
    cells = ["".join(c["source"]) for c in cells_of(path) if c["cell_type"] == "code"]
    return [ast.parse(c) for c in cells if not re.search(r"^[%!]", c, re.M)]


def dotted(node):
    "The text of a.b.c; '' for what is no chain of names."
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def loads(path):
    "Every call in a file that loads or runs something: (text of the function, keywords, the call)."
    for tree in code_of(path):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = dotted(node.func)
                if CALLS.search(name):
                    yield (
                        name,
                        {k.arg: ast.unparse(k.value) for k in node.keywords},
                        ast.unparse(node),
                    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_every_load_call_is_on_the_list(path):
    for name, keywords, call in loads(path):
        if re.match(r"(importlib\.)?import_module\(f?'stitch_nb\.[\w.{}]+'\)$", call):
            continue  # the package itself
        if HARMLESS.match(name):
            assert keywords.get("allow_pickle", "False") == "False", call
        else:
            assert path.name in ALLOWED.get(name, ()), f"{path.name}: {call}"
        if name.startswith("torch."):
            assert keywords.get("weights_only") == "True", call


def test_the_list_is_not_longer_than_needed():
    found = {(name, path.name) for path in SOURCES for name, _, _ in loads(path)}
    assert {(name, file) for name, files in ALLOWED.items() for file in files} <= found


def test_nothing_that_runs_code_is_imported():
    "Nor in notebooks, tests and tools. One test file writes pickles, and one page reads them."
    writer = ROOT / "tests" / "pickled.py"
    reader = {
        ROOT / "stitch_nb" / "weights" / "pickles.py",
        ROOT / "nbs" / "weights" / "10_pickles.ipynb",
    }
    for path in [
        *SOURCES,
        *NOTEBOOKS,
        *sorted((ROOT / "tests").glob("*.py")),
        *sorted((ROOT / "tools").glob("*.py")),
    ]:
        for node in (n for tree in code_of(path) for n in ast.walk(tree)):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert path in reader | {writer} or not {n.split(".")[0] for n in names} & EXECUTING, (
                f"{path.name}: {ast.unparse(node)}"
            )
            if isinstance(node, ast.Attribute) and dotted(node.value) == "pickle":
                wanted = "Unpickler" if path in reader else "dumps"
                assert node.attr == wanted, f"{path.name}: {ast.unparse(node)}"
            if isinstance(node, ast.Call):
                keywords = {
                    k.arg: getattr(k.value, "value", "?")
                    for k in node.keywords
                    if k.arg in ("allow_pickle", "weights_only")
                }
                assert keywords.get("allow_pickle", False) is False, (
                    f"{path.name}: {ast.unparse(node)}"
                )
                assert (
                    not dotted(node.func).endswith("torch.load")
                    or keywords.get("weights_only") is True
                ), f"{path.name}: {ast.unparse(node)}"
                assert dotted(node.func) not in ("eval", "exec", "__import__"), (
                    f"{path.name}: {ast.unparse(node)[:80]}"
                )


def test_the_reader_overrides_what_fetches_names():
    "`pickle.Unpickler` is named once, as the base of a class with a `find_class` of its own."
    (tree,) = code_of(ROOT / "stitch_nb" / "weights" / "pickles.py")
    named = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "Unpickler"]
    (reader,) = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "CheckpointReader"]
    assert named == reader.bases
    assert {"find_class", "persistent_load"} <= {f.name for f in reader.body if hasattr(f, "name")}


# ---- files that attack ----------------------------------------------------------------------------------------------------------------------------------------------

TINY = dict(
    z_dim=8,
    w_dim=8,
    resolution=8,
    channel_base=64,
    channel_max=8,
    mapping_layers=1,
    conv_clamp=None,
)


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(0)
    return Generator(**TINY)


def zipped(path, entries, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compress) as z:
        for name, content in entries.items():
            z.writestr(name, content)
    return path


def storage_program(numel, shape, key="0", stride=None):
    "A pickle that wants one float tensor of `shape` from storage `key`, said to have `numel` numbers."
    stride = stride or [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    number = lambda n: b"\x8a\x08" + struct.pack("<q", n)
    numbers = lambda ns: b"(" + b"".join(map(number, ns)) + b"t"
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + number(numel)
        + b"tQK\x00"
        + numbers(shape)
        + numbers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )


class Trap:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def attacks(folder, G, mark):
    "name -> (file, what its refusal must say). Whoever runs one of them leaves a file at `mark`."
    command, made = f"touch {mark}", {}

    def add(name, content, said):
        file = folder / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            write_pickle(file, content)
        made[name] = said

    add("system.pkl", Trap(os.system, command), "asks for 'posix.system'")
    add(
        "system_in_state.pkl",
        dict(G_ema=dict(weight=Trap(os.system, command))),
        "asks for 'posix.system'",
    )
    add("eval.pkl", Trap(eval, f"__import__('os').system({command!r})"), "asks for 'builtins.eval'")
    add(
        "getattr.pkl",
        b"\x80\x04cbuiltins\ngetattr\ncos\nsystem\nV__call__\n\x86R.",
        "asks for 'builtins.getattr'",
    )
    add("import.pkl", b"cbuiltins\n__import__\n(Vos\ntR.", "asks for 'builtins.__import__'")
    add(
        "chain.pkl",
        b"\x80\x04\x8c\x08builtins\x8c\x0eobject.__new__\x93.",
        "asks for 'builtins.object.__new__'",
    )
    add(
        "dunder.pkl",
        b"\x80\x04\x8c\x08torch.nn\x8c\x1d__init__.__globals__.__dict__\x93.",
        "asks for 'torch.nn.__init__",
    )
    add("instance.pkl", f"(S'{command}'\nios\nsystem\n.".encode(), "uses the opcode INST")
    add("extension.pkl", b"\x80\x02\x82\x01.", "uses the opcode EXT1")
    add(
        "build.pkl",
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__NsbX\x01\x00\x00\x00a.",
        "puts values into a Known",
    )
    add(
        "torch_load.pkl",
        b"ctorch.serialization\nload\n(Vx\ntR.",
        "asks for 'torch.serialization.load'",
    )
    add("numpy_object.pkl", np.array([Trap(os.system, command)], dtype=object), "posix.system")
    for k, name in (
        ("eval", "persistence_eval"),
        ("os.system", "persistence_system"),
        ("__builtins__", "persistence_builtins"),
    ):
        code = {
            "eval": f"eval(\"__import__('os').system({command!r})\")",
            "os.system": f"import os; os.system({command!r})",
            "__builtins__": "__builtins__['ex'+'ec']('')",
        }[k]
        write_ada(
            folder / f"{name}.pkl",
            G.state_dict(),
            TINY,
            source=f"import torch\n{code}\nclass Generator(torch.nn.Module): pass\n",
        )
        add(f"{name}.pkl", None, f"uses {k!r}")
    torch.save(dict(state_dict=Trap(os.system, command)), folder / "zip_system.pt")
    add("zip_system.pt", None, "asks for 'posix.system'")
    torch.save(
        dict(state_dict=Trap(os.system, command)),
        folder / "stream_system.pth",
        _use_new_zipfile_serialization=False,
    )
    add("stream_system.pth", None, "asks for 'posix.system'")
    # bombs
    add("many.pkl", b"(" + b"]" * 3_000_000 + b"l.", "steps to read")
    add("deep.pkl", b"]" * 400_000 + b"a" * 399_999 + b".", "steps to read")
    add("tuples.pkl", b")" + b"\x85" * 400_000 + b"}h\x00.", "never had")
    add("deep_key.pkl", b"}" + b")" + b"\x85" * 300_000 + b"Ns.", "keys are no numbers")
    add(
        "copies.pkl",
        b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93q\x00X"
        + struct.pack("<I", 2**20)
        + b"a" * 2**20
        + b"q\x01"
        + b"h\x00h\x01\x85R0" * 3000
        + b".",
        "copies its own content",
    )
    add(
        "sets.pkl",
        b"\x80\x04\x8c\x08builtins\x8c\x03set\x93q\x00]q\x01("
        + b"K\x01" * 1000
        + b"e"
        + b"h\x00h\x01\x85R0" * 3000
        + b".",
        "steps to read",
    )
    twins = b")q\x00" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    add("twin_keys.pkl", b"}" + twins + b"Ns.", "keys are no numbers")  # 2^60 to hash
    add("bytearray.pkl", b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "is damaged")
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    state = b"(K\x01(%stcnumpy\ndtype\n(U\x02u1tR\x89U\x01xtb"
    huge = b"\x8a\x06" + (2**40).to_bytes(6, "little")
    add("array.pkl", array + state % huge + b".", "stores 1 bytes for it")
    known = b"".join(b"r" + struct.pack("<I", i) for i in range(100_000))  # walked once, not
    copies = b"j\x00\x00\x00\x00" * 30_000 + (b"0" + state % b"K\x01") * 29_000  # once a copy
    add("remembered.pkl", array + known + copies + b".", "steps to read")
    add("long_bytes.pkl", b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "is damaged")
    add("long_int.pkl", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.", "is damaged")
    # what the standard library's reader would do with objects of torch
    add("memo.pkl", b"]r\xff\xff\xff\xff.", "as number 4294967295")
    one = io.BytesIO()
    torch.save(torch.zeros(2).untyped_storage(), one, _use_new_zipfile_serialization=False)
    content = one.getvalue()
    storage = b"\x80\x04ctorch.storage\n_load_from_bytes\nB%b%b\x85R" % (
        struct.pack("<I", len(content)),
        content,
    )
    tensor = b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n(%bK\x00))tR" % storage[2:]
    values = b"}\x8c\x05numel\x8a\x05" + (2**32).to_bytes(5, "little") + b"s"
    add("storage_state.pkl", storage + values + b"b.", "puts values into a Storage")
    add("storage_slots.pkl", storage + b"N" + values + b"\x86b.", "puts values into a Storage")
    add("tensor_state.pkl", tensor + b"(" + storage[2:] + b"K\x00K\x04\x85K\x01\x85tb.", "a View")
    add("tensor_items.pkl", tensor + b"K\x00K\x01s.", "does not support item assignment")
    add("tensor_append.pkl", tensor + b"K\x01a.", "no attribute")
    add("tensor_add.pkl", tensor + b"(K\x01\x90.", "no attribute")
    add("class_state.pkl", b"ctorch.nn\nLinear\n}\x8c\x01aNsb.", "is damaged")
    add("call_storage.pkl", b"ctorch\nFloatStorage\nK\x05\x85R.", "only mention")
    add("call_record.pkl", b"ctorch.nn\nLinear\n)R)R.", "not callable")
    # zips
    data = storage_program(4, (4,))
    good = {
        "a/data.pkl": data,
        "a/data/0": b"\0" * 16,
        "a/version": b"3\n",
        "a/byteorder": b"little",
    }
    zipped(folder / "climb.pt", good | {"a/../../evil": b"x"})
    add("climb.pt", None, "leads out of its folder")
    zipped(folder / "absolute.pt", good | {"/etc/evil": b"x"})
    add("absolute.pt", None, "leads out of its folder")
    zipped(folder / "inflate.pt", good | {"a/data/0": b"\0" * 2**24}, zipfile.ZIP_DEFLATED)
    add("inflate.pt", None, "compressed zip")
    zipped(folder / "script.pt", good | {"a/code/__torch__.py": b"import os"})
    add("script.pt", None, "TorchScript")
    zipped(folder / "nothing.pt", {"a/readme": b"hello"})
    add("nothing.pt", None, "without a checkpoint")
    zipped(folder / "missing.pt", {k: v for k, v in good.items() if k != "a/data/0"})
    add("missing.pt", None, "does not have it")
    overlap = bytearray(
        zipped(
            folder / "overlap.pt", good | {f"a/data/{i}": b"\0" * 2000 for i in range(1, 30)}
        ).read_bytes()
    )
    heads = [m.start() for m in re.finditer(b"PK\x01\x02", bytes(overlap))]
    for h in heads:
        overlap[h + 20 : h + 28] = struct.pack("<II", 60_000, 60_000)
    add("overlap.pt", bytes(overlap), "together larger than the file")
    # sizes
    for name, numel, shape, stride, said in (
        ("big_shape", 4, (2**20, 2**20), None, "stores only 4 numbers"),
        ("no_stride", 4, (2**40,), (0,), "stores only 4 numbers"),
        ("big_storage", 2**40, (4,), None, "declares 1099511627776 numbers"),
        ("negative", 4, (-4, -1), None, "in a way that torch never does"),
    ):
        zipped(
            folder / f"{name}.pt",
            good | {"a/data.pkl": storage_program(numel, shape, stride=stride)},
        )
        add(f"{name}.pt", None, said)
    stream = io.BytesIO()
    torch.save(torch.zeros(4), stream, _use_new_zipfile_serialization=False)
    forged = stream.getvalue()
    at = forged.index(b"cpu") + len(b"cpu") + 2
    assert forged[at : at + 2] == b"K\x04"
    add(
        "stream_storage.pt",
        forged[:at]
        + b"\x8a\x06"
        + (2**40).to_bytes(6, "little")
        + forged[at + 2 : -24]
        + struct.pack("<q", 2**40)
        + forged[-16:],
        "ends within storage",
    )
    assert forged.startswith(MAGIC)
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    add(
        "long.npy",
        header
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1, 18, 512000000000), }".ljust(117)
        + b"\n"
        + b"\0" * 64,
        "is damaged",
    )
    add(
        "object.npy",
        header
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
        + b"\n"
        + write_pickle(folder / "x", [Trap(os.system, command)]).read_bytes(),
        "holds Python objects",
    )
    add("paren.npy", header + (b"(" * 117) + b"\n", "is damaged")
    (folder / "x").unlink()
    return made


def run_child(folder, flips):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "hostile.py"), str(folder), str(flips)],
        capture_output=True,
        text=True,
        timeout=300 + 5 * flips,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return json.loads(done.stdout)


def one_line(text, name):
    return "\n" not in text and len(text) < 400 and name in text


def test_attacks_are_refused(tmp_path, G):
    "Each with one line that says what it tried, in seconds, in half a gigabyte; nothing is run, nothing is written."
    folder, mark = tmp_path / "files", tmp_path / "executed"
    folder.mkdir()
    wanted = attacks(folder, G, mark)
    names = {p.name for p in folder.iterdir()}
    assert names == set(wanted)
    report = run_child(folder, 0)
    for name, said in wanted.items():
        got = report["results"][name]
        assert (
            got["whole"][0] == "refused"
            and one_line(got["whole"][1], name)
            and said in got["whole"][1]
        ), (name, got["whole"])
        assert got["seconds"] < 10, (name, got["seconds"])
    assert report["grown"] < 2**29
    assert (
        {p.name for p in folder.iterdir()} == names
        and not mark.exists()
        and sorted(p.name for p in tmp_path.iterdir()) == ["files"]
    )


def test_the_attacks_are_real(tmp_path):
    "The same file, opened by Python as most programs do, does what it wants: the test above could fail."
    mark = tmp_path / "executed"
    file = write_pickle(tmp_path / "x.pkl", Trap(os.system, f"touch {mark}"))
    subprocess.run(
        [sys.executable, "-c", f"import pickle; pickle.load(open({str(file)!r}, 'rb'))"], check=True
    )
    assert mark.exists()


def samples(folder, G):
    "One small file of every format."
    torch.manual_seed(0)
    E, S, state = (
        Encoder(32, 2, 8, width=8, blocks=(1, 1, 1, 1), head_width=8),
        BiSeNet(width=4),
        G.state_dict(),
    )
    decoder, encoder = (
        to_source_keys("rosinality", state),
        {k: v for k, v in E.state_dict().items() if k != "w_avg"},
    )
    write_ada(folder / "ada4.pkl", state, TINY)
    write_ada(folder / "ada2.pkl", state, TINY, protocol=2)
    write_run(folder / "run.pt", state, TINY, torch.randn(3, 4, 8), [np.zeros((4, 2))] * 3)
    write_rosinality(folder / "rosinality.pt", decoder, G.w_avg)
    write_rosinality(folder / "rosinality_stream.pt", decoder, G.w_avg, zipped=False)
    write_e4e(folder / "e4e.pt", encoder, E.w_avg, decoder)
    torch.save(S.state_dict(), folder / "bisenet.pth", _use_new_zipfile_serialization=False)
    np.save(folder / "smile.npy", np.random.randn(1, 18, 512))
    torch.save(torch.randn(18, 512), folder / "age.pt")
    np.save(folder / "fs3.npy", np.random.randn(600, 32).astype("float32"))
    write_stats(folder / "S_mean_std", [np.random.randn(8)] * 3, [np.random.rand(8)] * 3)


@pytest.mark.parametrize("flips", [24, pytest.param(400, marks=pytest.mark.slow)])
def test_damaged_files(tmp_path, G, flips):
    "Cut short or with flipped bits: refused in one line, or the same network with other numbers. Never another error, never a hang, nothing written."
    folder = tmp_path / "files"
    folder.mkdir()
    samples(folder, G)
    report, counts = run_child(folder, flips), {}
    for name, got in report["results"].items():
        assert got["whole"][0] == "shapes" and len(got["damaged"]) == flips + 6, (
            name,
            got["whole"],
        )
        for how, said, seconds in got["damaged"]:
            if said[0] == "refused":
                assert one_line(said[1], name), (name, how, said)
            else:
                assert said == got["whole"], (name, how, said)
            assert seconds < 10, (name, how, seconds)
            assert not how.startswith("first") or said[0] == "refused", (name, how)
            counts[name] = counts.get(name, 0) + (said[0] == "refused")
    assert report["grown"] < 2**29
    assert all(n >= 6 for n in counts.values()) and len(counts) == 11
    assert counts["run.pt"] > flips // 2 and counts["age.pt"] > flips // 2  # zips have checksums
    assert sorted(p.name for p in tmp_path.iterdir()) == ["files"]


def test_a_failed_conversion_writes_nothing(tmp_path, G):
    file = write_ada(tmp_path / "network.pkl", G.state_dict(), TINY)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(StitchError, match="network.pkl: "):
        convert_file(file, tmp_path / "network.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["network.pkl"]


# ---- files that are what they say -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zip_format", [True, False])
def test_reads_what_torch_reads(tmp_path, zip_format):
    "On files that torch's own safe reader takes, the two agree."
    base = torch.arange(24.0).reshape(4, 6)
    content = dict(
        whole=base,
        turned=base.T,
        part=base[1:3, ::2],
        half=base.half(),
        bf=base.bfloat16(),
        count=torch.tensor(3),
        empty=torch.zeros(0, 4),
        flag=torch.tensor([True, False]),
        parameter=torch.nn.Parameter(base.clone()),
        nested=[1, 2.5, None, "text", (True, {"a": torch.ones(2)})],
        bytes=b"abc",
        big=2**70,
    )
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zip_format)
    theirs, ours = torch.load(tmp_path / "x.pt", weights_only=True), read_pickle(tmp_path / "x.pt")

    def same(a, b):
        if torch.is_tensor(a):
            return torch.equal(a, b) and a.dtype == b.dtype and a.shape == b.shape
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and type(a) is type(b) and all(map(same, a, b))
        return a == b and type(a) is type(b)

    assert same(theirs, ours)
    torch.save(
        torch.nn.BatchNorm1d(3).state_dict(),
        tmp_path / "y.pt",
        _use_new_zipfile_serialization=zip_format,
    )  # an OrderedDict with attributes
    assert same(torch.load(tmp_path / "y.pt", weights_only=True), read_pickle(tmp_path / "y.pt"))


def test_tensors_do_not_write_into_the_file(tmp_path):
    torch.save(dict(a=torch.zeros(100)), tmp_path / "x.pt")
    before = (tmp_path / "x.pt").read_bytes()
    read_pickle(tmp_path / "x.pt")["a"].fill_(7)
    assert (tmp_path / "x.pt").read_bytes() == before


def test_source_stays_text(tmp_path, G):
    "The source in an honest file is kept as text, and has no say in what is built."
    file = write_ada(tmp_path / "x.pkl", G.state_dict(), TINY, source="raise SystemExit('run')\n")
    record = read_pickle(file)["G_ema"]
    assert record.source.startswith("raise SystemExit") and record.name == "Generator"
    assert read_network(file).config == TINY


def test_endless_modules(tmp_path):
    "A module that contains itself, and thirty layers of two references to the same module."
    with fake_modules():
        from pickled import Layer

        inner = Layer("a", dict(_parameters={}, _modules={}))
        inner.state["_modules"]["again"] = inner
        loop = b"\x80\x04}\x8c\x05G_emactorch_utils.persistence\n_reconstruct_persistent_obj\n}(\x8c\x05stateq\x01}q\x02(\x8c\x08_modules}u\x8c\x0aclass_name\x8c\x01Gu\x85Rq\x03s."
        doubling = Layer("a", dict(_parameters={}, _modules={}))
        for _ in range(30):
            doubling = Layer("a", dict(_parameters={}, _modules={"x": doubling, "y": doubling}))
        write_pickle(tmp_path / "doubling.pkl", dict(G_ema=doubling))
    (tmp_path / "loop.pkl").write_bytes(loop)
    with pytest.raises(StitchError, match="without end"):
        read_network(tmp_path / "doubling.pkl")
    with pytest.raises(StitchError, match="no StyleGAN2 generator"):
        read_network(tmp_path / "loop.pkl")
