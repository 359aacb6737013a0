"Figure 3: its cells, its cache, how it is called off, its controls without a browser, its files."

import json
import re
import tempfile
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from stitch_nb import models as stitch_models
from stitch_nb.figures import figure3, state as states
from stitch_nb.core import StitchError
from stitch_nb.encode import Encoder
from stitch_nb.models import load_models, save_bundle
from stitch_nb.nets.mobile import MobileGenerator
from stitch_nb.nets.small import IdentityNet, Trunk
from stitch_nb.run import stages
from stitch_nb.commands import apps
from stitch_nb.commands.figure import stitch_figure
from stitch_nb.figures.app import Figure3App
from stitch_nb.figures.figure3 import figure_3, figure_3_video, grid_sheet, grids
from stitch_nb.figures.sheet import lay_out_grid, paint, paint_pdf
from stitch_nb.figures.state import (
    COLUMNS,
    PREVIEW,
    Cache,
    Stopped,
    open_clip,
    prepare,
    settings_for,
    zoom_boxes,
)
from stitch_nb.paste import paste_mask
from stitch_nb.pipeline import RunConfig
from stitch_nb.pti import PTIConfig
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip

QUICK = RunConfig(
    mask="hull",
    pti=PTIConfig(passes=2, dtype="float32"),
    stitch=StitchConfig(steps=PREVIEW + 4, dtype="float32"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny.tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def models(bundle):
    return load_models(bundle)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny.face_clip(tmp_path_factory.mktemp("clip") / "disc.mp4", T=7)


@pytest.fixture(autouse=True)
def discs(monkeypatch):
    tiny.use_disc(monkeypatch)


@pytest.fixture(scope="module")
def prepared(clip, models, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_disc(patch)
        return prepare(clip, models, QUICK, tmp_path_factory.mktemp("stages"))


@pytest.fixture
def state(prepared):
    return replace(prepared, cache=Cache())  # nothing remembered from another test


@pytest.fixture
def stitched(monkeypatch):
    "Every stitching that is done: (steps, norm, lambda_m)."
    done, real = [], states.stitch_frame

    def counted(G, w, crop, edit, masks, config, **kwargs):
        done.append((config.steps, config.norm, config.lambda_m))
        return real(G, w, crop, edit, masks, config, **kwargs)

    monkeypatch.setattr(states, "stitch_frame", counted)
    return done


def test_cells(state, clip):
    looks = list(grids(state, settings_for(state, (1, 3, 5), "smile", 2.0)))
    assert [g.quality for g in looks] == ["blended", "preview", "full"]
    assert looks[0].pictures["stitched"] is None and list(looks[0].pictures) == list(COLUMNS)
    grid, source = looks[-1], list(read_clip(clip).frames())
    masks = states.frame_masks(state, grid.settings)
    for row, t in enumerate((1, 3, 5)):
        cells = {c: grid.pictures[c][row] for c in COLUMNS}
        assert all(p.shape == (48, 64, 3) and p.dtype == np.uint8 for p in cells.values())
        assert (cells["source"] == source[t]).all()
        outside = paste_mask(state.quads[t], masks[t].full, 48, 64) == 0
        for c in ("blended", "stitched"):
            assert (cells[c] == source[t])[outside].all()  # pasted by the mask
        assert (cells["inversion"] != source[t])[outside].any()  # pasted as a square
        for a, b in zip(COLUMNS, list(COLUMNS)[1:]):
            assert (cells[a] != cells[b]).any(), (a, b)
    off = {q.quality: q.measured["stitched"]["border"] for q in looks[1:]} | dict(
        blended=grid.measured["blended"]["border"]
    )
    assert off["full"] < off["preview"] < off["blended"]  # what stitching is for
    assert grid.measured["source"] == dict(seam=0.0, border=0.0, psnr=np.inf)
    assert grid.measured["pti"]["psnr"] > grid.measured["inversion"]["psnr"]


def test_cache(state, stitched):
    figure_3(state, (1, 3, 5))
    assert stitched.count((PREVIEW, "l1", 0.1)) == stitched.count((PREVIEW + 4, "l1", 0.1)) == 3
    misses = state.cache.misses
    again = list(grids(state, settings_for(state, (1, 3, 5))))
    assert (
        [g.quality for g in again] == ["full"]
        and len(stitched) == 6
        and state.cache.misses == misses
    )
    figure_3(state, (1, 3, 6))
    assert len(stitched) == 8  # one new frame, looked at quickly and then in full
    figure_3(state, (1, 3, 5), strength=1.0)
    assert len(stitched) == 14


def test_kept_on_disk(prepared, stitched, tmp_path):
    figure_3(replace(prepared, cache=Cache(tmp_path)), (2,))
    assert len(stitched) == 2
    grid = figure_3(replace(prepared, cache=Cache(tmp_path)), (2,))
    assert len(stitched) == 2 and grid.quality == "full"


def test_prepared_once(prepared, models, clip, monkeypatch):
    again = prepare(clip, models, QUICK, prepared.folder)
    assert all(s.reused for s in again.stages.values()) and (again.key, again.tuned) == (
        prepared.key,
        prepared.tuned,
    )
    other = prepare(clip, models, QUICK, prepared.folder, every=3)
    assert (
        not other.stages["generator"].reused
        and other.key == prepared.key
        and other.tuned != prepared.tuned
    )
    early = prepare(clip, models, QUICK, prepared.folder, tune=False)
    assert (
        early.generator is None
        and figure3.grid_of(early, settings_for(early), "inverted").pictures["pti"] is None
    )
    with pytest.raises(StitchError, match="no tuned generator"):
        next(grids(early, settings_for(early)))


def test_called_off(state, stitched):
    halt, seen, updates = threading.Event(), [], []

    def tick(done, total, text):
        updates.append(done)
        if done == 5:
            halt.set()

    with pytest.raises(Stopped):
        for grid in grids(state, settings_for(state, (1, 3, 5)), tick, halt):
            seen.append(grid.quality)
    assert (
        seen == ["blended"] and max(updates) < 5 + 2 * torch.get_num_threads() + 2
    )  # each of the workers stops at its next update
    assert figure_3(state, (1, 3, 5)).quality == "full"


def test_called_off_while_tuning(models, clip, tmp_path):
    halt = threading.Event()

    def progress(stage):
        if stage == "generator":
            halt.set()
        return nullcontext(lambda *_: None)

    with pytest.raises(Stopped):
        prepare(clip, models, QUICK, tmp_path, progress=progress, halt=halt)
    assert not list(tmp_path.glob("generator-*.safetensors")) and list(
        tmp_path.glob("pivots-*.npz")
    )


def test_sheet(state, tmp_path):
    settings = settings_for(state, (1, 3, 5))
    boxes = zoom_boxes(state, settings, ("hair", "neck", "mouth"))
    assert all(
        0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 48 for b in boxes.values() for x0, y0, x1, y1 in b
    )
    assert all(
        h[1] + h[3] < n[1] + n[3] for h, n in zip(boxes["hair"], boxes["neck"])
    )  # hair is above the neck
    assert (
        zoom_boxes(state, settings_for(state, (1, 3, 5), strength=-3.0), ("hair",))["hair"]
        == boxes["hair"]
    )  # stays while the slider moves
    grid = next(grids(state, settings))
    sheet, plain = grid_sheet(grid, boxes), grid_sheet(grid)
    assert paint(sheet).shape == (sheet.height, sheet.width, 3) and sheet.height > plain.height
    assert len(plain.pictures) == 15 and len(sheet.pictures) == 15 * 4
    for p, x, y, w, h in sheet.pictures:
        assert 0 <= x and x + w <= sheet.width and 0 <= y and y + h <= sheet.height
    written = [paint_pdf(sheet, tmp_path / name).read_bytes() for name in ("a.pdf", "b.pdf")]
    assert written[0] == written[1] and b"/FontFile2" in written[0] and b"/Image" in written[0]
    svg = paint_pdf(plain, tmp_path / "a.svg").read_text()
    assert all(re.search(f">{re.escape(title)}<", svg) for title in [*COLUMNS.values(), "frame 3"])
    with pytest.raises(StitchError, match="neither"):
        paint_pdf(sheet, tmp_path / "a.gif")
    with pytest.raises(StitchError, match="each needs as many"):
        lay_out_grid(dict(a=[np.zeros((4, 4, 3), np.uint8)], b=[]))


def test_video(state, stitched, tmp_path):
    path = figure_3_video(
        state, settings_for(state, (1,)), tmp_path / "a.mp4", slice(1, 4), "preview", height=40
    )
    video = read_clip(path)
    assert (
        len(video) == 3
        and video.fps == state.clip.fps
        and video.width // 5 in range(50, 58)
        and video.height % 2 == 0
    )
    assert stitched == [(PREVIEW, "l1", 0.1)] * 3
    row = video[1][-40:].astype(int)
    assert np.abs(row[:, :50] - row[:, 53:103]).mean() > 1


@pytest.fixture
def app(clip, models, prepared):
    app = Figure3App(str(clip), models=models, config=QUICK, folder=prepared.folder)
    yield app
    app.close()


def shown(app):
    assert app.wait(120), app.status.value
    return app.image.value


def test_controls(app, stitched):
    first = shown(app)
    assert (
        app.error is None
        and app.grid.quality == "full"
        and 'alt="Figure 3 on disc.mp4' in first
        and "ready" in app.status.value
    )
    assert [s.max for s in app.frames] == [6] * 3 and app.part.max == 7
    seen = {first}
    moves = dict(
        strength=-1.5, edit="age", norm="l2", lambda_m=1.0, dilation=3, zoom="off", passes=1
    )
    for name, value in moves.items():
        getattr(app, name).value = value
        picture = shown(app)
        assert picture not in seen, name
        seen.add(picture)
    app.frames[0].value = 0
    assert shown(app) not in seen and app.grid.numbers_of[0] == 0
    assert str(app.grid.settings.edits[0]) == "age=-1.5" and stitched[-1][1:] == ("l2", 1.0)
    count = len(stitched)
    app.zoom.value = "mouth"
    shown(app)
    assert len(stitched) == count  # drawn again, not computed again
    app.part.value = (0, 2)
    app.video_button.click()
    shown(app)
    assert "data:video/mp4;base64," in app.video.value and "aria-label" in app.video.value
    assert '<th scope="row">seam' in app.table.value


def test_latest_wins(app, stitched):
    shown(app)
    before = len(stitched)
    for strength in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, -3.0):
        app.strength.value = strength
    shown(app)
    assert str(app.grid.settings.edits[0]) == "smile=-3" and len(stitched) - before < 7 * 6


def test_cancel(app, monkeypatch):
    shown(app)
    begun, real = threading.Event(), states.stitch_frame

    def told(*args, **kwargs):
        begun.set()
        return real(*args, **kwargs)

    monkeypatch.setattr(states, "stitch_frame", told)
    app.config = replace(app.config, stitch=replace(QUICK.stitch, steps=100000))
    app.strength.value = 1.25
    assert begun.wait(60)
    app.cancel.click()
    assert (
        app.wait(60)
        and app.error is None
        and "cancelled" in app.status.value
        and app.cancel.disabled
    )
    app.config = QUICK
    app.strength.value = 0.75
    shown(app)
    assert app.grid.quality == "full"


def test_says_what_is_wrong(app):
    good = shown(app)
    app.path.value = "/no/such/film.mp4"
    shown(app)
    assert (
        "no such file" in app.error
        and 'role="alert"' in app.status.value
        and app.image.value == good
    )
    app.strength.value = 1.0
    shown(app)
    assert "no such file" in app.error


def test_classes(app):
    "Names that tests in a browser and style sheets rely on."

    def walk(widget):
        yield from widget._dom_classes
        for child in getattr(widget, "children", ()):
            yield from walk(child)

    expected = {
        f"stitch-{n}"
        for n in "figure3 clip path upload film frame-1 frame-2 frame-3 edit strength passes dilation norm lambda zoom progress cancel status picture numbers part video-button video".split()
    }
    assert expected <= set(walk(app.root))
    data = app._repr_mimebundle_()
    assert (
        "application/vnd.jupyter.widget-view+json" in data and "run this cell" in data["text/plain"]
    )
    shown(app)


CHANGES = dict(
    variant=dict(variant="code"),
    rim=dict(variant="paper"),
    feather=dict(feather=0),
    resample=dict(resample="bicubic"),
)


@pytest.mark.parametrize("name", CHANGES)
def test_no_stale_cell(prepared, models, clip, name):
    "One cache, two settings of the mask: each figure is what a new process would draw."
    config = replace(QUICK, **CHANGES[name])
    shared, fresh = (
        replace(prepare(clip, models, config, prepared.folder), cache=cache)
        for cache in (Cache(), Cache())
    )
    before = replace(prepared, cache=shared.cache)
    asked = settings_for(before, (2,))
    grids_of = lambda s: [figure3.grid_of(s, asked, "blended"), zoom_boxes(s, asked)]
    grids_of(before)
    (kept, boxes), (right, right_boxes) = grids_of(shared), grids_of(fresh)
    for column in ("inversion", "pti", "blended"):
        assert (kept.pictures[column][0] == right.pictures[column][0]).all(), column
        assert kept.measured[column] == right.measured[column], column
    assert boxes == right_boxes


def test_another_generator_is_another_inversion(prepared, models):
    "The bundle's networks count, not its name."
    other = replace(models, generator=stages.clone_network(models.generator))
    with torch.no_grad():
        for p in other.generator.synthesis.parameters():
            p.mul_(1.05)
    shared = Cache()
    pictures = []
    for bundle in (models, other):
        state = prepare(prepared.clip, bundle, QUICK, prepared.folder, tune=False)
        state = replace(state, cache=shared)
        grid = figure3.grid_of(state, settings_for(state, (2,)), "inverted")
        pictures.append(grid.pictures["inversion"][0])
    assert (pictures[0] != pictures[1]).any()


def test_a_damaged_cell_is_made_again(prepared, stitched, tmp_path):
    figure_3(replace(prepared, cache=Cache(tmp_path)), (2,))
    (kept,) = tmp_path.glob("*.npz")
    good = kept.read_bytes()
    for bad in (b"", good[: len(good) // 2], b"not at all"):
        kept.write_bytes(bad)
        grid = figure_3(replace(prepared, cache=Cache(tmp_path)), (2,))
        assert grid.quality == "full" and kept.read_bytes()[:4] == good[:4]


def test_no_row_is_a_blink(prepared):
    "Of each third the frame nearest to its middle whose eyes are open."
    points = prepared.landmarks.copy()
    usual = states.open_eyed(prepared)
    points[usual[1], [37, 38, 43, 44]] = points[usual[1], [41, 40, 47, 46]]  # lids meet
    blinking = states.open_eyed(replace(prepared, landmarks=points))
    assert len(usual) == 3 and blinking[1] != usual[1]
    assert (blinking[0], blinking[2]) == (usual[0], usual[2])


def test_a_frame_without_a_face_stays_as_it_is(prepared):
    "Its row shows the source in every column, and nothing of it is measured."
    edited = np.ones(len(prepared), bool)
    edited[3] = False
    left = [k for k in range(len(prepared)) if k != 3]
    parts = ("landmarks", "quads", "crops", "heads", "pivots")
    arrays = {name: getattr(prepared, name)[left] for name in parts}
    state = replace(prepared, edited=edited, key="without 3", cache=Cache(), **arrays)
    settings = settings_for(state, (1, 3, 5))
    *_, grid = grids(state, settings)
    assert all((grid.pictures[c][1] == grid.pictures["source"][1]).all() for c in COLUMNS)
    boxes = zoom_boxes(state, settings)
    assert all(b[1] is None and b[0] and b[2] for b in boxes.values())
    assert paint(grid_sheet(grid, boxes)).ndim == 3
    *_, whole = grids(replace(prepared, cache=Cache()), replace(settings, frames=(1, 5)))
    assert grid.measured == whole.measured
    assert (grid.pictures["stitched"][2] == whole.pictures["stitched"][1]).all()


def test_the_app_tidies(models, tmp_path):
    "Its folder stays within the limit, whole stages go, and what is shown is never among them."
    clips = [tiny.face_clip(tmp_path / f"{i}.mp4", T=4, at=(30 + i, 22)) for i in range(4)]
    folder = tmp_path / "kept"
    size = lambda: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    app = Figure3App(str(clips[0]), models=models, config=QUICK, folder=folder, limit=1)
    try:
        shown(app)
        sizes = [size()]
        for path in (*clips[1:], clips[0]):
            app.path.value = str(path)
            shown(app)
            assert app.error is None and app.grid.name == path.name and app.state.is_there()
            sizes.append(size())
        assert max(sizes) < 2 * sizes[0]  # one clip's work, not five clips'
        for note in folder.glob("*.json"):
            assert len(list(folder.glob(f"{note.stem}*"))) == 2  # never half of a stage
        app.strength.value = -1.0
        shown(app)
        assert app.error is None and app.grid.quality == "full"
    finally:
        app.close()


def test_another_process_may_tidy(models, clip, tmp_path):
    "An app whose stages went while it waited makes them again."
    app = Figure3App(str(clip), models=models, config=QUICK, folder=tmp_path)
    try:
        shown(app)
        states.tidy(tmp_path, 0)
        assert not app.state.is_there()
        app.passes.value = 1
        shown(app)
        assert app.error is None and app.state.is_there()
    finally:
        app.close()


def test_two_apps_have_two_videos(models, prepared, clip):
    "And nothing stays behind when they are closed."
    make = lambda: Figure3App(str(clip), models=models, config=QUICK, folder=prepared.folder)
    apps = [make(), make()]
    try:
        rooms = [Path(app.room.name) for app in apps]
        for app in apps:
            shown(app)
            app.part.value = (0, 2)
            app.video_button.click()
        for app, room in zip(apps, rooms):
            shown(app)
            assert [p.name for p in room.iterdir()] == ["video.mp4"]
        assert rooms[0] != rooms[1] and not (prepared.folder / "video.mp4").exists()
    finally:
        for app in apps:
            app.close()
    assert not any(room.exists() for room in rooms)


def test_no_folder_stays_behind(monkeypatch, tmp_path):
    "A stand-in notebook lies in a folder that goes when the server ends."
    seen = []

    def server(command, port, browser):
        (page,) = [Path(word) for word in command if word.endswith(".ipynb")]
        seen.append((page, page.is_file()))
        return 0

    monkeypatch.setattr(apps, "serve", server)
    monkeypatch.setattr(apps.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as left:
        apps.stitch_app("3", models="mobile", no_browser=True)
    assert left.value.code == 0 and seen[0][1] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "chosen, figure, networks",
    [
        ("people", "3", None),
        ("people", "9", None),
        ("mobile", "3", "mobile-256"),
        ("mobile", "9", "mobile-256"),
        ("mobile-512", "9", "mobile-512"),
        ("mobile", "walkthrough", None),
    ],
)
def test_apps_open_on_photographs_where_they_are_fetched(monkeypatch, chosen, figure, networks):
    "A lesson keeps its own networks; so does a figure where only the rendered bundle is there."
    given = []
    page = lambda name, folder, models: given.append(models) or Path(f"{name}.ipynb")
    monkeypatch.setattr(stitch_models, "default_models", lambda: chosen)
    monkeypatch.setattr(apps, "app_notebook", page)
    monkeypatch.setattr(apps, "serve", lambda command, port, browser: 0)
    monkeypatch.setattr(apps.importlib.util, "find_spec", lambda name: True)
    for asked, expected in ((None, networks), ("people", "people")):
        with pytest.raises(SystemExit) as left:
            apps.stitch_app(figure, models=asked, no_browser=True)
        assert left.value.code == 0 and given.pop() == expected


@pytest.fixture(scope="module")
def mobile(tmp_path_factory):
    "A bundle whose generator draws wavelets."
    torch.manual_seed(1)
    G = MobileGenerator(32, z_dim=16, w_dim=16, channels=(16, 16, 16, 16), mapping_layers=2)
    E = Encoder(resolution=32, num_ws=G.num_ws, w_dim=16, width=8, blocks=(1, 1, 1, 1))
    return load_models(
        save_bundle(
            tmp_path_factory.mktemp("mobile") / "wavelets",
            "wavelets",
            generator=G,
            encoder=E,
            perceptual=Trunk(),
            identity=IdentityNet(),
            directions=dict(smile=0.3 * torch.randn(G.num_ws, 16)),
            meta=dict(scale=1.0),
        )
    )


def test_a_generator_of_wavelets(mobile, clip, tmp_path):
    "The figure asks nothing of a generator that only StyleGAN2's has; last blocks alone can be tuned."
    state = prepare(clip, mobile, QUICK, tmp_path)
    last = replace(QUICK.stitch, first_resolution=16)
    looks = list(grids(state, settings_for(state, (1, 3, 5), stitch=last)))
    assert [g.quality for g in looks] == ["blended", "preview", "full"]
    borders = [g.measured["stitched"]["border"] for g in looks[1:]]
    assert borders[1] <= borders[0] <= looks[0].measured["blended"]["border"]


def test_the_preview_of_a_large_generator():
    "Half as many updates, of the last blocks only; a small one is tuned as it will be in full."
    config = StitchConfig(steps=60)
    assert states.first_look(config) == replace(config, steps=PREVIEW)
    large = states.first_look(config, 512)
    assert (large.steps, large.first_resolution) == (PREVIEW // 2, 256)
    assert states.first_look(replace(config, steps=3), 512).steps == 3


def test_the_preview_of_wavelets_is_half_as_large(mobile, clip, tmp_path, monkeypatch):
    "The last block is neither drawn nor tuned; the edit's detail stays, its border comes nearer."
    monkeypatch.setattr(states, "LARGE", 16)
    state = prepare(clip, mobile, QUICK, tmp_path)
    settings = settings_for(state, (1, 3, 5), stitch=replace(QUICK.stitch, lr=0.01))
    quick = states.stitching_of(state, settings, "preview")
    assert (states.half_size(state), quick.first_resolution, quick.steps) == (16, 8, PREVIEW)
    drawn, honest = [], MobileGenerator.draw_blocks

    def watched(G, styles, first=4, last=None, state=None, noise="const"):
        drawn.append(last)
        return honest(G, styles, first, last, state, noise)

    blended = states.crop_of(state, settings, "blended", 1)
    monkeypatch.setattr(MobileGenerator, "draw_blocks", watched)
    seen = states.crop_of(state, settings, "stitched", 1, "preview")
    assert len(drawn) > PREVIEW and None not in drawn
    monkeypatch.setattr(MobileGenerator, "draw_blocks", honest)
    change = seen.astype(float) - blended
    assert np.abs(change).max() > 3
    looks = {g.quality: g.measured for g in grids(state, settings)}
    border = {q: m["stitched"]["border"] for q, m in looks.items() if q != "blended"}
    assert border["preview"] < 0.95 * looks["blended"]["blended"]["border"]
    still = replace(settings, stitch=replace(settings.stitch, steps=0))
    same = states.crop_of(state, still, "stitched", 1, "preview").astype(int)
    assert np.abs(same - blended).max() <= 1


def test_regions_where_the_parser_has_a_size_of_its_own(state):
    "MediaPipe's mask has 256 pixels, the crop 512: the regions are those of a mask of the crop's size."
    large = np.repeat(np.repeat(state.heads[:, ::2, ::2], 2, 1), 2, 2)
    small = np.ascontiguousarray(large[:, ::2, ::2])
    found = [
        zoom_boxes(replace(state, heads=heads, key=key, cache=Cache()), settings_for(state, (1, 3)))
        for key, heads in (("large", large), ("small", small))
    ]
    assert found[0] == found[1] and set(found[0]) == {"hair", "neck"}


@pytest.fixture
def call(bundle, tmp_path, capsys):
    "`call(clip, **options)` runs stitch_figure on discs; (status, last line of stderr, everything on stdout)."

    def run(clip, figure="3", **options):
        return tiny.outcome(
            stitch_figure,
            capsys,
            figure,
            str(clip),
            **dict(
                out=str(tmp_path / "out"),
                models=str(bundle),
                mask="hull",
                pti_steps=2,
                stitch_steps=2,
            )
            | options,
        )

    return run


def test_command(call, clip, tmp_path, stitched):
    status, _, said = call(clip, edit=["age=1"], rows="1,3", video="0:3")
    assert status == 0
    files = {n: tmp_path / "out" / f"figure_3.{n}" for n in ("png", "pdf", "mp4")}
    assert all(f.is_file() and str(f) in said for f in files.values())
    assert len(read_clip(files["mp4"])) == 3 and len(stitched) == 4  # frames 1 and 3, then 0 and 2
    before = {n: f.read_bytes() for n, f in files.items()}
    assert call(clip, edit=["age=1"], rows="1,3", video="0:3")[0] == 0
    assert len(stitched) == 4 and before == {n: f.read_bytes() for n, f in files.items()}


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(figure="4"), "choose 3"),
        (dict(edit=["smiel=2"]), "did you mean 'smile'"),
        (dict(rows="1,x"), "12,36,60"),
        (dict(rows="70"), "frames 0 to 6"),
        (dict(zoom="ear"), "hair, neck, mouth"),
        (dict(video="3"), "A:B"),
        (dict(frames="9:12"), "empty"),
        (dict(models="none"), "not installed"),
        (dict(norm="l3"), "'l1' or 'l2'"),
    ],
)
def test_command_refuses(call, clip, options, words):
    status, line, _ = call(clip, **options)
    assert status == 2 and line.startswith("stitch_figure: ") and words in line


def test_clip_names(tmp_path):
    assert open_clip("talk").path.name == "talk.mp4"
    for name, words in (("", "no clip is named"), ("talkk", "no such file")):
        with pytest.raises(StitchError, match=words):
            open_clip(name)


def test_page_without_a_kernel():
    "The committed notebook shows the figure, says it in words, and holds no widget that would need a kernel."
    page = Path(__file__).resolve().parents[1] / "nbs" / "figures" / "90_figure_3.ipynb"
    assert page.stat().st_size < 600_000
    outputs = [o for c in json.loads(page.read_text())["cells"] for o in c.get("outputs", [])]
    pictures = [
        o["metadata"]["image/jpeg"]["alt"]
        for o in outputs
        if "alt" in o.get("metadata", {}).get("image/jpeg", {})
    ]
    assert len(pictures) == 3 and pictures[1].startswith("Figure 3 on ")  # the photograph is first
    assert not any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs)
    assert not any(o["output_type"] == "error" for o in outputs)
