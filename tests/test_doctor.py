"The page about the machine: its fields, and that nothing breaks it."

import json

import pytest

from stitch_nb.commands import doctor


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))


def test_fields(capsys):
    doctor.stitch_doctor(quick=True, json=True, device="cpu")
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        "python",
        "torch",
        "memory",
        "disk",
        "ffmpeg",
        "packages",
        "landmarks",
        "bundles",
        "advice",
    }
    assert (
        found["torch"]["device"] == "cpu"
        and found["ffmpeg"]["round_trip"]
        and found["ffmpeg"]["codecs"]["libx264"]
    )
    assert set(found["landmarks"]) == {"bundle", "mediapipe", "face_alignment", "dlib"}
    assert found["packages"]["av"]["ok"] and not found["bundles"]["mobile"]["complete"]
    assert "stitch_weights download mobile" in found["landmarks"]["mediapipe"]["error"]
    assert any("stitch_weights download mobile" in line for line in found["advice"])
    assert found["bundles"]["people"]["complete"] and found["landmarks"]["bundle"]["faces"] == 1
    assert "ffhq.pkl" in found["bundles"]["ffhq"]["missing"]
    assert any("stitch_weights download ffhq" in line for line in found["advice"])
    assert found["memory"]["total"] > found["memory"]["available"] > 0


def test_what_is_missing_says_how_it_is_got(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {"no-such-thing": "pip install it"})
    for name in ("ask_people", "ask_landmarks", "ask_ffmpeg"):
        monkeypatch.setattr(doctor, name, lambda *a: 1 / 0)
    said = doctor.page(doctor.diagnose(bench=False, device="cpu"))
    assert "no-such-thing  not usable: not installed (pip install it)" in said


def test_mediapipe_is_tried(monkeypatch):
    monkeypatch.undo()  # the cache in which the package was fetched
    if doctor.missing_files("mobile"):
        pytest.skip("the package of bundle mobile was not fetched: stitch_weights download mobile")
    assert doctor.ask_landmarks("mediapipe")["faces"] == 1


def test_estimates_grow_with_the_clip():
    from stitch_nb.pipeline import RunConfig

    per = dict(pti=0.1, stitch=0.01, other=1.0)
    assert doctor.clip_seconds(10, per, RunConfig()) == pytest.approx(
        10 * (16 * 0.1 + 60 * 0.01 + 1)
    )
    speed = doctor.ask_speed("people", "cpu", 50)
    assert (
        speed["frames"] == 50
        and speed["how"] == "measured"
        and speed["seconds"] > 50 * 16 * speed["pti_update"]
    )


@pytest.mark.slow
def test_official_estimate_without_the_files():
    speed = doctor.ask_speed("ffhq", "cpu", 10)
    assert speed["how"] == "scaled from 256 px" and speed["passes"] == 80 and speed["seconds"] > 60


@pytest.mark.parametrize(
    "broken",
    [
        "stitch_nb.models.load_models",
        "stitch_nb.detectors.landmark_backend",
        "imageio_ffmpeg.get_ffmpeg_exe",
        "psutil.virtual_memory",
        "torch.get_num_threads",
        "stitch_nb.commands.doctor.missing_files",
        "shutil.disk_usage",
        "importlib.metadata.version",
        "stitch_nb.video.write_video",
    ],
)
def test_nothing_breaks_it(monkeypatch, broken, capsys):
    def fails(*args, **kwargs):
        raise RuntimeError("broken on purpose\nsecond line")

    for name in (
        "ask_people",
        "ask_landmarks",
        "ask_ffmpeg",
    ):  # the expensive ones once, where they are what breaks
        if not any(
            word in broken
            for word in dict(
                ask_people=("load_models",),
                ask_landmarks=("landmark_backend",),
                ask_ffmpeg=("ffmpeg", "write_video"),
            )[name]
        ):
            monkeypatch.setattr(
                doctor,
                name,
                lambda *a: dict(
                    complete=True, faces=1, seconds=0.0, version="", round_trip=True, codecs={}
                ),
            )
    monkeypatch.setattr(broken, fails)
    doctor.stitch_doctor(quick=True, device="cpu")
    said = capsys.readouterr().out
    assert (
        "not usable" in said
        and "broken on purpose" in said
        and "second line" not in said
        and "what to do" in said
    )
