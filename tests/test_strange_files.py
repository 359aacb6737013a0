"Strange but real files: clocks, stamps, names, containers, pictures; what can't be kept is said, what can't be done is refused."

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms
from stitch_nb.core import StitchError
from stitch_nb.probe import described, local, mend_times, missing_bytes, timing
from stitch_nb.video import check_output, read_clip, read_mark, read_picture, write_video

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT.parent / 'shared' / 'cases'


def case(name):
    if not (CASES / name).exists():
        pytest.skip(f'{name} is not among the shared cases here')
    return CASES / name


# ---------------------------------------------------------------- sound and picture on one clock


def heard(path):
    "Sound where its stamps put it, by how many seconds it begins after the first picture, rate."
    with av.open(local(path)) as file:
        first = next(file.decode(file.streams.video[0]))
    with av.open(local(path)) as file:
        tracks = file.streams.audio
        default = [s for s in tracks if s.disposition & av.stream.Disposition.default]
        frames = [f for f in file.decode((default or tracks)[0]) if f.pts is not None]
    rate, begin = frames[0].rate, frames[0].pts * frames[0].time_base
    sound = np.zeros(int((frames[-1].pts * frames[-1].time_base - begin + 1) * rate), np.float32)
    for frame in frames:
        wave = frame.to_ndarray().astype(np.float32)
        wave = (
            wave.mean(0)
            if frame.format.is_planar
            else wave.reshape(-1, len(frame.layout.channels)).mean(1)
        )
        at = round((frame.pts * frame.time_base - begin) * rate)
        sound[at : at + len(wave)] = wave
    return sound, float(begin - first.pts * first.time_base), rate


def moved(source, result, skipped=0.0):
    "Seconds by which the result's sound comes later than the source's, both against the picture."
    (x, a, rate), (y, b, same) = heard(source), heard(result)
    assert rate == same
    n = len(x) + len(y)
    match = np.fft.irfft(np.fft.rfft(y, 2 * n) * np.fft.rfft(x, 2 * n).conj())
    k = int(match.argmax())
    return (k if k < n else k - 2 * n) / rate + b - a + skipped


@pytest.fixture(scope='module')
def noisy(ffmpeg, tmp_path_factory):
    "Three seconds with a sound that has one place only: noise."
    path = tmp_path_factory.mktemp('noisy') / 'noisy.mp4'
    picture = ['-f', 'lavfi', '-i', 'testsrc2=size=64x48:rate=25:duration=3']
    noise = ['-f', 'lavfi', '-i', 'anoisesrc=seed=7:sample_rate=22050:duration=3']
    ffmpeg(*picture, *noise, '-pix_fmt', 'yuv420p', '-g', '25', '-c:a', 'aac', path)
    return path


def join_midstream(data, packet=188, part=8):
    return data[len(data) // part // packet * packet :]


@pytest.fixture(scope='module')
def clocks(ffmpeg, noisy, tmp_path_factory):
    "One file for each way in which picture and sound begin apart."
    room, made = tmp_path_factory.mktemp('clocks'), {}

    def put(name, *args):
        made[name] = room / name
        ffmpeg(*args, made[name])

    copy = ['-map', '0:v', '-map', '1:a', '-c', 'copy']
    for kind in ('ts', 'm2ts', 'mkv', 'mp4'):
        put(f'audio_late.{kind}', '-i', noisy, '-itsoffset', '0.5', '-i', noisy, *copy)
        put(f'video_late.{kind}', '-itsoffset', '0.4', '-i', noisy, '-i', noisy, *copy)
    put('plain.ts', '-i', noisy, '-c', 'copy')
    put('frag.mp4', '-i', noisy, '-c', 'copy', '-movflags', 'frag_keyframe+empty_moov')
    late = ['-itsoffset', '0.4', '-i', noisy, '-i', noisy, *copy]
    put('frag_late.mp4', *late, '-movflags', 'frag_keyframe+empty_moov+default_base_moof')
    put('film.vob', '-i', noisy, '-c:v', 'mpeg2video', '-c:a', 'mp2', '-ar', '44100')
    made['joined.ts'] = room / 'joined.ts'
    made['joined.ts'].write_bytes(join_midstream(made['plain.ts'].read_bytes()))
    return made


CLOCKS = [f'{a}_late.{k}' for a in ('audio', 'video') for k in ('ts', 'm2ts', 'mkv', 'mp4')]
CLOCKS += ['plain.ts', 'frag.mp4', 'frag_late.mp4', 'film.vob', 'joined.ts']


@pytest.mark.parametrize('name', CLOCKS)
@pytest.mark.parametrize('suffix', ['.mp4', '.mkv'])
def test_sound_stays_with_the_picture(clocks, tmp_path, name, suffix):
    "Whole, and a part of the frames: within 10 ms."
    clip = read_clip(clocks[name])
    write_video(clip, tmp_path / f'all{suffix}', clip.fps, audio_from=clip)
    assert abs(moved(clip.path, tmp_path / f'all{suffix}')) < 0.01
    part = clip[10:40]
    write_video(part, tmp_path / f'part{suffix}', clip.fps, audio_from=part)
    skipped = float(10 / clip.fps)
    assert abs(moved(clip.path, tmp_path / f'part{suffix}', skipped)) < 0.01
    assert read_clip(tmp_path / f'part{suffix}').n_frames == 30


def test_the_offset_is_known(clocks):
    assert abs(read_clip(clocks['video_late.ts']).offset - 0.4) < 0.05
    assert read_clip(clocks['audio_late.ts']).offset == 0


@pytest.mark.parametrize('name', ['audio_late.ts', 'video_late.ts', 'joined.ts', 'two_audio.mkv'])
def test_shared_clocks(tmp_path, name):
    clip = read_clip(case(name))
    write_video(clip, tmp_path / 'o.mp4', clip.fps, audio_from=clip)
    assert abs(moved(clip.path, tmp_path / 'o.mp4')) < 0.01


# ---------------------------------------------------------------- stamps


@pytest.mark.parametrize('name, fps, frames', [('onedup.mkv', 25, 72), ('stutter2ms.mp4', 25, 72)])
def test_bad_stamps_of_shared_files(name, fps, frames):
    clip = read_clip(case(name))
    assert (clip.fps, len(clip), clip.order) == (fps, frames, None) and 'uneven' in clip.notes[0]


def test_jitter_keeps_every_frame():
    clip = read_clip(case('jitter.webm'))
    assert len(clip) == 40 and abs(clip.fps - 30) < 0.1 and clip.order is None


@pytest.mark.parametrize('rate', [24, 25, 30, 50])
@pytest.mark.parametrize('kind', ['twice', 'three', 'stutter', 'jitter', 'first', 'last'])
def test_every_frame_once(rate, kind):
    ticks = np.round(np.arange(120) * 90000 / rate).astype(np.int64)
    if kind == 'jitter':
        ticks += np.random.default_rng(0).integers(-40000 // rate, 40000 // rate, 120)
        ticks.sort()
    elif kind == 'stutter':
        ticks[30] = ticks[29] + 180
    else:
        at = dict(twice=20, three=20, first=1, last=119)[kind]
        ticks[at : at + (2 if kind == 'three' else 1)] = ticks[at - 1]
    found = timing(ticks, Fraction(1, 90000), Fraction(rate))
    assert (found['fps'], found['n_frames'], found['order']) == (rate, 120, None)


def test_a_clock_that_jumps_is_closed():
    times = np.r_[np.arange(20) / 25, 90_000 + np.arange(20) / 25, 3 + np.arange(20) / 25]
    assert np.allclose(np.diff(mend_times(times, 1 / 25)), 1 / 25)


def test_a_rate_is_given_for_who_knows_better(tmp_path):
    for i in range(3):
        Image.new('RGB', (16, 12)).save(tmp_path / f'{i}.png')
    assert read_clip(tmp_path, fps='30000/1001').fps == Fraction(30000, 1001)


# ---------------------------------------------------------------- text is not a fact


@pytest.mark.parametrize(
    'words',
    [
        'Audio: opus test',
        'rotation of 90',
        'The end of file formats',
        'truncated',
        'moov atom not found',
    ],
)
def test_a_title_says_nothing(ffmpeg, tmp_path, words):
    room = tmp_path / words.replace(':', '')
    room.mkdir()
    name = room / f'{words.replace(":", "")}.mp4'
    tags = ['-metadata', f'title={words}', '-metadata', f'comment={words}']
    source = ['-f', 'lavfi', '-i', 'testsrc2=size=64x48:rate=25', '-frames:v', '4']
    ffmpeg(*source, '-pix_fmt', 'yuv420p', *tags, name)
    clip = read_clip(name)
    assert (len(clip), clip.has_audio, clip.rotation, clip.notes) == (4, False, 0, ())


@pytest.mark.parametrize(
    'name, frames',
    [
        ('title_audio.mp4', 3),
        ('title_eof.mp4', 72),
        ('truncated.mp4', 3),
        ('trail_id3.mp4', 72),
        ('silent_comment.mp4', 12),
        ('truncation_0.7.mp4', 12),
    ],
)
def test_shared_files_with_text(name, frames):
    clip = read_clip(case(name))
    assert len(clip) == len(list(clip)) == frames
    assert clip.has_audio == (name in ('title_eof.mp4', 'trail_id3.mp4', 'truncation_0.7.mp4'))


@pytest.mark.parametrize(
    'tail', [b'TAG' + bytes(125), b'a trailer in words', b'\x00\x00\x10\x00skip', b'\xff' * 78]
)
def test_bytes_behind_the_last_box_are_not_missing(make_clip, tmp_path, tail):
    path = tmp_path / 'a.mp4'
    path.write_bytes(make_clip('tail.mp4').read_bytes() + tail)
    assert missing_bytes(path) == 0 and len(read_clip(path)) == 10


# ---------------------------------------------------------------- names, playlists


@pytest.mark.parametrize(
    'name',
    ['take:2.mp4', '12:30.mp4', '-y.mp4', 'tcp:x.mp4', 'concat:a.mp4', '%03d.mp4', 'a|b.mp4'],
)
@pytest.mark.skipif(sys.platform == 'win32', reason='such names are not allowed there')
def test_names_that_look_like_commands(make_clip, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(make_clip('name.mp4', audio=True).read_bytes())
    clip = read_clip(name)
    assert len(list(clip)) == 10
    out = 'o' + name if name[0] != '-' else '-o.mp4'
    assert check_output(clip, out) == []
    assert len(read_clip(write_video(clip, out, clip.fps, audio_from=clip))) == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, out])


LISTS = {
    'ffconcat': 'ffconcat version 1.0\nfile real.mp4\n',
    'hls': '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n',
    'sdp': 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n',
    'dash': '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
}


@pytest.mark.parametrize('kind', LISTS)
@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'm3u8', 'txt'])
def test_lists_of_other_files_are_refused(make_clip, tmp_path, kind, suffix):
    (tmp_path / 'real.mp4').write_bytes(make_clip('real.mp4').read_bytes())
    (tmp_path / f'list.{suffix}').write_text(LISTS[kind])
    with pytest.raises(StitchError, match='a list of other files|not a video'):
        read_clip(tmp_path / f'list.{suffix}')


@pytest.mark.skipif(sys.platform == 'win32', reason='such names are not allowed there')
def test_no_network(tmp_path, monkeypatch):
    import socket

    monkeypatch.chdir(tmp_path)
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.settimeout(0.3)
        port = server.getsockname()[1]
        for name in (f'http:/127.0.0.1:{port}/x.mp4', f'tcp:/127.0.0.1:{port}'):
            with pytest.raises(StitchError):
                read_clip(name)
            write_video([np.zeros((16, 16, 3), np.uint8)] * 2, f'{name}.mp4', 25)
            assert Path(f'{name}.mp4').is_file()
        with pytest.raises(TimeoutError):
            server.accept()


# ---------------------------------------------------------------- bombs


def test_too_many_pixels(ffmpeg, tmp_path):
    big = tmp_path / 'big.mp4'
    ffmpeg('-f', 'lavfi', '-i', 'color=size=1000x1000', '-frames:v', '2', big)
    with pytest.raises(StitchError, match='max_pixels=1000000'):
        read_clip(big, max_pixels=999_999)
    assert len(list(read_clip(big, max_pixels=1_000_000))) == 2
    Image.new('1', (1000, 1000)).save(tmp_path / 'a.png')
    with pytest.raises(StitchError, match='max_pixels=1000000'):
        read_clip(tmp_path / 'a.png', max_pixels=999_999)


def test_a_bomb_of_a_picture(tmp_path):
    "A hundred thousand by a hundred thousand pixels, said by 45 bytes."
    import struct, zlib

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    head = chunk(b'IHDR', struct.pack('>IIBBBBB', 100_000, 100_000, 8, 2, 0, 0, 0))
    bomb = (
        b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(bytes(99))) + chunk(b'IEND', b'')
    )
    (tmp_path / 'b.png').write_bytes(bomb)
    for path in (tmp_path / 'b.png', tmp_path):
        with pytest.raises(StitchError) as e:
            read_clip(path)
        assert '\n' not in str(e.value) and 'b.png' in str(e.value)


# ---------------------------------------------------------------- what the result needs


@pytest.mark.parametrize('rate, suffix', [(8000, '.mp4'), (11025, '.mp4'), (8000, '.mov')])
def test_sound_that_cannot_be_copied(ffmpeg, tmp_path, rate, suffix):
    source = ['-f', 'lavfi', '-i', 'testsrc2=size=64x48:rate=25:duration=1']
    source += ['-f', 'lavfi', '-i', f'sine=sample_rate={rate}:duration=1']
    ffmpeg(*source, '-c:v', 'mpeg4', '-c:a', 'libmp3lame', '-ar', rate, tmp_path / 's.avi')
    clip = read_clip(tmp_path / 's.avi')
    said = check_output(clip, tmp_path / f'o{suffix}')
    write_video(clip, tmp_path / f'o{suffix}', clip.fps, audio_from=clip)
    result = read_clip(tmp_path / f'o{suffix}')
    assert result.has_audio and (result.audio_codec == 'mp3') != any(
        'again as aac' in n for n in said
    )


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.webm'])
def test_sound_of_no_known_kind(noisy, tmp_path, suffix):
    "The name of the codec is one that nobody has heard of."
    path = tmp_path / 's.mp4'
    path.write_bytes(noisy.read_bytes().replace(b'mp4a', b'zzzz').replace(b'esds', b'zzzz'))
    clip = read_clip(path)
    assert any('silent' in n for n in check_output(clip, tmp_path / f'o{suffix}'))
    write_video(clip, tmp_path / f'o{suffix}', clip.fps, audio_from=clip)
    result = read_clip(tmp_path / f'o{suffix}')
    assert len(result) == len(clip) and not result.has_audio


def test_output_is_refused_before_the_work(make_clip, tmp_path, monkeypatch):
    clip = read_clip(make_clip('before.mp4'))
    assert check_output(clip, tmp_path / 'new' / 'o.mp4') == []
    assert not list(tmp_path.iterdir())
    (tmp_path / 'file').touch()
    with pytest.raises(StitchError, match='nothing can be written'):
        check_output(clip, tmp_path / 'file' / 'o.mp4')
    with pytest.raises(StitchError, match='choose .mp4'):
        check_output(clip, tmp_path / 'o.gif')
    import shutil

    few = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: few)
    with pytest.raises(StitchError, match='no room left'):
        check_output(clip, tmp_path / 'o.mp4')


@pytest.mark.parametrize('suffix', ['.mp4', '.mov', '.mkv', '.webm'])
def test_the_result_says_what_it_is(tmp_path, suffix):
    frames = [np.zeros((16, 16, 3), np.uint8)] * 2
    write_video(frames, tmp_path / f'a{suffix}', 25)
    write_video(frames, tmp_path / f'b{suffix}', 25, mark=False)
    assert 'compositeWithTrainedAlgorithmicMedia' in read_mark(tmp_path / f'a{suffix}')
    assert read_mark(tmp_path / f'b{suffix}') == ''


# ---------------------------------------------------------------- nothing silently less


def test_the_default_sound_is_kept(ffmpeg, tmp_path):
    picture = ['-f', 'lavfi', '-i', 'testsrc2=size=64x48:rate=25:duration=1']
    tones = [
        x for f in (300, 2000) for x in ('-f', 'lavfi', '-i', f'sine=frequency={f}:duration=1')
    ]
    maps = [
        '-map',
        '0',
        '-map',
        '1',
        '-map',
        '2',
        '-disposition:a:0',
        '0',
        '-disposition:a:1',
        'default',
    ]
    ffmpeg(*picture, *tones, *maps, '-pix_fmt', 'yuv420p', tmp_path / 's.mkv')
    clip = read_clip(tmp_path / 's.mkv')
    assert any('2 sound tracks' in n for n in clip.notes)
    write_video(clip, tmp_path / 'o.mp4', clip.fps, audio_from=clip)
    sound, _, rate = heard(tmp_path / 'o.mp4')
    loudest = np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound)
    assert abs(loudest - 2000) < 20


@pytest.mark.parametrize('kind', ['webp', 'png', 'apng', 'tif', 'gif'])
def test_all_pictures_of_one_file(tmp_path, kind):
    grey = [Image.new('RGB', (32, 24), (v, v, v)) for v in (10, 90, 200)]
    more = dict(save_all=True, append_images=grey[1:])
    extra = (
        {}
        if kind == 'tif'
        else dict(duration=100, **({'lossless': True} if kind == 'webp' else {}))
    )
    form = 'PNG' if kind == 'apng' else None
    grey[0].save(tmp_path / f'a.{kind}', format=form, **more, **extra)
    clip = read_clip(tmp_path / f'a.{kind}')
    assert [int(f[5, 5, 0]) for f in clip] == [10, 90, 200] and int(clip[2][0, 0, 0]) == 200
    assert clip.fps == (25 if kind == 'tif' else 10) and clip.notes == ()


def test_the_demo_of_this_repository():
    clip = read_clip(ROOT / 'nbs' / 'images' / 'demo.webp')
    with Image.open(clip.path) as im:
        assert len(clip) == len(list(clip)) == im.n_frames > 1


def test_pages_in_a_folder_are_said(tmp_path):
    grey = [Image.new('RGB', (32, 24), (v, v, v)) for v in (10, 90)]
    grey[0].save(tmp_path / 'a.tif', save_all=True, append_images=grey[1:])
    assert any('several pictures' in n for n in read_clip(tmp_path).notes)


@pytest.mark.parametrize('pixels', ['yuv422p', 'yuv444p', 'yuv420p10le', 'yuv422p10le'])
def test_finer_pixels_are_said(make_clip, tmp_path, pixels):
    clip = read_clip(make_clip(f'{pixels}.mkv', codec=('-c:v', 'libx264', '-pix_fmt', pixels)))
    assert any(pixels in n for n in check_output(clip, tmp_path / 'o.mp4'))
    deep = pixels.endswith('10le')
    assert any(pixels in n for n in check_output(clip, tmp_path / 'o.mp4', lossless=True)) == deep


def test_fields_are_said(ffmpeg, tmp_path):
    fields = 'fps=50,tinterlace=mode=interleave_top,setfield=tff'
    source = ['-f', 'lavfi', '-i', 'testsrc2=size=64x48:rate=50:duration=1', '-vf', fields]
    ffmpeg(*source, '-flags', '+ilme+ildct', '-pix_fmt', 'yuv420p', tmp_path / 'i.mp4')
    assert any('interlaced' in n for n in read_clip(tmp_path / 'i.mp4').notes)


def test_a_size_that_changes(ffmpeg, tmp_path):
    for name, size in (('a.ts', '96x48'), ('b.ts', '48x48')):
        source = ['-f', 'lavfi', '-i', f'color=white:size={size}:rate=25', '-frames:v', '5']
        ffmpeg(*source, '-pix_fmt', 'yuv420p', '-bsf:v', 'dump_extra', tmp_path / name)
    both = (tmp_path / 'a.ts').read_bytes() + (tmp_path / 'b.ts').read_bytes()
    (tmp_path / 'c.ts').write_bytes(both)
    clip = read_clip(tmp_path / 'c.ts')
    last = list(clip)[-1]
    assert any('changes from 96x48 to 48x48' in n for n in clip.notes) and last.shape == (48, 96, 3)
    assert last[24, 10].max() < 10 and last[24, 48].min() > 245  # bars, not a stretched picture


@pytest.mark.parametrize('lossless', [False, True])
def test_pixels_stay_oblong(make_clip, tmp_path, lossless):
    clip = read_clip(make_clip('oblong.mp4', filters='setsar=4/3'))
    write_video(clip, tmp_path / 'o.mp4', 25, audio_from=clip, lossless=lossless)
    assert read_clip(tmp_path / 'o.mp4').sar == Fraction(4, 3)


def test_oblong_pixels_turned():
    assert read_clip(case('ana_rot.mp4')).sar == Fraction(3, 4)


def test_float_tiff(tmp_path):
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / 'f.tif')
    assert (read_picture(tmp_path / 'f.tif')[..., 0].ravel() == np.arange(256)).all()
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'rgb.tif', ramp[..., None].repeat(3, -1), photometric='rgb')
    assert (read_picture(tmp_path / 'rgb.tif')[..., 2].ravel() == np.arange(256)).all()
    assert len(read_clip(tmp_path / 'rgb.tif')) == 1


def test_float_tiff_as_a_clip(tmp_path):
    "Every page comes, and frames are what reading one picture gives."
    tifffile = pytest.importorskip('tifffile')
    pages = np.linspace(0, 1, 4, dtype=np.float32)[:, None, None, None]
    pages = np.broadcast_to(pages, (4, 12, 16, 3))
    tifffile.imwrite(tmp_path / 'one.tif', pages[2], photometric='rgb')
    tifffile.imwrite(tmp_path / 'four.tif', pages, photometric='rgb')
    assert [f.mean() for f in read_clip(tmp_path / 'one.tif')] == [170]
    clip = read_clip(tmp_path / 'four.tif')
    assert [f.mean() for f in clip] == [0, 85, 170, 255] and clip[3].mean() == 255


@pytest.mark.parametrize('brightest', [1.01, 1.5, 8])
def test_a_highlight_does_not_blacken_floats(tmp_path, brightest):
    "Resampling and HDR pass one: what is above is white, the rest keeps its brightness."
    values = np.full((12, 16), 0.5, np.float32)
    values[0, 0] = brightest
    Image.fromarray(values).save(tmp_path / 'f.tif')
    found = read_picture(tmp_path / 'f.tif')[..., 0]
    assert found[0, 0] == 255 and (found.ravel()[1:] == 128).all()


def test_whole_numbers_of_32_bits(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'u.tif', np.full((12, 16), 2**31, np.uint32))
    assert (read_picture(tmp_path / 'u.tif') == 128).all()


def test_pages_of_different_sizes_are_said(tmp_path):
    small = Image.new('RGB', (8, 6))
    Image.new('RGB', (16, 12)).save(tmp_path / 'a.tif', save_all=True, append_images=[small])
    clip = read_clip(tmp_path / 'a.tif')
    assert len(clip) == 1 and 'differ in size' in clip.notes[0]


def test_the_limit_on_pixels_holds_for_every_page(tmp_path, monkeypatch):
    "A limit that was raised for reading is raised for the frames, too."
    from stitch_nb import video

    grey = [Image.new('RGB', (40, 30), (v, v, v)) for v in (10, 90)]
    grey[0].save(tmp_path / 'a.webp', save_all=True, append_images=grey[1:], lossless=True)
    clip = read_clip(tmp_path / 'a.webp', max_pixels=1200)
    monkeypatch.setattr(video._opened.__wrapped__, '__defaults__', (100,))
    assert [f.mean() for f in clip] == [10, 90]


def test_a_profile_is_obeyed(tmp_path):
    "Lab says what colour is meant: red of sRGB, stored under a profile that swaps nothing, and P3."
    skin = read_picture(case('p3') / '000.png').reshape(-1, 3).astype(int)
    assert (np.abs(skin - (201, 154, 120)).max(1) <= 3).any()
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / 's.png', icc_profile=plain)
    assert (read_picture(tmp_path / 's.png') == noise).all()


def test_an_opaque_gif_has_no_alpha():
    clip = read_clip(case('opaque.gif'))
    assert not clip.has_alpha and clip.notes == () and len(clip) == 5


# ---------------------------------------------------------------- colour tags


@pytest.mark.parametrize('matrix', [8, 10, 3])
def test_rare_matrices_are_read_or_named(ffmpeg, make_clip, tmp_path, matrix):
    source = make_clip('tags.mp4', codec=('-c:v', 'libx264', '-pix_fmt', 'yuv420p'))
    change = (
        f'h264_metadata=matrix_coefficients={matrix}:colour_primaries=1:transfer_characteristics=9'
    )
    ffmpeg('-i', source, '-c', 'copy', '-bsf:v', change, tmp_path / 'c.mp4')
    clip = read_clip(tmp_path / 'c.mp4')
    assert len(list(clip)) == len(clip) == 10
    assert (matrix == 10) == any('BT.2020 with constant' in n for n in clip.notes)


def test_a_matrix_that_we_cannot_read_is_named(ffmpeg, make_clip, tmp_path):
    change = 'h264_metadata=matrix_coefficients=14'
    ffmpeg('-i', make_clip('ictcp.mp4'), '-c', 'copy', '-bsf:v', change, tmp_path / 'c.mp4')
    with pytest.raises(StitchError, match='ictcp'):
        read_clip(tmp_path / 'c.mp4')


def test_ycgco_is_ycgco(ffmpeg, tmp_path):
    "Colours coded by hand, read back."
    want = np.array([[200, 150, 120], [30, 90, 220], [250, 250, 250], [0, 0, 0]], float)
    r, g, b = want.T
    luma, green, orange = r / 4 + g / 2 + b / 4, g / 2 - r / 4 - b / 4, r / 2 - b / 2
    coded = np.stack([16 + luma * 219 / 255, 128 + green * 224 / 255, 128 + orange * 224 / 255])
    planes = coded.round().clip(0, 255).astype(np.uint8)[:, None].repeat(16, 1).repeat(16, 2)
    (tmp_path / 'raw').write_bytes(planes.tobytes())
    source = ['-f', 'rawvideo', '-pix_fmt', 'yuv444p', '-s', '64x16', '-i', tmp_path / 'raw']
    tags = 'h264_metadata=matrix_coefficients=8:video_full_range_flag=0'
    ffmpeg(
        *source,
        '-c:v',
        'libx264',
        '-qp',
        '0',
        '-bsf:v',
        tags,
        tmp_path / 'y.mp4',
    )
    assert np.abs(read_clip(tmp_path / 'y.mp4')[0][8, 8::16] - want).max() <= 3


def test_shared_colours():
    for name, frames in (('ycgco.mp4', 3), ('colr_reserved.mp4', 12)):
        clip = read_clip(case(name))
        assert len(list(clip)) == frames


# ---------------------------------------------------------------- turned and mirrored


@pytest.mark.parametrize('turn', [0, 90, 180, 270])
def test_mirrors(ffmpeg, make_clip, tmp_path, turn):
    "Front cameras ask for a mirror; ffmpeg's own filter is the judge."
    source = make_clip('mirror.mp4', size='64x48', codec=('-c:v', 'libx264rgb', '-crf', '0'))
    ask = ['-display_rotation', turn, '-display_hflip', '-i', source, '-c', 'copy']
    ffmpeg(*ask, tmp_path / 'm.mp4')
    ffmpeg('-i', tmp_path / 'm.mp4', '-frames:v', '1', tmp_path / 'want.png')
    assert (read_clip(tmp_path / 'm.mp4')[0] == read_picture(tmp_path / 'want.png')).all()


# ---------------------------------------------------------------- a second look: forty new kinds

CARD = ['-f', 'lavfi', '-i', 'testsrc2=size=96x64:rate=25', '-pix_fmt', 'yuv420p']
DNXHD = '-c:v dnxhd -profile:v dnxhr_sq'
HEVC = '-c:v libx265 -x265-params log-level=error:pools=1'


@pytest.mark.parametrize(
    'name, codec',
    [
        ('plain.ts', '-c:v libx264 -g 20'),
        ('open.ts', '-c:v libx264 -bf 3 -x264-params open-gop=1:keyint=20'),
        ('stripes.ts', '-c:v libx264 -x264-params intra-refresh=1:keyint=20'),
        ('mpeg2.ts', '-c:v mpeg2video -g 12 -bf 2'),
        ('camera.m2ts', '-c:v libx264 -g 20 -f mpegts -mpegts_m2ts_mode 1'),
    ],
)
def test_a_transport_stream_is_entered_in_its_middle(ffmpeg, tmp_path, monkeypatch, name, codec):
    "The same frames, bit by bit, and not all of those before them are decoded for it."
    from stitch_nb import probe

    ffmpeg(*CARD, '-frames:v', 70, *codec.split(), tmp_path / name)
    clip = read_clip(tmp_path / name)
    whole, decoded, real = list(clip.frames()), [], probe.with_turns

    def count(frames):
        for found in real(frames):
            decoded.append(found)
            yield found

    monkeypatch.setattr(probe, 'with_turns', count)
    for k in (69, 45, 20, 19, 1):
        decoded.clear()
        assert (clip[k] == whole[k]).all()
        assert len(decoded) <= (22 if 'stripes' not in name else 70)
    part = clip[41:50]
    assert all((a == b).all() for a, b in zip(part.frames(), whole[41:50], strict=True))


def test_progress_from_the_beginning(ffmpeg, tmp_path):
    "An hour of film is looked through with a bar, and its end is known before."
    ffmpeg(*CARD, '-frames:v', 60, tmp_path / 'a.ts')
    heard = []
    read_clip(tmp_path / 'a.ts', progress=lambda done, total, text: heard.append((done, total)))
    assert heard[0][0] <= 8 and all(done <= total for done, total in heard)
    assert abs(heard[0][1] - 60) <= 2


def with_box(path, kind, content, beside):
    "An mp4 (its index last) with one more box behind `beside` in its picture's description."
    data = bytearray(path.read_bytes())
    moov = data.rfind(b'moov')
    at = data.find(beside, moov) - 4
    at += int.from_bytes(data[at : at + 4], 'big')
    box = (8 + len(content)).to_bytes(4, 'big') + kind + content
    data[at:at] = box
    for name in (b'moov', b'trak', b'mdia', b'minf', b'stbl', b'stsd', b'avc1'):
        i = data.find(name, moov) - 4
        size = int.from_bytes(data[i : i + 4], 'big') + len(box)
        data[i : i + 4] = size.to_bytes(4, 'big')
    path.write_bytes(data)
    return path


APERTURE = (64, 1, 48, 1, 0, 1, 0, 1)  # width, height, place: fractions


@pytest.mark.parametrize(
    'kind, content, said',
    [
        (b'clap', b''.join(n.to_bytes(4, 'big') for n in APERTURE), '64x48 of its'),
        (b'dvcC', bytes([1, 0, 5 << 1, 1 << 3 | 5]) + bytes(20), 'profile 5'),
        (b'dvvC', bytes([1, 0, 8 << 1, 1 << 3 | 5, 1 << 4]) + bytes(19), 'Dolby Vision'),
    ],
)
def test_boxes_that_the_decoder_does_not_hear_of(ffmpeg, tmp_path, kind, content, said):
    path = tmp_path / 'a.mp4'
    ffmpeg(*CARD, '-frames:v', 5, path)
    assert not any(said in n for n in read_clip(path).notes)
    clip = read_clip(with_box(path, kind, content, b'avcC'))
    assert any(said in n for n in clip.notes), clip.notes
    assert len(list(clip.frames())) == 5
    assert ('profile 5' in ' '.join(clip.notes)) == (kind == b'dvcC')


def test_what_is_cropped_at_the_left(ffmpeg, tmp_path):
    "Also where the crop is no multiple of what the processor likes."
    crop = 'h264_metadata=crop_left=18:crop_right=32:crop_top=6:crop_bottom=8'
    card = ['-f', 'lavfi', '-i', 'testsrc2=size=240x192:rate=25', '-pix_fmt', 'yuv420p']
    ffmpeg(*card, '-frames:v', 5, tmp_path / 'a.mp4')
    ffmpeg('-i', tmp_path / 'a.mp4', '-c', 'copy', '-bsf:v', crop, tmp_path / 'b.mp4')
    part = read_clip(tmp_path / 'b.mp4')[2]
    assert (part == read_clip(tmp_path / 'a.mp4')[2][6:184, 18:208]).all(2).mean() > 0.9
    assert part.shape == (178, 190, 3)


@pytest.mark.parametrize(
    'kind, said',
    [
        ('pipe', 'a pipe or a device'),
        ('lost', 'a link that leads nowhere'),
        ('loop', 'cannot be opened'),
        ('long', 'cannot be opened'),
        ('null', 'cannot be opened'),
        ('lfs', 'git lfs pull'),
        ('page', 'a web page'),
        ('words', 'only sound or subtitles'),
        ('text', 'not a video'),
        ('zeros', 'not a video'),
        ('zip', 'not a video'),
    ],
)
@pytest.mark.skipif(sys.platform == 'win32', reason='pipes and links of Unix')
def test_what_is_no_film(ffmpeg, tmp_path, kind, said):
    import os

    path = tmp_path / dict(long='x' * 300 + '.mp4', null='a\0b.mp4').get(kind, 'a.mp4')
    texts = dict(
        lfs=b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n',
        page=b'<!DOCTYPE html>\n<html><body>404</body></html>',
        text=b'hello\n' * 99,
        zeros=bytes(9999),
        zip=b'PK\x03\x04' + bytes(999),
    )
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind in ('lost', 'loop'):
        path.symlink_to('a.mp4' if kind == 'loop' else 'nowhere.mp4')
    elif kind == 'words':
        (tmp_path / 's.srt').write_text('1\n00:00:00,000 --> 00:00:01,000\nhello\n')
        path = tmp_path / 'a.mkv'
        ffmpeg('-i', tmp_path / 's.srt', path)
    elif kind in texts:
        path.write_bytes(texts[kind])
    with pytest.raises(StitchError, match=said) as error:
        read_clip(path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'name, options, frames, fps',
    [
        ('vfr.mp4', r'-vf select=not(mod(n\,3))+lt(n\,10) -fps_mode vfr -t 2', 51, '25'),
        ('soft.ts', '-r 24000/1001 -t 1 -c:v libx264 -x264-params pulldown=32', 24, '24000/1001'),
        ('fields.mpg', '-vf fps=50,tinterlace=interleave_top -t 1 -c:v mpeg2video', 25, '25'),
        ('sar.mp4', '-vf setsar=16/11 -t 1', 25, '25'),
        ('ten.mp4', '-t 1 -c:v libx264 -pix_fmt yuv420p10le', 25, '25'),
        ('four.mp4', '-t 1 -pix_fmt yuv444p', 25, '25'),
        ('pro.mov', '-t 1 -c:v prores_ks -pix_fmt yuv422p10le', 25, '25'),
        ('a.gif', '-t 1 -pix_fmt rgb8', 25, '25'),
        ('a.apng', '-t 1 -pix_fmt rgb24 -f apng', 25, '25'),
        ('grey.mkv', '-t 1 -c:v ffv1 -pix_fmt gray16le', 25, '25'),
        ('full.mp4', '-t 1 -vf scale=out_range=pc -color_range pc', 25, '25'),
        ('one.mp4', '-frames:v 1', 1, '25'),
        ('early.mkv', '-t 1 -output_ts_offset -0.5 -avoid_negative_ts disabled', 25, '25'),
        ('open.mp4', '-t 1 -bf 3 -x264-params open-gop=1:keyint=8', 25, '25'),
        ('frag.mp4', '-t 1 -movflags frag_keyframe+empty_moov -g 5', 25, '25'),
        ('late.mp4', '-t 1 -bf 3 -movflags frag_keyframe+negative_cts_offsets', 25, '25'),
        ('av1.mp4', '-t 1 -c:v libsvtav1 -preset 12', 25, '25'),
        ('grain.mkv', '-t 1 -c:v libsvtav1 -preset 12 -svtav1-params film-grain=20', 25, '25'),
        ('av1.obu', '-t 1 -c:v libsvtav1 -preset 12', 25, '25'),
        ('vp9.ivf', '-t 1 -c:v libvpx-vp9 -deadline realtime', 25, '25'),
        ('ten.webm', '-t 1 -c:v libvpx-vp9 -deadline realtime -pix_fmt yuv420p10le', 25, '25'),
        ('rgb.webm', '-t 1 -c:v libvpx-vp9 -deadline realtime -pix_fmt gbrp', 25, '25'),
        ('hidden.webm', '-t 1 -c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 16', 25, '25'),
        ('twelve.mp4', f'-t 1 -pix_fmt yuv422p12le {HEVC}', 25, '25'),
        ('grey.mp4', f'-t 1 -pix_fmt gray10le {HEVC}', 25, '25'),
        ('raw.hevc', f'-t 1 {HEVC}', 25, '25'),
        ('cra.mp4', f'-t 1 {HEVC}:open-gop=1:keyint=8', 25, '25'),
        ('hlg.mp4', f'-t 1 {HEVC}:transfer=arib-std-b67:colormatrix=bt2020nc', 25, '25'),
        ('packed.avi', '-t 1 -c:v mpeg4 -bf 2 -vtag DX50', 25, '25'),
        ('old.avi', '-t 1 -c:v msmpeg4', 25, '25'),
        ('a.wmv', '-t 1 -c:v wmv2', 25, '25'),
        ('a.flv', '-t 1 -c:v flv', 25, '25'),
        ('a.ogv', '-t 1 -c:v libtheora', 25, '25'),
        ('a.swf', '-t 1 -c:v flv', 25, '25'),
        ('a.rm', '-t 1 -vf scale=128:96 -c:v rv20', 25, '25'),
        ('a.wtv', '-t 1 -c:v mpeg2video', 25, '25'),
        ('a.mxf', '-t 1 -c:v mpeg2video -pix_fmt yuv422p', 25, '25'),
        ('a.vob', '-t 1 -c:v mpeg2video -f vob', 25, '25'),
        ('a.m2v', '-t 1 -c:v mpeg2video', 25, '25'),
        ('a.y4m', '-t 1 -pix_fmt yuv444p10le -strict -1', 25, '25'),
        ('a.3gp', '-t 1 -vf scale=176:144 -c:v h263', 25, '25'),
        ('ntsc.dv', '-t 1 -vf scale=720:480 -r 30000/1001 -pix_fmt yuv411p', 30, '30000/1001'),
        ('huff.avi', '-t 1 -pix_fmt yuv422p -c:v huffyuv', 25, '25'),
        ('ut.avi', '-t 1 -pix_fmt gbrp -c:v utvideo', 25, '25'),
        ('raw.avi', '-t 1 -pix_fmt bgr24 -c:v rawvideo', 25, '25'),
        ('uyvy.avi', '-t 1 -pix_fmt uyvy422 -c:v rawvideo', 25, '25'),
        ('deep.nut', '-t 1 -pix_fmt rgb48le -c:v rawvideo', 25, '25'),
        ('float.nut', '-t 1 -pix_fmt gbrpf32le -c:v rawvideo', 25, '25'),
        ('mono.nut', '-t 1 -pix_fmt monob -c:v rawvideo', 25, '25'),
        ('v210.mov', '-t 1 -pix_fmt yuv422p10le -c:v v210', 25, '25'),
        ('png.mov', '-t 1 -pix_fmt rgba -c:v png', 25, '25'),
        ('dnx.mov', f'-t 1 -vf scale=256:128 -pix_fmt yuv422p {DNXHD}', 25, '25'),
        ('svq.mov', '-t 1 -pix_fmt yuv410p -c:v svq1', 25, '25'),
        ('half.mp4', '-r 1/2 -t 12', 6, '1/2'),
        ('double.mp4', '-r 120000/1001 -t 0.5', 60, '120000/1001'),
        ('slow.mp4', '-r 15000/1001 -t 2', 30, '15000/1001'),
        ('wrap.ts', '-t 2 -output_ts_offset 95442.9 -muxdelay 0', 50, '25'),
        ('tiny.mkv', '-t 0.2 -vf scale=2:2', 5, '25'),
        ('wide.mkv', '-t 0.2 -vf scale=4096:16 -colorspace bt709', 5, '25'),
    ],
)
def test_kinds_of_film(ffmpeg, tmp_path, name, options, frames, fps):
    "As many frames as ffmpeg decodes, and the first one as ffmpeg's own filter shows it."
    ffmpeg(*CARD[:4], *('-pix_fmt', 'yuv420p'), *options.split(), tmp_path / name)
    clip = read_clip(tmp_path / name)
    found = list(clip.frames())
    assert (len(clip), len(found), clip.fps) == (frames, frames, Fraction(fps))
    exact = 'scale=flags=accurate_rnd+full_chroma_int+bicubic'
    ffmpeg('-i', tmp_path / name, '-frames:v', 1, '-vf', exact, tmp_path / 'first.png')
    want = read_picture(tmp_path / 'first.png')
    assert np.abs(want.astype(int) - found[0]).mean() < 1


def test_names_that_are_too_long(tmp_path, monkeypatch, capsys):
    "A clip's name may have 255 bytes, and its run folder's name is made of it."
    import os

    from stitch_nb.commands.edit import own_folder, told

    assert len(os.fsencode(own_folder('n' * 250 + '.mp4'))) < 250
    with pytest.raises(SystemExit), told('stitch_edit', 'x'):
        os.mkdir(tmp_path / ('o' * 300))
    line = capsys.readouterr().err
    assert 'too long: choose a shorter one' in line and len(line) < 200

# ---------------------------------------------------------------- a third look: boxes


def boxed(kind, content):
    return (8 + len(content)).to_bytes(4, 'big') + kind + content


def sphere():
    head = boxed(b'svhd', bytes(4) + b'me\0')
    shape = boxed(b'prhd', bytes(16)) + boxed(b'equi', bytes(20))
    return head + boxed(b'proj', shape)


@pytest.mark.parametrize(
    'kind, content, said',
    [
        (b'sv3d', sphere(), 'the mark of a spherical picture'),
        (b'st3d', bytes(4) + b'\2', 'the mark of stereo pictures'),
    ],
)
def test_spheres_and_pairs(ffmpeg, tmp_path, kind, content, said):
    "Also in a Matroska file."
    ffmpeg(*CARD, '-frames:v', 5, tmp_path / 'a.mp4')
    path = with_box(tmp_path / 'a.mp4', kind, content, b'avcC')
    ffmpeg('-i', path, '-c', 'copy', '-strict', 'unofficial', tmp_path / 'a.mkv')
    for name in ('a.mp4', 'a.mkv'):
        clip = read_clip(tmp_path / name)
        assert any(said in n for n in clip.notes), (name, clip.notes)


def element(number, content):
    "Of Matroska; at most 126 bytes."
    return bytes.fromhex(number) + bytes([0x80 | len(content)]) + content


DOLBY = bytes([1, 0, 5 << 1, 1 << 3 | 5]) + bytes(20)


@pytest.mark.parametrize(
    'inside, said',
    [
        (element('41e4', element('41ed', DOLBY)), dict(dvcC=DOLBY)),
        (element('6d80', element('6240', element('5035', b''))), dict(sinf=b'')),
        (b'', {}),
    ],
)
def test_elements_that_the_decoder_does_not_hear_of(tmp_path, inside, said):
    film = element('e0', element('b0', b'\x60') + element('ba', b'\x40'))
    track = element('ae', element('83', b'\1') + film + inside)
    sound = element('ae', element('83', b'\2'))
    file = element('1a45dfa3', b'') + element('18538067', element('1654ae6b', sound + track))
    (tmp_path / 'a.mkv').write_bytes(file)
    assert described(tmp_path / 'a.mkv') == said
    for end in range(4, len(file)):  # cut anywhere: no error
        (tmp_path / 'a.mkv').write_bytes(file[:end])
        described(tmp_path / 'a.mkv')


def test_a_crop_in_matroska(ffmpeg, tmp_path):
    "16 columns at the left and 8 rows at the top."
    path = tmp_path / 'a.mkv'
    ffmpeg(*CARD, '-frames:v', 5, '-color_range', 'tv', '-colorspace', 'bt709', path)
    data = path.read_bytes()
    at = data.index(bytes.fromhex('55b0'), data.index(b'V_MPEG4'))
    size = 3 + (data[at + 2] & 0x7F)  # of the element of colours, whose place is taken
    crop = element('54cc', b'\x10') + element('54bb', b'\x08')
    crop += element('ec', bytes(size - len(crop) - 2))
    path.write_bytes(data[:at] + crop + data[at + size :])
    assert any('show only 80x56 of its 96x64' in n for n in read_clip(path).notes)


@pytest.mark.parametrize('more', [(), ('-movflags', 'frag_keyframe+empty_moov')])
def test_what_is_encrypted(ffmpeg, tmp_path, more):
    key = ['-encryption_key', '0' * 32, '-encryption_kid', '1' * 32]
    scheme = ['-encryption_scheme', 'cenc-aes-ctr', *key, *more]
    ffmpeg(*CARD, '-frames:v', 5, *scheme, tmp_path / 'a.mp4')
    with pytest.raises(StitchError, match='is encrypted .DRM'):
        read_clip(tmp_path / 'a.mp4')


@pytest.mark.parametrize('name, code', [('a.mp4', b'avc1'), ('a.mkv', b'MPEG4/ISO/AVC')])
def test_a_coding_that_is_not_known(ffmpeg, tmp_path, name, code):
    ffmpeg(*CARD, '-frames:v', 5, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    at = data.rindex(code)
    data = data[:at] + b'Z' * len(code) + data[at + len(code) :]
    (tmp_path / name).write_bytes(data.replace(b'avcC', b'zzzC'))
    with pytest.raises(StitchError, match='in a coding that is not known here'):
        read_clip(tmp_path / name)


def test_two_films_in_one_file(ffmpeg, tmp_path):
    "cat a.mp4 b.mp4: players show the first one."
    ffmpeg(*CARD, '-frames:v', 5, tmp_path / 'a.mp4')
    data = (tmp_path / 'a.mp4').read_bytes()
    (tmp_path / 'two.mp4').write_bytes(data + data)
    clip = read_clip(tmp_path / 'two.mp4')
    assert len(clip) == 5 and any('2 films lie one behind the other' in n for n in clip.notes)
    assert not read_clip(tmp_path / 'a.mp4').notes


@pytest.mark.parametrize('cover', ['song.m4a', 'song.mp3'])
def test_a_cover_is_no_film(ffmpeg, tmp_path, cover):
    ffmpeg(*CARD, '-frames:v', 1, tmp_path / 'c.jpg')
    maps = '-map 0 -map 1 -t 1 -c:v copy -disposition:v attached_pic'.split()
    ffmpeg('-f', 'lavfi', '-i', 'sine', '-i', tmp_path / 'c.jpg', *maps, tmp_path / cover)
    with pytest.raises(StitchError, match='only sound|not a video'):
        read_clip(tmp_path / cover)


STREAM = 188  # bytes of a packet


@pytest.mark.parametrize('how', ['lost', 'middle', 'padded', 'junk'])
def test_streams_off_the_air(ffmpeg, tmp_path, how):
    "Packets lost, a beginning without key frame, packets of 204 bytes, noise before the first."
    ffmpeg(*CARD, '-frames:v', 50, '-g', 10, tmp_path / 'a.ts')
    data = (tmp_path / 'a.ts').read_bytes()
    packets = [data[i : i + STREAM] for i in range(0, len(data), STREAM)]
    n = len(packets)
    if how == 'lost':
        del packets[n // 3 : n // 3 + 6]
    elif how == 'middle':
        packets = packets[:4] + packets[n // 4 :]
    elif how == 'padded':
        packets = [p + bytes(16) for p in packets]
    noise = np.random.default_rng(0).bytes(777) if how == 'junk' else b''
    (tmp_path / 'b.ts').write_bytes(noise + b''.join(packets))
    clip = read_clip(tmp_path / 'b.ts')
    assert clip.fps == 25 and len(list(clip.frames())) == len(clip) <= 50
    broken = how in ('lost', 'middle')
    assert any('damaged' in n for n in clip.notes) == broken
    assert broken or len(clip) == 50


@pytest.mark.parametrize('suffix', ['avi', 'mkv'])
def test_files_that_were_glued_together(ffmpeg, tmp_path, suffix):
    ffmpeg(*CARD, '-frames:v', 10, tmp_path / f'a.{suffix}')
    data = (tmp_path / f'a.{suffix}').read_bytes()
    (tmp_path / f'b.{suffix}').write_bytes(data + data)
    clip = read_clip(tmp_path / f'b.{suffix}')
    assert (len(clip), clip.fps) == (20, 25)


def test_a_pause_and_a_slide_show(ffmpeg, tmp_path):
    "Time goes on while nothing new is shown."
    pause = "setpts='PTS+if(gte(N,12),3/TB,0)'"
    ffmpeg(*CARD, '-frames:v', 25, '-vf', pause, '-fps_mode', 'passthrough', tmp_path / 'a.mp4')
    clip = read_clip(tmp_path / 'a.mp4')
    assert (len(clip), clip.fps) == (100, 25) and '75 frames repeated' in clip.notes[0]


@pytest.mark.parametrize(
    'name', ['a\nb.mp4', b'\xff\xfe.mp4', 'img%03d.mp4', 'a[*?].mp4', 'noext', 'a .mp4 ']
)
@pytest.mark.skipif(sys.platform != 'linux', reason='names that not every system has')
def test_names_that_are_only_names(make_clip, tmp_path, name):
    import os

    path = os.path.join(os.fsencode(tmp_path), name if isinstance(name, bytes) else name.encode())
    Path(os.fsdecode(path)).write_bytes(Path(make_clip('plain.mp4')).read_bytes())
    assert len(list(read_clip(os.fsdecode(path)).frames())) == 10


def picture(i, mode='RGB'):
    return Image.fromarray(np.full((32, 48, 3), 20 * i, np.uint8)).convert(mode)


@pytest.mark.parametrize(
    'names, said',
    [
        ('f1.png f2.png f5.png f6.png', '2 numbers are missing'),
        ('f0.png f10.png f20.png', ''),
        ('a.png b.jpg c.bmp d.webp e.tif', ''),
        ('A1.PNG A2.PNG', ''),
        ('a1.png .DS_Store ._a1.png', ''),
        ('a1.png Thumbs.db', '1 files of the folder are not pictures'),
        ('clip.mp4', 'clip.mp4 is in it'),
        ('a1.jp2 a2.exr', 'a1.jp2, a2.exr is in it'),
        ('', 'nothing is in it'),
    ],
)
def test_folders_as_they_come(tmp_path, names, said):
    for i, name in enumerate(names.split()):
        if name.lower().endswith(('png', 'jpg', 'bmp', 'webp', 'tif')) and name[0] != '.':
            picture(i).save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(b'x')
    try:
        heard = read_clip(tmp_path).notes
    except StitchError as error:
        heard = (str(error),)
    assert any(said in n for n in heard) if said else not heard


@pytest.mark.parametrize(
    'mode, name', [('CMYK', 'a.jpg'), ('1', 'a.bmp'), ('P', 'a.png'), ('LA', 'a.png')]
)
def test_modes_of_pictures_in_a_folder(tmp_path, mode, name):
    picture(5, mode).save(tmp_path / name)
    assert read_clip(tmp_path)[0].shape == (32, 48, 3)


def test_a_telephones_picture_under_another_name(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'\0\0\0\x18ftypheic' + bytes(99))
    with pytest.raises(StitchError, match='HEIF; save it as png'):
        read_clip(tmp_path)


def test_date_place_and_time_code_are_said(ffmpeg, tmp_path):
    said = dict(creation_time='2020-01-01T00:00:00Z', location='+48.1+011.5/')
    words = [x for k, v in said.items() for x in ('-metadata', f'{k}={v}')]
    ffmpeg(*CARD, '-frames:v', 5, *words, '-timecode', '01:00:00:00', tmp_path / 'a.mov')
    (line,) = read_clip(tmp_path / 'a.mov').notes
    assert all(w in line for w in ('not kept', 'the date', 'the place', 'the time code'))


# ---------------------------------------------------------------- Dolby Vision in streams


def with_units(data, unit):
    "A unit of Dolby's own data behind each slice."
    import re

    vcl = {0x1C: lambda n: n[0] & 31 in (1, 5), 0x7C: lambda n: n[0] >> 1 & 63 < 32}[unit[0]]
    units = re.split(b'\0\0\0?\x01', data)[1:]
    own = b'\0\0\0\1' + unit + bytes([0x19, 8, 9, 0x10, 0x80, 1, 2, 3, 0x80])
    return b''.join(b'\0\0\0\1' + n + own * vcl(n) for n in units)


def with_descriptor(data, record):
    "A transport stream whose map of programs says Dolby Vision of its first stream."
    out = bytearray(data)
    for i in range(0, len(data), STREAM):
        if data[i + 1 : i + 3] != b'\x50\0':  # a map begins, as ffmpeg numbers it
            continue
        length = int.from_bytes(data[i + 6 : i + 8], 'big') & 0xFFF
        table = bytearray(data[i + 5 : i + 4 + length])
        at = 12 + (int.from_bytes(table[10:12], 'big') & 0xFFF)
        table[at + 3 : at + 5] = (0xF000 | 2 + len(record)).to_bytes(2, 'big')
        table[at + 5 : at + 5] = bytes([0xB0, len(record)]) + record
        table[1:3] = (0xB000 | len(table) + 1).to_bytes(2, 'big')
        total = 0xFFFFFFFF
        for byte in table:
            total ^= byte << 24
            for _ in range(8):
                total = (total << 1 ^ 0x04C11DB7 * (total >> 31)) & 0xFFFFFFFF
        table += total.to_bytes(4, 'big')
        out[i + 5 : i + STREAM] = table + b'\xff' * (STREAM - 5 - len(table))
    return bytes(out)


@pytest.mark.parametrize(
    'suffix, codec, unit',
    [
        ('hevc', f'{HEVC}:bframes=0', b'\x7c\1'),
        ('h264', '-c:v libx264 -bf 0', b'\x1c'),
    ],
)
def test_dolby_vision_in_units_of_a_stream(ffmpeg, tmp_path, suffix, codec, unit):
    raw, own = tmp_path / f'a.{suffix}', tmp_path / f'b.{suffix}'
    ffmpeg(*CARD, '-frames:v', 8, *codec.split(), raw)
    own.write_bytes(with_units(raw.read_bytes(), unit))
    for name in (raw, own):
        ffmpeg('-fflags', '+genpts', '-r', 25, '-i', name, '-c', 'copy', name.with_suffix('.ts'))
        for file in (name, name.with_suffix('.ts')):
            assert any('Dolby' in n for n in read_clip(file).notes) == (name == own)


@pytest.mark.parametrize('profile', [5, 8])
@pytest.mark.parametrize('packet', [188, 192, 204])
def test_dolby_vision_in_the_map_of_a_stream(ffmpeg, tmp_path, profile, packet):
    ffmpeg(*CARD, '-frames:v', 8, '-f', 'mpegts', tmp_path / 'a.ts')
    data = (tmp_path / 'a.ts').read_bytes()
    data = with_descriptor(data, bytes([1, 0, profile << 1, 1 << 3 | 5, 1 << 4]))
    more = bytes(4) * (packet == 192), bytes(16) * (packet == 204)
    packets = (data[i : i + STREAM] for i in range(0, len(data), STREAM))
    (tmp_path / 'b.ts').write_bytes(b''.join(more[0] + p + more[1] for p in packets))
    assert read_clip(tmp_path / 'a.ts').notes == ()
    (said,) = read_clip(tmp_path / 'b.ts').notes
    assert 'is Dolby Vision' in said and ('profile 5' in said) == (profile == 5)
    for end in range(1000, 1400, 7):  # cut anywhere: no error
        (tmp_path / 'c.ts').write_bytes(data[:end])
        described(tmp_path / 'c.ts')


# ---------------------------------------------------------------- recordings that were cut


@pytest.mark.parametrize('frames', [16, 36, 120])
@pytest.mark.parametrize(
    'kind', ['late .3', 'late .7', 'late 1', 'late 3', 'gap 1', 'gap 2', 'gap 9', 'short']
)
def test_a_cut_recording_keeps_its_rate(frames, kind):
    "A first frame that stays too long, frames that are missing: whatever the header says."
    name, _, more = kind.partition(' ')
    steps = np.ones(frames - 1)
    steps[0 if name != 'gap' else frames // 2] += float(more or -0.6)
    repeated = int(more) if float(more or 0) >= 1 else 0
    for rate in map(Fraction, '24000/1001 24 25 30000/1001 30 50 60'.split()):
        times = np.r_[0, steps.cumsum()] / float(rate)
        average = (frames - 1) / Fraction(times[-1])
        for ticks in (1000, 90000):
            pts = np.round(times * ticks).astype(np.int64)
            for hint in (Fraction(0), rate, average):
                found = timing(pts, Fraction(1, ticks), hint)
                assert found['n_frames'] == frames + repeated
                assert abs(found['fps'] / rate - 1) < 0.0011 * (hint != rate) + 1e-9


def test_a_live_recording_that_was_cut(ffmpeg, tmp_path):
    "Its first frame belongs to the cut before: 200 ms of two frames, then 25 a second."
    live = '-g 12 -bf 2 -f matroska -live 1'.split()
    ffmpeg(*CARD, '-frames:v', 60, *live, tmp_path / 'l.mkv')
    cut = ['-ss', 0.3, '-i', tmp_path / 'l.mkv', '-t', 0.9, '-c', 'copy']
    ffmpeg(*cut, *live[4:], tmp_path / 'c.mkv')
    clip = read_clip(tmp_path / 'c.mkv')
    assert clip.fps == 25 and len(list(clip.frames())) == len(clip)


def test_what_changes_its_rate_keeps_its_beat():
    "Ten frames at 25 a second, then each third of them."
    pts = np.r_[np.arange(10), np.arange(12, 52, 3)] * 40
    found = timing(pts, Fraction(1, 1000), Fraction(0))
    assert found['fps'] == 25 and 0 <= found['n_frames'] - 52 <= 4


# ---------------------------------------------------------------- a fourth look


def joined(ffmpeg, tmp_path, *options):
    "Two recordings of a second; the second begins with the first's last stamp."
    for name, more, late in zip('ab', options, (0, 1)):
        offset = ['-output_ts_offset', late, '-muxdelay', 0]
        ffmpeg(*CARD, '-t', 1, *more.split(), *offset, '-f', 'mpegts', tmp_path / f'{name}.ts')
    both = (tmp_path / 'a.ts').read_bytes() + (tmp_path / 'b.ts').read_bytes()
    (tmp_path / 'both.ts').write_bytes(both)
    return read_clip(tmp_path / 'both.ts')


def test_recordings_that_share_one_stamp(ffmpeg, tmp_path):
    clip = joined(ffmpeg, tmp_path, '', '')
    assert (len(clip), clip.fps, clip.order) == (50, 25, None)


def test_joined_and_doubled_stamps_are_told_apart():
    stamps = np.r_[np.arange(25), 24 + np.arange(25)] / 25
    assert np.allclose(np.diff(mend_times(stamps, 1 / 25)), 1 / 25)
    doubled = np.arange(50) / 25
    doubled[25] = doubled[24]
    assert np.allclose(mend_times(doubled, 1 / 25), np.arange(50) / 25)


def test_a_shape_of_pixels_that_changes_is_said(ffmpeg, tmp_path):
    clip = joined(ffmpeg, tmp_path, '-vf setsar=1', '-vf setsar=16/11')
    assert clip.sar == 1 and any('shape of pixels' in n for n in clip.notes)
    assert not any('shape' in n for n in joined(ffmpeg, tmp_path, '', '').notes)


@pytest.mark.parametrize('alpha', [90, 255])
@pytest.mark.parametrize('name', ['a.webp', 'a.png', 'folder'])
def test_transparent_pictures_are_said(tmp_path, alpha, name):
    "Two frames of a film, as pages of one file or in a folder."
    pages = [Image.new('RGBA', (48, 32), (200, 20 * i, 0, alpha)) for i in range(2)]
    if name == 'folder':
        (tmp_path / name).mkdir()
        for i, page in enumerate(pages):
            page.save(tmp_path / name / f'{i}.png')
    else:
        how = dict(lossless=True) if name == 'a.webp' else {}
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], duration=40, **how)
    said = any('put on black' in n for n in read_clip(tmp_path / name).notes)
    assert said == (alpha < 255)


@pytest.mark.parametrize(
    'name, options, frames',
    [
        ('hidden.mp4', '-ss 0.68 -i a.mp4 -c copy', 33),
        ('ended.mp4', '-ss 0.52 -i a.mp4 -t 0.6 -c copy', 17),
        ('drops.avi', '-i a.mp4 -vf select=not(between(n\\,10\\,14)) -fps_mode vfr -c:v mpeg4', 50),
        ('words.mkv', '-i s.srt -i a.mp4 -map 0 -map 1', 50),
        ('cover.mp4', '-i c.png -i a.mp4 -map 0 -map 1 -c copy -disposition:v:0 attached_pic', 50),
        ('hours.mkv', '-i a.mp4 -c copy -output_ts_offset 36000', 50),
        ('empty.mkv', '-i a.mp4 -f lavfi -i sine -af atrim=0:0 -map 0 -map 1 -c:v copy -t 2', 50),
        ('palette.avi', '-i a.mp4 -pix_fmt pal8 -c:v rawvideo', 50),
        ('fifteen.avi', '-i a.mp4 -pix_fmt rgb555le -c:v rawvideo', 50),
        ('wavelets.mov', '-i a.mp4 -c:v jpeg2000 -pix_fmt yuv444p', 50),
        ('flat.mp4', '-i a.mp4 -vf setsar=1/100', 50),
    ],
)
def test_kinds_of_container(ffmpeg, tmp_path, monkeypatch, name, options, frames):
    "Edit lists, dropped chunks, other tracks first, hours on the clock: frames that players show."
    monkeypatch.chdir(tmp_path)
    ffmpeg(*CARD, '-t', 2, '-g', 50, 'a.mp4')
    ffmpeg('-i', 'a.mp4', '-frames:v', 1, 'c.png')
    Path('s.srt').write_text('1\n00:00:00,000 --> 00:00:01,000\nhello\n')
    ffmpeg(*options.split(), name)
    clip = read_clip(name)
    assert (len(clip), clip.fps, sum(1 for _ in clip.frames())) == (frames, 25, frames)
    write_video(clip, 'o.mp4', clip.fps, clip)
    assert len(read_clip('o.mp4')) == frames
