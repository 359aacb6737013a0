"A run's videos carry a signed account of the edit, which no longer fits when a byte changes."

import builtins
import json
import sys

import pytest
import tiny
from stitch_nb import credentials
from stitch_nb.commands.edit import stitch_edit
from stitch_nb.core import StitchError, hash_of
from stitch_nb.credentials import Credentials, practice_credentials, read_credentials, sign_video
from stitch_nb.run.settings import RunConfig
from stitch_nb.video import read_clip, read_mark


@pytest.fixture
def who(tmp_path):
    pytest.importorskip(
        "c2pa", reason="c2pa-python is not installed: pip install 'stitch_nb[c2pa]'"
    )
    return practice_credentials(tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny.tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def edit(monkeypatch, bundle, tmp_path, capsys):
    "`edit(**options)` runs stitch_edit on discs; (status, last line of stderr, stdout)."
    tiny.use_disc(monkeypatch)
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    clip = tiny.face_clip(tmp_path / "disc.mp4", T=3)
    usual = tiny.QUICK | dict(models=str(bundle), out=str(tmp_path / "run"))
    return lambda **options: tiny.outcome(stitch_edit, capsys, str(clip), **usual | options)


def test_a_run_is_signed(who, edit, tmp_path):
    options = dict(credentials=str(who.certificate), credentials_key=str(who.key))
    assert edit()[0] == 0
    assert read_credentials(tmp_path / "run" / "result.mp4") == {}
    status, _, said = edit(**options)
    assert status == 0, said
    for name in ("result.mp4", "compare.mp4"):
        found = read_credentials(tmp_path / "run" / name)
        assert found["state"] == "Valid" and found["parent"] == ["disc.mp4"]
        assert (
            found["actions"] == ["c2pa.opened", "c2pa.edited"] and found["program"] == "stitch_nb"
        )
        assert found["edits"] and found["signer"] == "a signer for practice"
    result = tmp_path / "run" / "result.mp4"
    assert len(read_clip(result)) == 3 and read_mark(result)
    record = (tmp_path / "run" / "run.json").read_text()
    assert json.loads(record)["settings"]["credentials"] == "chain.pem" and "key.pem" not in record
    before = result.read_bytes()
    assert edit(**options)[0] == 0 and result.read_bytes() == before  # a finished run is kept


def test_who_signs_is_part_of_the_result(who, tmp_path):
    (tmp_path / "other").mkdir()
    other = practice_credentials(tmp_path / "other")
    keys = {hash_of(RunConfig(credentials=c)) for c in (None, who, other)}
    assert len(keys) == 3


def test_a_changed_byte_is_noticed(who, tmp_path):
    clip = tiny.face_clip(tmp_path / "a.mp4", T=3)
    sign_video(clip, who, tmp_path / "frames", ["smile=2"])
    assert read_credentials(clip)["state"] == "Valid"
    assert read_credentials(clip)["parent"] == ["frames"]  # a folder is named
    data = bytearray(clip.read_bytes())
    data[-200] ^= 1
    clip.write_bytes(data)
    assert read_credentials(clip)["state"] == "Invalid"


def test_the_sources_account_is_kept(who, tmp_path):
    import c2pa

    first, second = (tiny.face_clip(tmp_path / f"{n}.mp4", T=3) for n in "ab")
    sign_video(first, who, tmp_path / "camera", ["age=1"])
    sign_video(second, who, first, ["smile=2"])
    with open(second, "rb") as file, c2pa.Reader("video/mp4", file) as reader:
        assert len(json.loads(reader.json())["manifests"]) == 2
    assert read_credentials(second)["edits"] == ["smile=2"]


@pytest.mark.parametrize(
    "case, words",
    [
        ("swapped", "cannot be read, it is not such a file"),
        ("another key", "cannot sign a trial"),
        ("no certificate", "cannot sign a trial"),
        ("locked", "it has a password"),
        ("one only", "give both"),
        ("absent", "no such file"),
    ],
)
def test_refused_before_any_work(who, edit, tmp_path, case, words):
    chain, key = str(who.certificate), str(who.key)
    (tmp_path / "other").mkdir()
    if case == "swapped":
        chain, key = key, chain
    elif case == "another key":
        key = str(practice_credentials(tmp_path / "other").key)
    elif case == "no certificate":
        chain = str(tmp_path / "empty.pem")
        (tmp_path / "empty.pem").write_text("")
    elif case == "locked":
        key = str(locked(who, tmp_path / "locked.pem"))
    elif case == "one only":
        key = ""
    else:
        chain = str(tmp_path / "nowhere.pem")
    status, last, _ = edit(credentials=chain, credentials_key=key)
    assert status == 2 and words in last and "\n" not in last.strip()
    assert not (tmp_path / "run" / "stages").exists()


def locked(who, path):
    from cryptography.hazmat.primitives import serialization as pem

    private = pem.load_pem_private_key(who.key.read_bytes(), None)
    lock = pem.BestAvailableEncryption(b"secret")
    path.write_bytes(private.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, lock))
    return path


def test_a_container_that_holds_none(who, tmp_path):
    with pytest.raises(StitchError, match=".webm holds no content credentials"):
        credentials.check_credentials(who, tmp_path / "a.webm")


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch, edit, tmp_path):
    for name in ("chain.pem", "key.pem"):
        (tmp_path / name).write_text("x")
    plain = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.partition(".")[0] in ("c2pa", "cryptography"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return plain(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "c2pa", raising=False)
    monkeypatch.setattr(builtins, "__import__", absent)
    both = dict(zip(("credentials", "credentials_key"), map(str, sorted(tmp_path.glob("*.pem")))))
    status, last, _ = edit(**both)
    assert status == 2 and "pip install 'stitch_nb[c2pa]'" in last
    assert Credentials(*both.values()).key.name == "key.pem"
