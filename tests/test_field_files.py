"Files from public threads (`tests/cases`) and films that change under a run: the right values."

import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from stitch_nb.core import StitchError, sample
from stitch_nb.probe import mend_times
from stitch_nb.run.store import clip_key
from stitch_nb.video import read_clip, write_video

CASES = Path(__file__).parent / 'cases'


def frames_of(path):
    return np.stack(list(read_clip(path).frames()))


# ---------------------------------------------------------------- what a file states


@pytest.mark.parametrize(
    'name, frames, fps, size',
    [
        ('anim.avif', 12, 25, (240, 192)),
        ('overlap.ts', 30, 25, (240, 192)),
        ('raw12.264', 36, 12, (240, 192)),
        ('two_video_default2.mkv', 48, 25, (240, 192)),
        ('fps2000.mp4', 151, 2000, (240, 192)),
    ],
)
def test_frames_and_rate(name, frames, fps, size):
    clip = read_clip(CASES / name)
    assert (len(clip), clip.fps, (clip.width, clip.height)) == (frames, fps, size)
    assert sum(1 for _ in clip.frames()) == frames


def test_a_fast_film_is_written(tmp_path):
    clip = read_clip(CASES / 'fps2000.mp4').trim(0, 4)
    out = write_video(clip.frames(), tmp_path / 'o.mp4', clip.fps, clip)
    assert (len(read_clip(out)), read_clip(out).fps) == (4, 2000)


@pytest.mark.parametrize(
    'name, words',
    [
        ('raw12.264', '12 a second'),
        ('two_video_default2.mkv', '2 video tracks: only stream 1'),
        ('r_rot.ts', 'rotation that the file states change at frame 15'),
        ('r_range.ts', 'colours that the file states change at frame 15'),
        ('rot45.mp4', 'rotation by 315 degrees, which is not applied'),
        ('extras.mkv', 'not kept in the result: 2 chapters, 1 subtitles, 1 attachments'),
        ('hdr10.mp4', 'mastering data of the display'),
    ],
)
def test_what_is_lost_is_said(name, words):
    assert words in ' | '.join(read_clip(CASES / name).notes)


def test_a_thumbnail_before_the_film(ffmpeg, tmp_path):
    "The small track is marked as default by mp4's writer."
    path = tmp_path / 'thumb.mp4'
    small = ['-f', 'lavfi', '-i', 'testsrc2=size=64x48:rate=25']
    maps = ['-map', '0:v', '-map', '1:v', '-pix_fmt', 'yuv420p', '-t', '1']
    ffmpeg(*small, '-i', sample('talk.mp4'), *maps, path)
    clip = read_clip(path)
    assert (clip.width, clip.height) == (240, 192)
    assert frames_of(path)[3].std() > 10


def test_raw_mjpeg(ffmpeg, tmp_path):
    ffmpeg('-i', sample('talk.mp4'), '-frames:v', 12, '-an', '-c:v', 'mjpeg', tmp_path / 'a.mjpeg')
    assert len(frames_of(tmp_path / 'a.mjpeg')) == 12


def test_a_tag_holds_for_the_frames_that_have_it():
    "Full range begins at frame 15 of a film that shows the same before and after."
    film = frames_of(CASES / 'r_range.ts').astype(float)
    low, high = (np.percentile(film[t], (0.5, 99.5)) for t in (14, 15))
    assert np.abs(low - high).max() < 6


def test_a_rotation_that_ends():
    film = frames_of(CASES / 'r_rot.ts')
    whole = read_clip(CASES / 'r_rot.ts')
    assert film.shape == (30, 240, 192, 3)
    bars = film[15:].mean((0, 2, 3))
    assert bars[:20].max() < 3 and bars[100:140].min() > 20  # upright, between black bars
    assert film[:15].mean((0, 2, 3))[:20].min() > 20
    assert (whole[20] == film[20]).all()


def test_joined_clocks_that_overlap():
    "The second recording begins 80 ms before the first has ended; two swapped stamps are no join."
    stamps = np.r_[np.arange(15) / 25, np.arange(13, 28) / 25]
    assert np.allclose(np.diff(mend_times(stamps, 1 / 25)), 1 / 25)
    swapped = np.arange(20) / 25
    swapped[[7, 8]] = swapped[[8, 7]]
    assert mend_times(swapped, 1 / 25)[-1] == pytest.approx(19 / 25)


@pytest.mark.parametrize('name', ['~x.mp4', '~/x.mp4', 'film.png', 'film.JPG'])
def test_names_that_mislead(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    shutil.copyfile(sample('talk.mp4'), tmp_path / name.replace('~/', ''))
    assert len(read_clip(name)) == 72


# ---------------------------------------------------------------- tags of the result


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.webm'])
@pytest.mark.parametrize('size', ['320x180', '1280x720'])
def test_untagged_stays_untagged(ffmpeg, tmp_path, suffix, size):
    "A tool that reads every untagged film as BT.601 sees no shift between source and result."
    path, out = tmp_path / 'plain.mp4', tmp_path / f'out{suffix}'
    bars = ['-f', 'lavfi', '-i', f'testsrc2=size={size}:rate=25', '-frames:v', 3]
    ffmpeg(*bars, '-vf', 'hue=s=0.4', '-pix_fmt', 'yuv420p', '-crf', 4, path)
    clip = read_clip(path)
    assert clip.colour[1:] == ('unknown',) * 3
    write_video(clip.frames(), out, clip.fps, clip, crf=4)
    again = read_clip(out)
    assert again.colour[1:] == ('unknown',) * 3
    raw, as_601 = [], ['-vf', 'scale=in_color_matrix=bt601', '-pix_fmt', 'rgb24']
    for file in (path, out):
        ffmpeg('-i', file, *as_601, tmp_path / 'f.rgb')
        raw.append(np.fromfile(tmp_path / 'f.rgb', np.uint8).reshape(-1, 3).astype(float))
    assert np.abs((raw[0] - raw[1]).mean(0)).max() < 0.5


@pytest.mark.parametrize('lossless', [False, True])
def test_hdr_tags_stay(tmp_path, lossless):
    clip = read_clip(CASES / 'hdr10.mp4').trim(0, 2)
    out = write_video(clip.frames(), tmp_path / 'o.mp4', clip.fps, clip, lossless=lossless)
    assert read_clip(out).colour[2:] == ('bt2020', 'smpte2084')


# ---------------------------------------------------------------- a film that is replaced


def replaced(path, by):
    shutil.copyfile(by, path.with_name('new.mp4'))
    os.replace(path.with_name('new.mp4'), path)


@pytest.mark.parametrize('at', ['before', 'while', 'key', 'write'])
def test_a_film_that_is_replaced_is_refused(tmp_path, at):
    path = tmp_path / 'c.mp4'
    shutil.copyfile(sample('talk.mp4'), path)
    clip = read_clip(path).trim(0, 8)
    with pytest.raises(StitchError, match='changed after it was read'):
        frames = clip.frames()
        if at in ('while', 'write'):
            next(frames)
        replaced(path, sample('turn.mp4'))
        if at == 'key':
            clip_key(clip)
        elif at == 'write':
            write_video([np.zeros((192, 240, 3), np.uint8)], tmp_path / 'o.mp4', 25, clip)
        else:
            list(frames)
    assert not (tmp_path / 'o.mp4').exists()


def test_a_picture_of_a_folder_that_is_replaced(tmp_path):
    from PIL import Image

    for i in range(3):
        Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(tmp_path / f'{i}.png')
    clip = read_clip(tmp_path)
    assert len(list(clip.frames())) == 3
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / '2.png')
    with pytest.raises(StitchError, match='changed after it was read'):
        list(clip.frames())
    assert Fraction(clip.fps) == 25


def test_a_grey_film_stays_grey(tmp_path):
    "A tinted drawing in every frame; the film's chroma is exactly 0."
    from stitch_nb.paste import paste

    clip = read_clip(CASES / 'gray_face.mp4').trim(0, 3)
    H, W = clip.height, clip.width
    x0, y0, side = W // 4, H // 8, H // 2
    quad = np.array([[0, 0], [0, side], [side, side], [side, 0]], float) + [x0, y0]
    drawn = np.broadcast_to(np.uint8([190, 150, 120]), (64, 64, 3))
    result = [paste(f, drawn, quad) for f in clip.frames()]
    assert all((f.max(2) == f.min(2)).all() for f in result)
    assert any((f != s).any() for f, s in zip(result, clip.frames()))
    out = write_video(result, tmp_path / 'o.mp4', clip.fps, clip)
    film = frames_of(out).astype(int)
    assert (film.max(3) - film.min(3)).max() <= 1


def test_a_coloured_film_keeps_its_colour():
    from stitch_nb.paste import colourfulness, crop_levels, match_colourfulness

    frame = read_clip(sample('talk.mp4'))[0]
    levels = crop_levels(frame[:64, :64])
    assert colourfulness(frame) > 30 and match_colourfulness(levels, frame) is levels
