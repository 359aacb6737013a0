"Frames without a face, cuts, and who is who across them: what is edited and what stays as it is."

import os
from pathlib import Path

import numpy as np
import pytest

from stitch_nb.core import load_arrays, sample
from stitch_nb.detectors import Detection
from stitch_nb.faces import FaceTrack, find_faces
from stitch_nb.tracks import changed_blocks, frame_thumbnail, shot_cuts
from stitch_nb.video import read_clip

CASES = Path(
    os.environ.get('STITCH_NB_CASES', Path(__file__).resolve().parents[2] / 'shared' / 'cases')
)


@pytest.fixture(scope='module')
def people():
    "Two people in the same place: frames and landmarks of two sample clips."
    found = []
    for name in ('talk', 'turn'):
        frames = list(read_clip(sample(f'{name}.mp4')).frames(0, 30))
        found.append((frames, load_arrays(sample(f'{name}.truth.npz'))['landmarks'][:30]))
    return found


def card(n, seed=0):
    "A test card that moves a little; nobody is on it."
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (6, 8, 3)).repeat(32, 0).repeat(30, 1).astype(np.uint8)
    return [np.roll(blocks, 3 * t, 1) for t in range(n)]


def play(parts):
    "`parts` = [(frames, landmarks or None)] one after the other, and a detector without mistakes."
    frames, faces = [], []
    for pictures, landmarks in parts:
        frames += list(pictures)
        for t in range(len(pictures)):
            here = landmarks is not None and landmarks[t] is not None
            faces.append([Detection(np.asarray(landmarks[t], np.float64))] if here else [])
    queue = iter(faces)
    return frames, lambda frame: next(queue)


def untouched(track):
    return np.flatnonzero(~track.edited).tolist()


@pytest.mark.parametrize('where', ['before', 'between', 'after'])
def test_a_card_stays_as_it_is(people, where):
    frames, points = people[0]
    a, b, title = (frames[:12], points[:12]), (frames[12:24], points[12:24]), (card(8), None)
    parts = dict(before=[title, a, b], between=[a, title, b], after=[a, b, title])[where]
    first = dict(before=0, between=12, after=24)[where]
    track = find_faces(*play(parts))
    assert untouched(track) == list(range(first, first + 8))
    assert set(track.cuts) == {first, first + 8} - {0, 32} and track.people == 1
    assert np.isfinite(track.landmarks).all()
    assert 'left as they are' in str(track)


def test_somebody_elses_shot_of_the_same_place(people):
    (frames, points), (others, their) = people
    for parts, cuts in (
        (
            [(frames[:14], points[:14]), (others[:10], their[:10]), (frames[14:24], points[14:24])],
            (14, 24),
        ),
        ([(others[:10], their[:10]), (frames[:14], points[:14])], (10,)),
    ):
        track = find_faces(*play(parts))
        assert track.cuts == cuts and track.people == 2
        assert track.edited.sum() in (24, 14)  # one of them


def test_another_head_before_the_same_wall(people):
    "Only the head changes: no picture tells the cut, the person does."
    (frames, points), (others, their) = people
    wall = frames[0]
    yy, xx = np.mgrid[: wall.shape[0], : wall.shape[1]]

    def heads(pictures, landmarks):
        out = []
        for picture, p in zip(pictures, landmarks):
            c, r = p.mean(0), np.ptp(p[:, 0])
            inside = ((xx - c[0]) ** 2 + (yy - c[1]) ** 2 < (0.75 * r) ** 2)[..., None]
            out.append(np.where(inside, picture, 128).astype(np.uint8))
        return out

    shift = (points[0].mean(0) - their[0].mean(0)).round().astype(int)
    moved = [np.roll(p, shift[::-1], (0, 1)) for p in others[:10]]
    parts = [
        (heads(frames[:14], points[:14]), points[:14]),
        (heads(moved, their[:10] + shift), their[:10] + shift),
        (heads(frames[14:24], points[14:24]), points[14:24]),
    ]
    pictures, detect = play(parts)
    track = find_faces(pictures, detect)
    assert track.cuts == (14, 24) and track.people == 2
    assert untouched(track) == list(range(14, 24))


def test_one_person_from_two_sides_of_a_cut(people):
    "A closer second take: a cut, but nobody new; everything is edited, nothing slides across."
    frames, points = people[0]
    closer = [np.kron(f[40:136, 60:180], np.ones((2, 2, 1), np.uint8)) for f in frames[12:24]]
    track = find_faces(
        *play([(frames[:12], points[:12]), (closer, (points[12:24] - [60, 40]) * 2 + 0.5)])
    )
    assert track.cuts == (12,) and track.people == 1 and track.edited.all()
    assert track.edited_segments == ((0, 12), (12, 24))


def test_light_is_no_cut(people):
    frames, points = people[0]
    lit = [f if t < 10 or t == 15 else (f * 0.62).astype(np.uint8) for t, f in enumerate(frames)]
    track = find_faces(*play([(lit, points)]))
    assert track.cuts == () and track.people == 1 and track.edited.all()


def test_a_hand_is_held_and_a_person_who_leaves_is_not(people):
    frames, points = people[0]
    seen = [None if 10 <= t < 20 else p for t, p in enumerate(points)]
    c, r = points[10].mean(0), np.ptp(points[10][:, 0])
    hand, gone = [f.copy() for f in frames], [f.copy() for f in frames]
    y0, x0 = int(c[1] - 0.3 * r), int(c[0] - 0.3 * r)
    for t in range(10, 20):
        hand[t][y0 : y0 + int(0.8 * r), x0 : x0 + int(0.6 * r)] = (150, 110, 90)
        gone[t][:, max(int(c[0] - 1.2 * r), 0) : int(c[0] + 1.2 * r)] = frames[0][:, :1]
    track = find_faces(*play([(hand, seen)]))
    assert track.edited.all() and track.gaps == ((10, 20),)
    track = find_faces(*play([(gone, seen)]))
    assert untouched(track) == list(range(10, 20))


def test_a_long_absence_is_not_held(people):
    frames, points = people[0]
    long = frames[:10] + [frames[9]] * 30 + frames[10:30]
    landmarks = [*points[:10], *[None] * 30, *points[10:30]]
    assert untouched(find_faces(*play([(long, landmarks)]))) == list(range(10, 40))


def test_a_fade_to_black_and_back(people):
    "The detector loses the face while it darkens; black stays black."
    frames, points = people[0]
    light = np.concatenate(
        [np.ones(8), np.linspace(1, 0, 8), [0] * 3, np.linspace(0, 1, 8), np.ones(3)]
    )
    faded = [(f * k).astype(np.uint8) for f, k in zip(frames, light)]
    seen = [p if k > 0.25 else None for p, k in zip(points, light)]
    track = find_faces(*play([(faded, seen)]))
    assert set(untouched(track)) >= set(np.flatnonzero(light == 0).tolist())
    assert track.people == 1 and not any(track.edited[t] for t in range(15, 19))


def test_changed_blocks():
    rng = np.random.default_rng(0)
    a = frame_thumbnail(
        rng.integers(0, 256, (96, 96, 3)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    )
    assert changed_blocks(a, a).mean() == 0 and changed_blocks(a, a * 0.8).mean() == 0
    assert changed_blocks(a, a[::-1]).mean() > 0.7 and changed_blocks(a, a * 0).mean() > 0.9
    pan = [np.roll(a, 5 * t, 1) for t in range(12)]
    assert shot_cuts(pan) == () and shot_cuts([a] * 3 + [a[::-1]] * 3) == (3,)


@pytest.mark.parametrize(
    'name, cuts, kept', [('card', (10,), range(10)), ('cutaway', (14, 24), range(14, 24))]
)
def test_the_cases(name, cuts, kept):
    from stitch_nb.detectors import landmark_backend
    from stitch_nb.models import load_models

    file = CASES / f'{name}.mp4'
    if not file.is_file():
        pytest.skip(f'the case {file.name} is not here')
    track = find_faces(read_clip(file), landmark_backend('bundle', load_models('people')))
    assert track.cuts == cuts and untouched(track) == list(kept)


def test_numbers_of_edited_frames(people):
    frames, points = people[0]
    track = find_faces(
        *play([(frames[:5], points[:5]), (card(4), None), (frames[5:12], points[5:12])])
    )
    assert track.edited_frames.tolist() == [*range(5), *range(9, 16)]
    assert track.edited_segments == ((0, 5), (5, 12))


def test_the_crop_does_not_slide_across_a_cut():
    "The squares before a cut are those of a clip that ends there."
    from types import SimpleNamespace

    from stitch_nb.run.settings import RunConfig
    from stitch_nb.run.stages import quads_of

    points = load_arrays(sample('talk.truth.npz'))['landmarks'][:12]
    points[6:] += 40

    def quads(n, cuts=()):
        track = FaceTrack(points[:n], np.ones(n, bool), cuts)
        return quads_of(SimpleNamespace(scale=1.0), RunConfig(), track)

    whole, before = quads(12, (6,)), quads(6)
    assert np.allclose(whole[:6], before) and not np.allclose(quads(12)[:6], before)


def test_a_whole_run_leaves_the_card_alone(tmp_path, monkeypatch, capsys):
    "From the command line to the lossless film: what has no face is the source, to the bit."
    import tiny

    from stitch_nb.commands.edit import stitch_edit
    from stitch_nb.video import write_video

    tiny.use_disc(monkeypatch)
    monkeypatch.setenv('STITCH_CACHE', str(tmp_path / 'cache'))
    models = tiny.tiny_bundle(tmp_path / 'tiny')
    title = [np.full((48, 64, 3), (40, 90 + 9 * t, 60), np.uint8) for t in range(4)]
    faces = list(tiny.face_frames(T=8))
    write_video(faces[:4] + title + faces[4:], tmp_path / 'clip.mkv', 25, lossless=True)
    options = tiny.QUICK | dict(models=str(models), out=str(tmp_path / 'run'), lossless=True)
    status, line, said = tiny.outcome(stitch_edit, capsys, str(tmp_path / 'clip.mkv'), **options)
    assert status == 0, line
    source = list(read_clip(tmp_path / 'clip.mkv').frames())
    result = list(read_clip(tmp_path / 'run' / 'result.mp4').frames())
    same = [np.array_equal(a, b) for a, b in zip(source, result)]
    assert same == [False] * 4 + [True] * 4 + [False] * 4


def test_what_flickers_is_nobody(people):
    "A detector sees faces in leaves: more of them, and larger, but never twice the same."
    frames, points = people[0]
    rng = np.random.default_rng(5)
    leaves = [
        np.kron(rng.integers(0, 256, (12, 15, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        for _ in range(14)
    ]
    wrong = [(points[0] - points[0].mean(0)) * 1.2 + [120, 90 + t] for t in range(14)]
    track = find_faces(*play([(leaves, wrong), (frames[:14], points[:14])]), max_missing=0.6)
    assert track.people == 1 and untouched(track) == list(range(14))
