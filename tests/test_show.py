"What `show` and `show_plot` display: one picture, with its alternative text."

import IPython.display
import numpy as np
import pytest

from stitch_nb.core import StitchError
from stitch_nb.show import describe_strip, show, show_plot

PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def sent(monkeypatch):
    "What has been displayed: (value, options)."
    seen = []
    monkeypatch.setattr(IPython.display, "display", lambda x, **how: seen.append((x, how)))
    return seen


def words_of(sent) -> str:
    data, metadata = sent[-1][0]._repr_jpeg_()
    assert data
    return metadata["alt"]


def test_words_are_given_or_made_from_titles(sent):
    show(PICTURE, PICTURE, titles=["crop", "edit"], alt="A seam at the neck")
    assert words_of(sent) == "A seam at the neck"
    show(*[PICTURE] * 4, rows=2, titles=["frame 3", "frame 6"], row_titles=["crop", "edit"])
    assert words_of(sent) == "2 rows (crop, edit) of 2 pictures: frame 3, frame 6"
    show([[PICTURE] * 3] * 2)
    assert words_of(sent) == "6 pictures in 2 rows"


@pytest.mark.parametrize(
    "number, how, words",
    [
        (1, {}, "1 picture"),
        (1, dict(titles=["crop"]), "crop"),
        (3, {}, "3 pictures, side by side"),
        (3, dict(titles="abc"), "a, b, c, side by side"),
        (5, dict(cols=3), "5 pictures in 2 rows"),
        (2, dict(row_titles=["crop"]), "1 row (crop) of 2 pictures"),
        (2, dict(cols=1, titles=["crop"]), "2 rows of 1 picture: crop"),
    ],
)
def test_description(number, how, words):
    assert describe_strip([PICTURE] * number, **how) == words


def test_nothing_to_describe():
    with pytest.raises(StitchError, match="the list of images is empty"):
        describe_strip([])


def test_plot(sent):
    import matplotlib.pyplot as plt

    figure = plt.figure()
    show_plot(figure, "A rise")
    assert sent == [(figure, dict(metadata={"image/png": {"alt": "A rise"}}))]
    assert not plt.fignum_exists(figure.number)
