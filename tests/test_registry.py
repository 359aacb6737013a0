"Downloads against a server that cuts, corrupts, redirects, dawdles and lies: the right bytes arrive, or nothing does."

import errno
import hashlib
import http.server
import json
import random
import sys
import threading
import time
import zipfile
from collections import namedtuple

import numpy as np
import pytest

from stitch_nb.weights import catalogue as registry, download
from stitch_nb.commands.weights import stitch_weights
from stitch_nb.core import StitchError
from pickled import write_pickle
from stitch_nb.weights.catalogue import OfficialFile, file_state, original_path, read_lock
from stitch_nb.weights.download import fetch

BODY = bytes(range(256)) * 800  # 204 800 bytes
RIGHT = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    "Answers each path after its own manner; `asked` holds (path, Range header)."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.sent, self.release = [], 0, threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", sent=None, **headers):
        self.send_response(status)
        for k, v in (
            {
                "Content-Length": len(body),
                "Content-Type": "application/octet-stream",
                "ETag": '"one"',
            }
            | {k.replace("_", "-"): v for k, v in headers.items()}
        ).items():
            self.send_header(k, str(v))
        self.end_headers()
        self.wfile.write(body if sent is None else body[:sent])

    def do_GET(self):
        mood, wanted = self.path.strip("/").split("/")[0], self.headers.get("Range")
        self.server.asked.append((mood, wanted))
        start = int(wanted[6:-1]) if wanted else 0
        first = sum(m == mood for m, _ in self.server.asked) == 1
        rest = (
            dict(status=206, Content_Range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
            if start
            else dict(status=200)
        )
        if mood == "good":
            self.reply(body=BODY[start:], **rest)
        elif mood == "cuts":
            self.reply(body=BODY[start:], sent=70_000, **rest)
        elif mood == "norange":
            self.reply(200, BODY, sent=70_000 if first else None)
        elif mood == "corrupts":
            self.reply(200, BODY[:-1] + b"?")
        elif mood == "joins":  # the second half of another file
            self.reply(body=BODY, sent=70_000, **rest) if first else self.reply(
                body=b"?" * (len(BODY) - start), **rest
            )
        elif mood == "moves":
            self.reply(302, Location=self.server.url("good"))
        elif mood == "circles":
            self.reply(302, Location=self.server.url("circles"))
        elif mood == "gone":
            self.reply(404, b"no")
        elif mood == "busy":
            self.reply(503, b"later") if first else self.reply(200, BODY)
        elif mood == "page":
            self.reply(200, b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")
        elif mood == "silent":
            self.reply(200, BODY, sent=1000)
            self.wfile.flush()
            self.server.release.wait(20)
        elif mood == "slow":
            self.reply(200, BODY, sent=0)
            for i in range(0, len(BODY), 8192):
                self.wfile.write(BODY[i : i + 8192])
                self.wfile.flush()
                time.sleep(0.005)
        elif mood == "nolength":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(BODY)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STITCH_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(server):
    "`get('cuts', 'good', sha256=...)` fetches from these sources in this order."

    def get(*moods, sha256=RIGHT, size=0, name="toy.bin", **kwargs):
        file = OfficialFile(
            name, "parser", tuple(server.url(m) for m in moods), "none", ("toy",), sha256, size
        )
        return fetch(file, **dict(pause=0.001, timeout=5, attempts=4) | kwargs)

    return get


def leftovers(tmp_path):
    return sorted(
        p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.name != "lock.json"
    )


def test_plain(get, server, tmp_path):
    seen = []
    path = get("good", size=len(BODY), progress=lambda *a: seen.append(a))
    assert path.read_bytes() == BODY and seen[-1][:2] == (len(BODY), len(BODY))
    assert leftovers(tmp_path) == ["toy.bin"]
    assert get("good") == path and len(server.asked) == 1  # the second time nobody is asked


def test_cut_connections_are_resumed(get, server):
    assert get("cuts").read_bytes() == BODY
    assert server.asked == [("cuts", None), ("cuts", "bytes=70000-"), ("cuts", "bytes=140000-")]


def test_an_interrupted_command_goes_on(get, server):
    with pytest.raises(StitchError, match="stopped after 70.0 kB of 204.8 kB"):
        get("cuts", attempts=1)
    assert get("cuts", attempts=2).read_bytes() == BODY
    assert [r for _, r in server.asked] == [None, "bytes=70000-", "bytes=140000-"]


def test_ctrl_c_keeps_what_arrived(get, server):
    def stop(done, total, text):
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get("good", progress=stop)
    assert get("good").read_bytes() == BODY
    assert int(server.asked[1][1][6:-1]) > 100_000


def test_a_server_that_cannot_resume(get, server):
    assert get("norange").read_bytes() == BODY


def test_a_part_of_another_source_is_not_continued(get, server):
    with pytest.raises(StitchError):
        get("cuts", attempts=1)
    assert get("good").read_bytes() == BODY
    assert server.asked[-1] == ("good", None)


@pytest.mark.parametrize("mood", ["corrupts", "joins"])
def test_wrong_bytes_are_refused_without_a_trace(get, tmp_path, mood):
    with pytest.raises(StitchError, match="sends other bytes") as said:
        get(mood)
    assert "stitch_weights import toy.bin" in str(said.value) and "\n" not in str(said.value)
    assert leftovers(tmp_path) == [] and read_lock() == {}


@pytest.mark.parametrize("bad", ["corrupts", "gone", "page", "circles"])
def test_the_second_source(get, server, bad):
    assert get(bad, "good").read_bytes() == BODY
    assert server.asked[-1][0] == "good"


def test_an_address_that_does_not_answer(get, server, tmp_path):
    file = OfficialFile(
        "toy.bin",
        "parser",
        ("http://127.0.0.1:9/toy.bin", server.url("good")),
        "none",
        ("toy",),
        RIGHT,
    )
    lines = []
    assert fetch(file, pause=0.001, attempts=2, say=lines.append).read_bytes() == BODY
    assert any("cannot be reached" in line for line in lines) and "verified" in lines[-1]


@pytest.mark.parametrize(
    "mood, words", [("gone", "404"), ("page", "web page"), ("circles", "30[12]")]
)
def test_what_is_said(get, tmp_path, mood, words):
    with pytest.raises(StitchError, match=words):
        get(mood)
    assert leftovers(tmp_path) == []


def test_redirects_and_busy_servers(get):
    assert get("moves").read_bytes() == BODY
    assert get("busy", name="b.bin").read_bytes() == BODY
    assert get("nolength", name="c.bin").read_bytes() == BODY


def test_a_slow_server_is_waited_for(get):
    assert get("slow", timeout=1).read_bytes() == BODY


def test_a_silent_server_is_left(get, server):
    start = time.monotonic()
    with pytest.raises(StitchError, match="broke off"):
        get("silent", timeout=0.3, attempts=2)
    assert time.monotonic() - start < 5


def test_size_is_checked_before_the_transfer(get, server, tmp_path):
    with pytest.raises(StitchError, match="offers 204800 bytes instead of 99"):
        get("good", size=99)
    assert leftovers(tmp_path) == []


def test_trust_on_first_use(get, tmp_path):
    lines = []
    path = get("good", sha256="", say=lines.append)
    assert "trusted on first use" in lines[-1] and RIGHT[:16] in lines[-1]
    assert read_lock()["toy.bin"] | dict(date="") == dict(
        sha256=RIGHT,
        size=len(BODY),
        source=read_lock()["toy.bin"]["source"],
        published=False,
        date="",
    )
    path.unlink()
    with pytest.raises(StitchError, match="sends other bytes"):
        get("corrupts", sha256="")
    assert leftovers(tmp_path) == []
    path = get("good", sha256="")
    path.write_bytes(b"changed")
    with pytest.raises(StitchError, match="recorded when toy.bin first arrived"):
        get("good", sha256="")


def test_the_first_digits_count(get):
    assert get("good", sha256=RIGHT[:8]).is_file()
    with pytest.raises(StitchError, match="sends other bytes"):
        get("good", sha256="0" * 8, name="b.bin")


def test_offline_refuses_at_once(get, server, monkeypatch):
    with pytest.raises(StitchError, match="network is switched off"):
        get("good", offline=True)
    monkeypatch.setenv("STITCH_OFFLINE", "1")
    with pytest.raises(StitchError, match="STITCH_OFFLINE"):
        get("good")
    assert server.asked == []
    monkeypatch.setenv("STITCH_OFFLINE", "0")
    get("good")


def test_a_disk_that_is_full(get, server, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    with pytest.raises(StitchError, match="needs 204.8 kB.*1.0 kB left"):
        get("good")
    monkeypatch.undo()
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StitchError, match="No space left.*what arrived is kept"):
        get("good", progress=full)
    assert not (tmp_path / "cache" / "files" / "toy.bin").exists()
    assert get("good").read_bytes() == BODY


def test_two_at_once(get, server):
    pytest.importorskip("fcntl")
    failed = []

    def second(done, total, text):
        try:
            get("good")
        except StitchError as error:
            failed.append(str(error))

    assert get("good", progress=second).read_bytes() == BODY
    assert "another program is fetching" in failed[0]


def test_a_proxy_of_the_environment_is_used(server, monkeypatch, tmp_path):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url(""))
    file = OfficialFile(
        "toy.bin", "parser", ("http://weights.invalid/good",), "none", ("toy",), RIGHT
    )
    with pytest.raises(StitchError):
        fetch(file, attempts=1)  # this server is no proxy, but it is the one that was asked
    assert server.asked and server.asked[0][0] == "http:"


@pytest.fixture
def toys(server, monkeypatch, tmp_path):
    "A registry of two files in one bundle."
    files = {
        n: OfficialFile(n, "parser", (server.url(m),), "the toy licence", ("toy",), sha)
        for n, m, sha in [("a.bin", "good", RIGHT), ("b.bin", "cuts", "")]
    }
    monkeypatch.setattr(registry, "REGISTRY", files)
    monkeypatch.setattr(download, "REGISTRY", files)
    monkeypatch.setattr("stitch_nb.commands.weights.REGISTRY", files)
    return files


def weights(capsys, *words):
    capsys.readouterr()
    try:
        stitch_weights(list(words))
    except SystemExit as stop:
        status = stop.code
    else:
        status = 0
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, said.out + said.err


def test_commands(toys, server, capsys, monkeypatch, tmp_path):
    status, said = weights(capsys, "list")
    assert status == 0 and "toy: 2 of 2 files are missing" in said and "trust on first use" in said
    status, said = weights(capsys, "download", "toy")  # nobody can answer
    assert status == 2 and "the toy licence" in said and "--yes" in said and server.asked == []
    monkeypatch.setattr("time.sleep", lambda s: None)
    status, said = weights(capsys, "download", "toy", "--yes")
    assert status == 0 and "trusted on first use" in said and "toy is complete" in said
    assert weights(capsys, "verify")[0] == 0
    original_path(toys["a.bin"]).write_bytes(BODY[:-1] + b"?")
    status, said = weights(capsys, "verify")
    assert status == 1 and "it is not a.bin" in said
    assert weights(capsys, "remove", "a.bin")[0] == 2  # asks, and nobody is there
    assert weights(capsys, "remove", "a.bin", "--yes")[0] == 0
    assert file_state(toys["a.bin"]) == "missing" and file_state(toys["b.bin"]) == "ready"
    (tmp_path / "mine").write_bytes(BODY)
    assert weights(capsys, "import", str(tmp_path / "mine"), "--name", "a.bin")[0] == 0
    assert weights(capsys, "list", "--urls")[0] == 0 and weights(capsys, "download", "toy")[0] == 0
    (tmp_path / "mine").write_bytes(b"?")
    status, said = weights(capsys, "import", str(tmp_path / "mine"), "--name", "a.bin")
    assert (
        status == 2
        and "it is not a.bin" in said
        and original_path(toys["a.bin"]).read_bytes() == BODY
    )
    assert json.loads((tmp_path / "cache" / "lock.json").read_text())["a.bin"]["sha256"] == RIGHT


def test_one_failure_does_not_stop_the_others(toys, server, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda s: None)
    toys["a.bin"] = OfficialFile(
        "a.bin",
        "parser",
        (server.url("gone"),),
        "the toy licence",
        ("toy",),
        RIGHT,
        page="https://example.org/a",
    )
    status, said = weights(capsys, "download", "toy", "--yes")
    assert (
        status == 1
        and "browser from https://example.org/a" in said
        and file_state(toys["b.bin"]) == "ready"
    )


def test_imported_folders_and_zips(toys, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("../../../a.bin", BODY)
        archive.writestr("pretrained/b.bin", BODY)
        archive.writestr("evil.py", "raise SystemExit")
    taken = download.import_files(tmp_path / "all.zip")
    assert [f.name for f, _ in taken] == ["a.bin", "b.bin"] and leftovers(tmp_path) == [
        "a.bin",
        "b.bin",
    ]
    download.remove_files("all")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "a.bin").write_bytes(BODY)
    assert [f.name for f, _ in download.import_files(tmp_path / "folder")] == ["a.bin"]
    with pytest.raises(StitchError, match="no such file"):
        download.import_files(tmp_path / "none")


def test_the_registry_itself():
    for file in registry.REGISTRY.values():
        assert file.licence and file.bundles and file.page
        assert set(file.sha256) <= set("0123456789abcdef") and len(file.sha256) in (0, 8, 10, 64)
        assert (
            file.sha256 == "" or len(file.sha256) == 64 or file.sha256 in file.name
        )  # partly published ones stand in the name
        assert all(u.startswith("https://") for u in file.urls)


@pytest.fixture
def unsigned(server, monkeypatch):
    "A direction that nobody signed, as the only official file: what it holds is all that tells."
    file = OfficialFile(
        "smile.npy", "directions", (server.url("good"),), "none", ("toy",), kind="directions"
    )
    for module in (registry, download):
        monkeypatch.setattr(module, "REGISTRY", {file.name: file})
    return file


def a_direction(path):
    np.save(path, np.random.default_rng(0).normal(size=(1, 18, 512)).astype(np.float32))
    return path


def test_refused_weights_do_not_stay(unsigned, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "it ran"), "w"))

    write_pickle(tmp_path / "mine.npy", Trap())
    with pytest.raises(StitchError, match=r"mine\.npy") as refused:
        download.import_files(tmp_path / "mine.npy", "smile.npy")
    assert "\n" not in str(refused.value) and ".part" not in str(refused.value)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "mine.npy", "smile.npy")
    with pytest.raises(StitchError, match=r"smile\.npy in all\.zip"):
        download.import_files(tmp_path / "all.zip")
    with pytest.raises(StitchError, match="sends what cannot be used"):  # BODY is no direction
        fetch(unsigned, pause=0.001, attempts=2)
    assert leftovers(tmp_path) == [] and read_lock() == {} and download.verify_files() == []
    download.import_files(a_direction(tmp_path / "good.npy"), "smile.npy")  # nothing is in its way
    assert download.verify_files() == [("smile.npy", "ok")]
    assert not (tmp_path / "it ran").exists()


def test_what_was_put_there_by_hand_is_read_too(unsigned):
    path = original_path(unsigned)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert download.verify_files()[0][1] != "ok"
    with pytest.raises(StitchError, match="smile.npy"):
        fetch(unsigned)
    assert read_lock() == {}


def test_zips_that_swell(unsigned, tmp_path, monkeypatch):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("smile.npy", bytes(64 << 20))
    monkeypatch.setattr(download, "place_file", None)  # refused before a byte is unpacked
    with pytest.raises(StitchError, match=r"smile\.npy in all\.zip would grow from .* to 67\.1 MB"):
        download.import_files(path)
    monkeypatch.undo()


def test_damaged_zips(unsigned, tmp_path):
    good = a_direction(tmp_path / "good.npy")
    path, rng, outcomes = tmp_path / "all.zip", random.Random(0), set()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(good, "smile.npy")
    whole = path.read_bytes()
    tail = whole.rindex(b"PK\x01\x02")
    for n in range(200):
        data = bytearray(whole)
        where = rng.randrange(tail, len(data)) if n % 2 else rng.randrange(len(data))
        data[where] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            download.import_files(path)
            outcomes.add(original_path(unsigned).read_bytes() == good.read_bytes())
        except StitchError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
        download.remove_files("smile.npy")
    assert outcomes == {True, "refused"} and leftovers(tmp_path) == []


def test_a_stream_without_an_end(get, server, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "MOST", 100_000)
    monkeypatch.setattr(download, "MOST", 100_000)
    with pytest.raises(StitchError, match="offers 204.8 kB, more than 100.0 kB"):
        get("good", sha256="")
    with pytest.raises(StitchError, match="sends more than 100.0 kB"):
        get("nolength", sha256="")
    part = tmp_path / "cache" / "files" / ".toy.bin.part"
    assert not part.exists() or part.stat().st_size <= 100_000


def test_one_holder_at_a_time(tmp_path):
    held, done, wrong = tmp_path / "held", [], []

    def often():
        end = time.monotonic() + 1.5
        while time.monotonic() < end and not wrong:
            try:
                with registry.only_one(tmp_path / "x"):
                    held.mkdir()  # fails if somebody else is inside
                    held.rmdir()
                    done.append(1)
            except StitchError:
                pass
            except OSError as error:
                wrong.append(error)

    threads = [threading.Thread(target=often) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and done


def test_a_lock_that_lost_its_file_is_not_believed(tmp_path, monkeypatch):
    "The holder removes the file between another's opening and locking of it."
    place, busy = tmp_path / "x", tmp_path / "x.busy"
    real, tries = registry.FileLock.acquire, []

    def acquire(self, *args, **kwargs):
        got = real(self, *args, **kwargs)
        tries.append(1)
        if len(tries) == 1:
            busy.unlink()
        return got

    monkeypatch.setattr(registry.FileLock, "acquire", acquire)
    with registry.only_one(place):
        assert len(tries) == 2 and busy.exists()
        with pytest.raises(StitchError, match="another program is working on it"):
            with registry.only_one(place):
                pass
    assert not busy.exists()


def test_a_file_on_its_way_is_not_removed(get, toys, tmp_path):
    failed = []

    def meanwhile(done, total, text):
        try:
            download.remove_files("a.bin")
        except StitchError as error:
            failed.append(str(error))

    assert get("good", name="a.bin", progress=meanwhile).read_bytes() == BODY
    assert "another program is fetching a.bin" in failed[0]


def test_records_of_two_at_once_are_both_kept(server):
    names = [f"{i}.bin" for i in range(8)]
    threads = [
        threading.Thread(target=registry.write_lock, args=(n, dict(sha256=RIGHT))) for n in names
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(read_lock()) == names


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch, tmp_path):
    for name in ("STITCH_CACHE", "STITCH_NB_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert registry.cache_folder().name == "stitch_nb"
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert registry.cache_folder() == tmp_path / "stitch_nb"
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "mine"))
    from stitch_nb.figures.state import default_folder

    assert default_folder() == tmp_path / "mine" / "figures"
