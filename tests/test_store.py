"The run folder: records, locks, keys, tidying; what is damaged, linked elsewhere or in use."

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stitch_nb.pipeline as pipeline
import stitch_nb.run.measure as measure
import stitch_nb.run.settings as settings
import stitch_nb.run.stages as stages
import tiny
from stitch_nb.core import (
    StitchError,
    atomic_path,
    clone_network,
    load_tensors,
    sample,
    save_tensors,
)
from stitch_nb.edit import apply_edit
from stitch_nb.encode import SharedConfig
from stitch_nb.faces import FaceTrack
from stitch_nb.models import load_models
from stitch_nb.pti import PTIConfig
from stitch_nb.run.people import choose_people, edits_by_person
from stitch_nb.run.preview import write_preview
from stitch_nb.run.settings import RunConfig, as_edits
from stitch_nb.run.stages import quads_of
from stitch_nb.run.store import (
    OUTPUTS,
    Keep,
    Stage,
    WantedStage,
    as_json,
    finished,
    hold,
    in_use,
    make_way,
    network_key,
    place,
    read_sealed,
    shelf_name,
    stages_in,
    sweep,
    tidy,
    try_lock,
    write_sealed,
)
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip


def number_stage(folder, n, name="number", **kwargs):
    def make(path, tick, n):
        with atomic_path(path) as part:
            part.write_text(str(n) * 1000)
        return dict(n=n)

    return Keep(Path(folder))(WantedStage(name, ".txt", make, (n,), **kwargs))


def age(stage, seconds):
    "Make a stage look as if it was last used so long ago."
    then = time.time() - seconds
    for path in (stage.path, stage.path.with_suffix(".json")):
        os.utime(path, (then, then))


def test_numbers_keep_their_digits():
    small = as_json(dict(leak=4e-7, rate=np.float32(3e-7), big=123456.789012, none=np.nan))
    assert small == dict(leak=4e-7, rate=pytest.approx(3e-7, rel=1e-6), big=123456.79, none=None)
    assert as_json([(1, Path("a")), np.arange(2)]) == [[1, "a"], [0, 1]]


@pytest.mark.parametrize(
    "text", ["", "{}", "null", "[]", "3", '{"a": 1}', "\x00\xff", "[" * 100_000, "{" * 10]
)
def test_a_record_that_is_none(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_bytes(text.encode("latin-1"))
    assert read_sealed(path) is None
    assert finished(tmp_path, "0" * 16) is None


def test_a_changed_record_is_noticed(tmp_path):
    path = write_sealed(tmp_path / "note.json", dict(seconds=12.5, edits=["smile=2"]))
    text = path.read_text()
    for old, new in (("12.5", "13.5"), ("smile", "smilf"), ("seconds", "second5")):
        path.write_text(text.replace(old, new))
        assert read_sealed(path) is None
    path.write_text(text)
    assert read_sealed(path) == dict(seconds=12.5, edits=["smile=2"])


def test_a_stage_of_another_version_is_another_stage(tmp_path):
    first, again = number_stage(tmp_path, 1), number_stage(tmp_path, 1)
    newer = number_stage(tmp_path, 1, version=2)
    assert (first.reused, again.reused, newer.reused) == (False, True, False)
    assert newer.path != first.path


def test_tidy_removes_whole_stages_oldest_first(tmp_path):
    made = [number_stage(tmp_path, n) for n in range(5)]
    for n, stage in enumerate(made):
        age(stage, 1000 - n)
    used = number_stage(tmp_path, 0)  # now the one that was used last
    size = sum(p.stat().st_size for p in (used.path, used.path.with_suffix(".json")))
    gone = tidy(tmp_path, limit=3.5 * size, keep=[f"number-{made[1].key}"])
    assert gone == [f"number-{made[n].key}" for n in (2, 3)]
    for n, stage in enumerate(made):
        there = [stage.path.exists(), stage.path.with_suffix(".json").exists()]
        assert there == 2 * [n not in (2, 3)]  # never one without the other
    assert [number_stage(tmp_path, n).reused for n in range(5)] == [True, True, False, False, True]


def test_tidy_leaves_what_is_in_use(tmp_path):
    old = number_stage(tmp_path, 1)
    age(old, 1000)
    with in_use(tmp_path):
        assert number_stage(tmp_path, 1).reused
        assert tidy(tmp_path, limit=0) == [] and old.path.exists()
    age(old, 1000)
    with try_lock(tmp_path, f"number-{old.key}"):  # somebody is making it
        assert tidy(tmp_path, limit=0) == []
    assert tidy(tmp_path, limit=0) == [f"number-{old.key}"] and not stages_in(tmp_path)


def test_a_dead_user_does_not_count(tmp_path):
    old = number_stage(tmp_path, 1)
    code = "import os, sys; from stitch_nb.run.store import in_use\n"
    code += "with in_use(sys.argv[1]): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert list((tmp_path / ".run").glob("use-*.json"))
    number_stage(tmp_path, 1)
    assert tidy(tmp_path, limit=0) == [f"number-{old.key}"]
    assert not list((tmp_path / ".run").glob("use-*"))


def test_sub_folders_are_tidied_child_by_child(tmp_path):
    for n in range(3):
        cell = tmp_path / "cells" / f"{n}.npz"
        cell.parent.mkdir(exist_ok=True)
        cell.write_bytes(bytes(1000))
        os.utime(cell, (n, n))
    whole = tmp_path / "arms" / "abc"
    whole.mkdir(parents=True)
    (whole / "result.mp4").write_bytes(bytes(1000))
    assert tidy(tmp_path, limit=2500) == ["cells.0.npz", "cells.1.npz"]
    with hold(whole, "a run"):
        assert tidy(tmp_path, limit=0) == ["cells.2.npz"]
    assert tidy(tmp_path, limit=0) == ["arms.abc"] and not whole.exists()


def test_leftovers_are_swept_but_for_those_in_use(tmp_path):
    key = number_stage(tmp_path, 1).key
    parts = [tmp_path / f".number-{k}.deadbeef.part.txt" for k in (key, "0" * 16)]
    parts.append(tmp_path / f".number-{key}.resume.0badcafe.part.safetensors")
    for part in parts:
        part.write_text("half")
    with try_lock(tmp_path, f"number-{key}"):
        sweep(tmp_path)
        assert [p.exists() for p in parts] == [True, False, True]
    sweep(tmp_path)
    assert not any(p.exists() for p in parts)


def test_a_stage_waits_for_the_one_that_makes_it(tmp_path):
    code = "import sys, time; sys.path.insert(0, sys.argv[2]); import test_store as t\n"
    code += "from pathlib import Path\n"
    code += "def make(path, tick, n):\n    print('begun', flush=True); time.sleep(1.5)\n"
    code += "    path.write_text('of the first')\n"
    code += "t.Keep(Path(sys.argv[1]))(t.WantedStage('slow', '.txt', make, (1,)))"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "begun\n"
    said = []

    class Progress:
        def __enter__(self):
            return lambda done, total, text="": said.append(text)

        def __exit__(self, *args):
            return False

    def make(path, tick, n):
        raise AssertionError("it was made twice")

    second = Keep(tmp_path, lambda name: Progress())(WantedStage("slow", ".txt", make, (1,)))
    assert first.wait() == 0 and second.reused and second.path.read_text() == "of the first"
    assert "another run is at it" in said


def test_a_folder_in_use_says_by_whom(tmp_path):
    with hold(tmp_path, "smile=2"):
        with pytest.raises(StitchError) as error:
            with hold(tmp_path, "age=1", wait=0.1):
                pass
    line = str(error.value)
    assert f"process {os.getpid()} on" in line and "(smile=2)" in line and "\n" not in line
    with hold(tmp_path, "age=1", wait=0.1):
        pass


@pytest.mark.parametrize("content", ["", "null", "no record", '{"process": "\\n\\n"}'])
def test_the_note_of_who_is_there_may_be_damaged(tmp_path, content):
    with hold(tmp_path, "smile=2"):
        (tmp_path / ".run" / "by.json").write_text(content)
        with pytest.raises(StitchError, match="is in use by process"):
            with hold(tmp_path, "age=1", wait=0.1):
                pass


def test_old_records_lead_nowhere(tmp_path):
    out, key = tmp_path / "a" / "run", "../../../../x"
    out.mkdir(parents=True)
    for name in OUTPUTS[:-1]:
        (out / name).write_text(name)
    write_sealed(out / "run.json", dict(edits=["../../../stolen", "/etc/x\x00"], key=key))
    make_way(out, "1" * 16)
    shelves = list((out / "earlier").iterdir())
    assert len(shelves) == 1 and sorted(p.name for p in shelves[0].iterdir()) == sorted(OUTPUTS)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["run"]
    for edits in (None, 3, {}, ["..", "."], [[1]], ["con: <>|"]):
        name = shelf_name(dict(edits=edits, key=None))
        assert name and Path(name).name == name and name not in ("..", ".")


def test_outputs_are_put_in_place_of_anything(tmp_path):
    made, out = tmp_path / "new", tmp_path / "run"
    made.mkdir()
    out.mkdir()
    for name in OUTPUTS[:-1]:
        (made / name).write_text("new")
    other = tmp_path / "other.txt"
    other.write_text("of somebody else")
    (out / "result.mp4").mkdir()
    (out / "strip.png").symlink_to(other)
    write_sealed(out / "run.json", dict(key="1" * 16))
    make_way(out, "1" * 16)
    place(made, out)
    assert all((out / name).read_text() == "new" for name in OUTPUTS[:-1])
    assert not (out / "strip.png").is_symlink() and other.read_text() == "of somebody else"


def test_what_is_wrong_with_which_file(tmp_path):
    with pytest.raises(StitchError) as error:
        with atomic_path(tmp_path / "copy.txt") as part:
            part.write_bytes((tmp_path / "absent.txt").read_bytes())
    assert str(error.value).startswith(str(tmp_path / "absent.txt"))
    assert "cannot write" not in str(error.value)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StitchError, match="cannot write .*; choose a folder"):
        with atomic_path(tmp_path / "file" / "copy.txt") as part:
            part.write_text("x")
    (tmp_path / "taken").mkdir()
    with pytest.raises(StitchError, match="cannot write .*taken"):
        with atomic_path(tmp_path / "taken") as part:
            part.write_text("x")


def test_changed_tensors_are_noticed(tmp_path):
    path = save_tensors(tmp_path / "a.safetensors", dict(x=torch.arange(9.0)), dict(of="a clip"))
    content = path.read_bytes()
    assert torch.equal(load_tensors(path, checked=True)["x"], torch.arange(9.0))
    for at in (len(content) - 3, content.index(b"a clip"), content.index(b"digest") + 2):
        bad = bytearray(content)
        bad[at] ^= 1
        path.write_bytes(bad)
        with pytest.raises(StitchError):
            load_tensors(path, checked=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return load_models(tiny.tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


def test_a_network_is_its_tensors(models):
    E = models.encoder
    other = tiny.tiny_encoder(models.generator)
    assert network_key(E) != network_key(other)
    other.load_state_dict(E.state_dict())
    assert network_key(E) == network_key(other)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0].add_(1e-6)
    assert network_key(E) != network_key(other)


def test_keys_hash_what_is_used(tmp_path, monkeypatch, models):
    "Another encoder under the same bundle's name, and another dtype under the name 'auto'."
    keep, config = Keep(tmp_path), RunConfig()
    zeros = lambda path, tick: np.save(path, np.zeros((2, 32, 32, 3), np.uint8))
    crops = keep(WantedStage("crops", ".npy", zeros, ()))
    other = replace(models, encoder=tiny.tiny_encoder(models.generator))
    pivots = [
        keep(stages.pivots_step(m, config, crops, models.perceptual))
        for m in (models, other, models)
    ]
    assert [p.reused for p in pivots] == [False, False, True]
    assert pivots[0].key != pivots[1].key

    def no_tuning(G, *args, checkpoint, **kwargs):
        return G, dict(loss=np.zeros(1))

    monkeypatch.setattr(stages, "tune_generator", no_tuning)
    seen = []
    for dtype in ("float32", "bfloat16", "float32"):
        monkeypatch.setattr(settings, "tuning_dtype", lambda n, d: dtype if n == "auto" else n)
        here = config.on(models.device)
        done = keep(stages.generator_step(models, here, crops, pivots[0], models.perceptual))
        seen.append((done.reused, done.note["dtype"]))
    assert seen == [(False, "float32"), (False, "bfloat16"), (True, "float32")]


class Watching(torch.nn.Linear):
    "Stands for one of MediaPipe's networks."

    name = "mediapipe"

    def __init__(self):
        super().__init__(1, 1)


@pytest.fixture(scope="module")
def everybody():
    "A bundle with all networks, and a clip."
    return load_models("people"), read_clip(sample("talk"), frames=slice(0, 2))


def moved(net):
    "The same network but for one number."
    other = clone_network(net, trainable=False)
    with torch.no_grad():
        next(p for p in other.parameters() if p.numel()).view(-1)[0].add_(1e-3)
    return other


def key_of(stage, models, clip, config=None, edits=("smile=2",), **parts):
    "A stage's key, without computing it."
    track = FaceTrack(np.ones((2, 68, 2)), np.ones(2, bool))
    config, P = (config or RunConfig()).on(models.device), models.perceptual
    known = dict.fromkeys(("crops", "masks", "pivots", "generator", "start"), "usual")
    known |= dict(start="", recon="", edits="") | parts
    part = {n: Stage(n, k, Path(k), {}, True) if k else None for n, k in known.items()}
    crops, pivots, theta = part["crops"], part["pivots"], part["generator"]
    pivot = models.generator.w_avg.detach().cpu().expand(2, models.generator.num_ws, -1)
    w_edit = apply_edit(pivot, as_edits(list(edits), models), models.directions)
    seen = models, config, theta, w_edit, part["edits"], crops, part["masks"], None
    drawn = models, config, crops, pivots, theta, part["recon"]
    step = dict(
        faces=lambda: stages.faces_step(clip, stages.backend_of(models, config)),
        masks=lambda: stages.masks_step(models, config, track, crops, np.ones(2)),
        pivots=lambda: stages.pivots_step(models, config, crops, P),
        generator=lambda: stages.generator_step(models, config, crops, pivots, P),
        scores=lambda: measure.scores_step(*drawn, P, 40),
        stitched=lambda: stages.stitched_step(*seen, part["start"]),
        start=lambda: stages.start_step(*seen),
    )[stage]()
    return step.key


@pytest.mark.parametrize("pivots", ["encoder", "shared"])
def test_first_look(everybody, pivots, tmp_path):
    "The source beside its edit, by few and large steps of the offset where pivots share one."
    (models, clip), config, seen = everybody, RunConfig(pivots=pivots), []
    keep, edits = Keep(tmp_path / "stages"), edits_by_person("smile=2", models, config.person)
    (person,), _ = choose_people(keep, clip, models, config, edits)
    person = replace(person, quads=quads_of(models, config, person.track))
    write_preview(tmp_path, seen.append, clip, keep, person)
    assert seen == [tmp_path / "preview.png"]
    picture = np.asarray(Image.open(seen[0]).convert("RGB")).astype(float)
    height, width = clip[0].shape[:2]
    source, edited = picture[-height:, :width], picture[-height:, -width:]
    assert 2 < np.abs(source - edited).mean() < 40


NETWORKS = [
    *(("faces", role) for role in ("detector", "landmarks")),
    *(("masks", "parser"), ("pivots", "encoder"), ("generator", "generator")),
    *(("generator", "perceptual"), ("scores", "generator"), ("scores", "perceptual")),
]


@pytest.mark.parametrize("stage, role", NETWORKS)
def test_a_stage_of_another_network_is_another_stage(everybody, stage, role):
    models, clip = everybody
    other = replace(models, **{role: moved(getattr(models, role))})
    assert key_of(stage, models, clip) != key_of(stage, other, clip)
    assert key_of(stage, models, clip) == key_of(stage, models, clip)


def test_mediapipes_networks_are_in_the_key(everybody):
    models = replace(everybody[0], detector=Watching(), landmarks=Watching())
    config = RunConfig(landmarks="mediapipe")
    keys = {
        key_of("faces", m, everybody[1], config)
        for m in (
            models,
            replace(models, detector=moved(models.detector)),
            replace(models, landmarks=moved(models.landmarks)),
        )
    }
    assert len(keys) == 3


IN_FULL = dict(
    pti=PTIConfig(dtype="float32"),
    stitch=StitchConfig(dtype="float32"),
    shared=SharedConfig(dtype="float32"),
)
TUNED = [("generator", "auto"), ("stitched", "auto"), ("pivots", "shared"), ("pivots", "optimise")]


@pytest.mark.parametrize("stage, pivots", TUNED)
def test_another_kind_of_device_is_another_stage(everybody, stage, pivots):
    "Rounding grows over thousands of updates; another card of the same kind counts as the same."
    models, clip = everybody
    places = ("cpu", "mps", "cuda:0", "cuda:1")
    config = RunConfig(pivots=pivots, **IN_FULL)
    keys = [
        key_of(stage, replace(models, device=torch.device(d)), clip, config)
        for d in places
    ]
    assert len(set(keys)) == 3 and keys[2] == keys[3]


@pytest.mark.parametrize("stage, pivots", TUNED[:3])
def test_auto_is_what_it_comes_to(monkeypatch, everybody, stage, pivots):
    keys = {}
    for here in ("float32", "bfloat16"):
        monkeypatch.setattr(settings, "tuning_dtype", lambda n, d: here if n == "auto" else n)
        keys[here] = key_of(stage, *everybody, RunConfig(pivots=pivots))
        given = dict(pti=PTIConfig(dtype=here), stitch=StitchConfig(dtype=here))
        given = RunConfig(pivots=pivots, shared=SharedConfig(dtype=here), **given)
        assert key_of(stage, *everybody, given) == keys[here]
    assert keys["float32"] != keys["bfloat16"]


MASKS = dict(dilation=3), dict(variant="code"), dict(variant="paper")


def test_what_stitching_depends_on(everybody):
    models, clip = everybody
    key = partial(key_of, "stitched")
    other = {**models.directions, "smile": models.directions["smile"] + 1e-4}
    keys = [
        key(models, clip),
        *(key(models, clip, RunConfig(**other)) for other in MASKS),
        key(models, clip, edits=("smile=3",)),
        key(models, clip, edits=("smile=2", "age=1")),
        key(replace(models, directions=other), clip),
        key(models, clip, generator="another"),
        key(models, clip, generator=""),
        key(replace(models, generator=moved(models.generator)), clip, generator=""),
        key(models, clip, RunConfig(stitch=StitchConfig(steps=7))),
        key(models, clip, RunConfig(stitching=False)),
        key(models, clip, start="a common start"),
    ]
    assert len(set(keys)) == len(keys)


def test_scores_on_other_frames_are_other_scores(everybody):
    keys = {key_of("scores", *everybody, RunConfig(measure=m)) for m in ("fast", "full")}
    assert len(keys) == 2


def test_stages_compute_where_the_bundle_is(monkeypatch, tmp_path, everybody):
    "Whose memory is watched."
    there, seen = replace(everybody[0], device=torch.device("cuda:1")), []

    def choose(keep, *others):
        seen.append(keep.device)
        raise StitchError("enough")

    monkeypatch.setattr(pipeline, "choose_people", choose)
    with pytest.raises(StitchError, match="enough"):
        pipeline.edit_clip(everybody[1], "smile=2", tmp_path / "run", there)
    assert seen == [there.device]


def test_old_folders_are_not_new_ones(tmp_path):
    "A stage note of an earlier version has no seal and no hash: its data are made again."
    first = number_stage(tmp_path, 1)
    first.path.with_suffix(".json").write_text(json.dumps(dict(seconds=1.0, n=1)))
    assert not number_stage(tmp_path, 1).reused
