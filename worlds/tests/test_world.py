"The world of the people bundle: sixteen labels that are the truth, edits that move one of them, places that a seed decides."

from dataclasses import replace

import numpy as np
import pytest

from stitch_worlds.backgrounds import GRID, SCENES, background, sample_scene
from stitch_worlds.dataset import (
    ATTRIBUTES,
    KNOBS,
    MEAN,
    PROPORTIONS,
    RANGE,
    SHARE,
    STD,
    attribute_vector,
    changed,
    measure_proportions,
    sample_change,
    sample_light,
    sample_person,
    sample_state,
    save_shard,
    with_knobs,
)
from stitch_worlds.renderer import COLLARS, GLASSES, HAIR_STYLES, PATTERNS
from stitch_worlds.shards import Shards

LOCAL = (
    "l-eye-trans-out",
    "r-eye-trans-out",
    "mouth-scale-horiz-incr",
    "nose-point-up",
    "chin-width-incr",
    "l-ear-rot-backward",
    "r-ear-rot-backward",
    "nose-trans-up",
)


def somebody(seed: int):
    rng = np.random.default_rng(seed)
    return sample_person(rng, LOCAL), sample_state(rng)


def test_sixteen_attributes_in_the_agreed_order():
    assert ATTRIBUTES == tuple(
        "smile age gender yaw pitch roll mouth_open eyes_open eye_distance eye_eyebrow_distance eye_ratio lip_ratio "
        "mouth_ratio nose_mouth_distance nose_ratio nose_tip".split()
    )
    assert all(set(table) == set(ATTRIBUTES) for table in (MEAN, STD, RANGE, SHARE)) and set(
        KNOBS
    ) == set(PROPORTIONS)


def test_a_label_is_what_the_shapes_were_made_from():
    for seed in range(30):
        person, state = somebody(seed)
        local = dict(person.local)
        assert len(local) == len(person.local), "a local change twice"
        assert (
            local["l-eye-trans-out"] == local["r-eye-trans-out"]
            and local["l-ear-rot-backward"] == local["r-ear-rot-backward"]
        )
        label = dict(zip(ATTRIBUTES, attribute_vector(person, state)))
        ((_, up, down),) = KNOBS["eye_distance"]
        value = label["eye_distance"]
        assert np.isclose(local["l-eye-trans-out"], value * (up if value > 0 else down), atol=1e-6)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_edit_moves_its_own_label_only(name):
    k = ATTRIBUTES.index(name)
    for seed in range(8):
        person, state = somebody(seed)
        before = attribute_vector(person, state)
        for delta in (-1.5, 0.7, 2.0):
            p, s = changed(person, state, name, delta)
            moved = attribute_vector(p, s) - before
            assert np.count_nonzero(np.abs(moved) > 1e-6) <= 1 and (
                moved[k] == pytest.approx(delta, abs=1e-4) or abs(moved[k]) < abs(delta)
            )
            raw = attribute_vector(p, s)[k] * STD[name] + MEAN[name]
            assert RANGE[name][0] - 1e-4 <= raw <= RANGE[name][1] + 1e-4
        assert (p is person) == (
            name in ("smile", "yaw", "pitch", "roll", "mouth_open", "eyes_open")
        )


def test_turning_a_knob_back_leaves_nothing():
    person, _ = somebody(3)
    start = {k: dict(person.knobs)[k] for k in PROPORTIONS}
    there = with_knobs(person, dict(lip_ratio=3.0, nose_mouth_distance=-2.0))
    back = with_knobs(there, start)
    a, b = dict(person.local), dict(back.local)
    assert dict(there.local) != a and set(a) == set(b) and all(np.isclose(a[k], b[k]) for k in a)
    assert replace(back, local=()) == replace(person, local=())


def test_pairs_have_room_and_cover_everything():
    rng = np.random.default_rng(0)
    seen = {}
    for seed in range(1500):
        person, state = somebody(seed % 60)
        name, p, s, delta = sample_change(rng, person, state)
        assert delta == pytest.approx(
            (attribute_vector(p, s) - attribute_vector(person, state))[ATTRIBUTES.index(name)],
            abs=1e-5,
        )
        seen.setdefault(name, []).append(delta)
    assert set(seen) == set(ATTRIBUTES) and len(seen["smile"]) > 3 * len(seen["nose_tip"])
    assert (
        min(seen["age"]) < -1
        and max(seen["age"]) > 1
        and max(map(abs, sum(seen.values(), []))) <= 3.001
    )
    assert np.mean([abs(d) < 0.4 for v in seen.values() for d in v]) < 0.02


def test_people_wear_what_the_renderer_has():
    crowd = [somebody(k)[0] for k in range(400)]
    assert (
        {p.hair_style for p in crowd} == set(HAIR_STYLES)
        and {p.collar for p in crowd} == set(COLLARS)
        and {p.pattern for p in crowd} == set(PATTERNS)
    )
    assert {p.glasses for p in crowd} - {""} == set(GLASSES) and 0.08 < np.mean(
        [p.glasses != "" for p in crowd]
    ) < 0.25
    assert min(np.histogram([p.melanin for p in crowd], (0, 1 / 3, 2 / 3, 1))[0]) > 70


def test_light_leaves_no_face_in_the_dark():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        light = sample_light(rng, sample_scene(rng), rng.uniform(0, 1))
        colours = np.array(
            [light.key_colour, light.fill_colour, light.sky, light.ground, light.left, light.right]
        )
        assert (colours > 0.05).all() and (colours.max(1) / colours.min(1) < 1.9).all(), (
            "a coloured lamp"
        )
        assert light.key[1] < -0.2 and min(light.sky) > 0.2


def test_measured_ratios_of_a_drawn_face():
    p = np.zeros((68, 2))
    p[[1, 15], 0] = 0, 100
    p[8, 1], p[27, 1], p[33, 1], p[30, 1], p[51, 1], p[57, 1] = 100, 0, 40, 30, 55, 70
    p[[31, 35], 0] = 40, 60
    p[48], p[54] = (30, 60), (70, 60)
    for k, x in ((36, 20), (42, 60)):
        p[k], p[k + 3], p[k + 1], p[k + 2], p[k + 5], p[k + 4] = (
            (x, 5),
            (x + 20, 5),
            (x + 5, 0),
            (x + 15, 0),
            (x + 5, 10),
            (x + 15, 10),
        )
    p[17:27, 1] = -10
    want = dict(
        eye_distance=0.4,
        eye_eyebrow_distance=0.15,
        eye_ratio=0.5,
        lip_ratio=15 / 40,
        mouth_ratio=0.4,
        nose_mouth_distance=0.15,
        nose_ratio=0.5,
        nose_tip=0.25,
    )
    assert measure_proportions(p) == pytest.approx(want)


def test_places_follow_their_seed():
    for name in [s.__name__ for s in SCENES]:
        a, b, c = (sample_scene(np.random.default_rng(k), name=name) for k in (1, 1, 2))
        assert (
            a.name == name
            and a.image.shape == (GRID, GRID, 3)
            and np.array_equal(a.image, b.image)
            and not np.array_equal(a.image, c.image)
        )
        assert -1 <= a.side <= 1 and all(0 < v < 1 for v in a.above + a.below)
    assert background(np.random.default_rng(0), 40).shape == (40, 40, 3)
    with pytest.raises(LookupError, match="beach"):
        sample_scene(np.random.default_rng(0), name="beach")


def test_a_shard_is_read_as_it_was_written(tmp_path):
    rng = np.random.default_rng(0)
    picture = lambda n, c=(3,), size=128: rng.integers(0, 255, (n, size, size, *c)).astype(np.uint8)
    vectors = np.stack([attribute_vector(*somebody(k)) for k in range(3)])
    save_shard(
        tmp_path,
        "0000",
        dict(
            crops=picture(3),
            labels=picture(3, ()) % 19,
            frames=picture(3, size=160),
            identity=np.arange(3),
            attributes=vectors,
            crop_landmarks=np.zeros((3, 68, 2), np.float32),
            frame_faces=np.zeros((3, 2, 68, 2), np.float32),
        ),
        dict(
            a=picture(2),
            b=picture(2),
            la=picture(2, ()) % 19,
            lb=picture(2, ()) % 19,
            attr=np.array([15, 0]),
            delta=np.array([1.5, -2.0]),
        ),
    )
    data = Shards(tmp_path)
    assert data.attribute_names == list(ATTRIBUTES) and np.allclose(
        data.take("attributes", np.arange(3)), vectors
    )
