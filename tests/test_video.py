"Video in and out, on test cards made on the spot: rates, times, sizes, colour, sound, bad files."

import os, subprocess, sys, tracemalloc
from fractions import Fraction
import numpy as np, pytest
from PIL import Image
from stitch_nb.core import StitchError, hash_of
from stitch_nb.video import Clip, parse_frames, read_clip, write_video

LOSSLESS = ('-c:v', 'libx264rgb', '-crf', '0', '-pix_fmt', 'rgb24')


def array(clip, *args):
    return np.stack(list(clip.frames(*args)))


def decoded(ffmpeg_exe, path, *args) -> bytes:
    "What ffmpeg makes of a file."
    command = [ffmpeg_exe, '-v', 'error', '-i', str(path), *args, '-']
    return subprocess.run(command, capture_output=True, check=True).stdout


def packets(ffmpeg_exe, path):
    "One hash for each packet of the sound, in order."
    how = '-map 0:a -c copy -f framehash -hash md5'.split()
    lines = decoded(ffmpeg_exe, path, *how).decode().splitlines()
    return [line.split(',')[5].strip() for line in lines if not line.startswith('#')]


def pcm(ffmpeg_exe, path, *args):
    how = '-map 0:a -ac 1 -f s16le'.split()
    return np.frombuffer(decoded(ffmpeg_exe, path, *args, *how), np.int16)


@pytest.fixture(scope='session')
def exe():
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


# ---------------------------------------------------------------- rates and times


@pytest.mark.parametrize('rate', ['24000/1001', '25', '30000/1001', '60000/1001', '15/2', '12'])
@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'mov', 'webm'])
def test_rate_is_exact(make_clip, tmp_path, rate, suffix):
    codec = (
        ('-c:v', 'libvpx-vp9', '-pix_fmt', 'yuv420p', '-cpu-used', '8')
        if suffix == 'webm'
        else ('-c:v', 'libx264', '-pix_fmt', 'yuv420p')
    )
    source = read_clip(make_clip(f'r.{suffix}', rate=rate, frames=40, codec=codec))
    assert (source.fps, len(source), source.order) == (Fraction(rate), 40, None)
    result = read_clip(write_video(source, tmp_path / f'o.{suffix}', source.fps, audio_from=source))
    assert (result.fps, len(result), result.width, result.height) == (Fraction(rate), 40, 64, 48)


@pytest.mark.parametrize('suffix', ['mp4', 'mkv'])
def test_variable_rate_becomes_constant_without_drift(make_clip, suffix):
    steady = read_clip(make_clip('steady.mp4', rate='30', frames=90, codec=LOSSLESS))
    source = make_clip(
        f'vfr.{suffix}',
        rate='30',
        frames=60,
        codec=(*LOSSLESS, '-fps_mode', 'vfr'),
        filters="select='not(between(n,20,34)+between(n,50,64))'",
    )
    clip = read_clip(source)
    assert clip.fps == 30 and len(clip) == 90 and 'variable frame rate' in clip.notes[0]
    got, want = array(clip), array(steady)
    held = [19 if 20 <= i <= 34 else 49 if 50 <= i <= 64 else i for i in range(90)]
    assert (got == want[held]).all()
    assert all((clip[i] == got[i]).all() for i in (0, 19, 27, 35, 36, 66, 89))
    assert (array(clip.trim(25, 40)) == got[25:40]).all()


def test_frames_that_repeat_are_not_shared(make_clip):
    clip = read_clip(
        make_clip(
            'vfr2.mp4',
            rate='10',
            frames=10,
            codec=(*LOSSLESS, '-fps_mode', 'vfr'),
            filters="select='not(between(n,4,6))'",
        )
    )
    frames = list(clip)
    frames[3][:] = 0
    assert frames[4].any() and not np.shares_memory(frames[3], frames[4])


def test_a_file_can_be_read_at_another_rate(make_clip):
    clip = read_clip(make_clip('half.mp4', rate='30', frames=30), fps=Fraction(15))
    assert (clip.fps, len(clip)) == (15, 15) and 'constant frame rate' in clip.notes[0]


@pytest.mark.parametrize(
    'name, codec',
    [
        ('bframes.mp4', ('-c:v', 'libx264', '-pix_fmt', 'yuv420p', '-bf', '3', '-g', '12')),
        (
            'bframes.mkv',
            (
                '-c:v',
                'libx264',
                '-pix_fmt',
                'yuv420p',
                '-bf',
                '3',
                '-g',
                '12',
                '-x264opts',
                'open-gop=1',
            ),
        ),
        ('stream.ts', ('-c:v', 'libx264', '-pix_fmt', 'yuv420p', '-bf', '2', '-g', '10')),
        ('old.avi', ('-c:v', 'mpeg4', '-q:v', '3', '-g', '8')),
    ],
)
def test_seeking_hits_the_frame(make_clip, name, codec):
    try:
        clip = read_clip(make_clip(name, rate='30000/1001', frames=50, codec=codec))
    except StitchError as e:
        pytest.skip(str(e)) if 'crashed' in str(e) else pytest.fail(str(e))
    frames = array(clip)
    assert len(frames) == len(clip) == 50
    for i in (0, 1, 11, 12, 13, 25, 48, -1):
        assert (clip[i] == frames[i]).all()
    assert (array(clip, 30, 34) == frames[30:34]).all()
    with pytest.raises(IndexError):
        clip[50]


def test_a_late_picture_stays_late(make_clip, ffmpeg, tmp_path):
    source = make_clip('late0.mp4', rate='25', frames=20, audio=True)
    ffmpeg(
        '-itsoffset',
        '0.4',
        '-i',
        source,
        '-i',
        source,
        '-map',
        '0:v',
        '-map',
        '1:a',
        '-c',
        'copy',
        tmp_path / 'late.mkv',
    )
    clip = read_clip(tmp_path / 'late.mkv')
    assert (
        Fraction(2, 5) <= clip.offset < Fraction(43, 100)
    )  # some versions of ffmpeg add the 23 ms that come before the sound
    assert len(clip) == 20 and (clip[13] == read_clip(source)[13]).all()
    result = read_clip(write_video(clip, tmp_path / 'out.mp4', clip.fps, audio_from=clip))
    assert (
        abs(result.offset - clip.offset) <= Fraction(1, 50)
        and len(result) == 20
        and (result.fps, result.order) == (25, None)
    )


# ---------------------------------------------------------------- sizes, rotation, pixels


@pytest.mark.parametrize('size', [(65, 48), (64, 47), (65, 47), (3, 5)])
@pytest.mark.parametrize('suffix', ['mp4', 'mov', 'mkv', 'webm'])
def test_odd_sizes_keep_their_size(tmp_path, size, suffix):
    w, h = size
    frames = np.random.default_rng(0).integers(0, 256, (4, 1, 1, 3)).astype(np.uint8) + np.zeros(
        (4, h, w, 3), np.uint8
    )
    notes = []
    clip = read_clip(write_video(frames, tmp_path / f'o.{suffix}', 25, notes=notes))
    assert (clip.width, clip.height, len(clip)) == (w, h, 4) and np.abs(
        array(clip).astype(int) - frames
    ).max() <= 4
    assert len(notes) == 1 and f'{w}x{h}' in notes[0]


@pytest.mark.parametrize('turn', [90, 180, 270])
def test_rotation_is_applied_once(make_clip, ffmpeg, tmp_path, turn):
    source = make_clip('flat.mp4', rate='25', frames=6, codec=LOSSLESS)
    ffmpeg('-display_rotation', turn, '-i', source, '-c', 'copy', tmp_path / 'turned.mp4')
    clip = read_clip(tmp_path / 'turned.mp4')
    want = np.rot90(
        array(read_clip(source)), turn // 90, (1, 2)
    )  # a positive angle turns against the clock
    assert (
        abs(clip.rotation) in (turn, 360 - turn)
        and (array(clip) == want).all()
        and (clip[4] == want[4]).all()
    )
    result = read_clip(
        write_video(clip, tmp_path / 'o.mp4', clip.fps, audio_from=clip, lossless=True)
    )
    assert result.rotation == 0 and (array(result) == want).all()


def test_pixels_that_are_not_square_stay_so(make_clip, tmp_path):
    clip = read_clip(make_clip('anamorphic.mp4', rate='25', frames=4, filters='setsar=4/3'))
    assert (
        clip.sar == Fraction(4, 3)
        and (clip.width, clip.height) == (64, 48)
        and any('as wide as high' in n for n in clip.notes)
    )
    assert read_clip(
        write_video(clip, tmp_path / 'o.mp4', clip.fps, audio_from=clip)
    ).sar == Fraction(4, 3)


@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'mov'])
def test_lossless_is_lossless(tmp_path, suffix):
    frames = np.random.default_rng(0).integers(0, 256, (5, 47, 65, 3)).astype(np.uint8)
    assert (
        array(read_clip(write_video(frames, tmp_path / f'o.{suffix}', 25, lossless=True))) == frames
    ).all()


PATCHES = np.array(
    [
        [0, 0, 0],
        [255, 255, 255],
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [128, 128, 128],
        [200, 150, 120],
        [16, 235, 90],
    ],
    np.uint8,
)


def patches():
    return PATCHES.reshape(2, 4, 3).repeat(24, 0).repeat(24, 1)


def off(frame):
    return np.abs(frame[12::24, 12::24].reshape(-1, 3).astype(int) - PATCHES).max()


@pytest.mark.parametrize('pixels', ['yuv420p', 'yuv422p', 'yuv444p', 'yuv420p10le', 'yuv444p10le'])
@pytest.mark.parametrize('matrix', ['bt709', 'smpte170m', 'bt2020nc'])
@pytest.mark.parametrize('full', [False, True])
def test_every_coding_of_colour_is_read(ffmpeg, tmp_path, pixels, matrix, full):
    "Encoded by zscale, which shares no code with the scaler that reads."
    Image.fromarray(patches()).save(tmp_path / 'p.png')
    ffmpeg(
        '-loop',
        '1',
        '-i',
        tmp_path / 'p.png',
        '-frames:v',
        '2',
        '-vf',
        f'zscale=m={dict(bt709="709", smpte170m="170m", bt2020nc="2020_ncl")[matrix]}:'
        f'r={"full" if full else "limited"}:rin=full,format={pixels}',
        '-c:v',
        'libx264',
        '-qp',
        '1',
        '-preset',
        'ultrafast',
        '-colorspace',
        matrix,
        '-color_range',
        'pc' if full else 'tv',
        tmp_path / 'c.mp4',
    )
    clip = read_clip(tmp_path / 'c.mp4')
    assert clip.colour[1] == matrix and off(clip[1]) <= 3


@pytest.mark.parametrize('matrix', ['bt709', 'smpte170m'])
def test_colour_returns_under_the_tags_of_the_source(ffmpeg, tmp_path, matrix):
    source = Clip(tmp_path, 96, 48, Fraction(25), 2, colour=('pc', matrix, matrix, matrix))
    clip = read_clip(write_video([patches()] * 2, tmp_path / 'o.mp4', 25, audio_from=source, crf=1))
    assert clip.colour == ('tv', matrix, matrix, matrix) and off(clip[0]) <= 2


def test_a_silent_file_is_read_as_players_do(ffmpeg, tmp_path):
    "No matrix is stated: BT.601 for a small picture."
    Image.fromarray(patches()).save(tmp_path / 'p.png')
    ffmpeg(
        '-loop',
        '1',
        '-i',
        tmp_path / 'p.png',
        '-frames:v',
        '2',
        '-vf',
        'scale=out_color_matrix=bt601:out_range=limited,format=yuv444p,setparams=colorspace=unknown:range=unknown',
        '-c:v',
        'libx264',
        '-qp',
        '1',
        tmp_path / 'c.mp4',
    )
    assert off(read_clip(tmp_path / 'c.mp4')[0]) <= 3


@pytest.mark.parametrize(
    'name, codec',
    [
        ('a.mov', ('-c:v', 'qtrle', '-pix_fmt', 'argb')),
        ('p.mov', ('-c:v', 'prores_ks', '-profile:v', '4444', '-pix_fmt', 'yuva444p10le')),
        (
            'v.webm',
            (
                '-c:v',
                'libvpx-vp9',
                '-pix_fmt',
                'yuva420p',
                '-crf',
                '5',
                '-b:v',
                '0',
                '-cpu-used',
                '8',
            ),
        ),
    ],
)
def test_alpha_is_put_on_black(ffmpeg, tmp_path, name, codec):
    rgba = np.zeros((48, 64, 4), np.uint8)
    rgba[:] = 200, 100, 50, 255
    rgba[:, 32:, 3] = 0
    rgba[24:, :32, 3] = 128
    Image.fromarray(rgba).save(tmp_path / 'p.png')
    ffmpeg('-loop', '1', '-i', tmp_path / 'p.png', '-frames:v', '3', *codec, tmp_path / name)
    clip = read_clip(tmp_path / name)
    frame = clip[1].astype(int)
    assert any('alpha' in n for n in clip.notes) and len(clip) == 3
    for y, x, want in ((10, 10, (200, 100, 50)), (10, 50, (0, 0, 0)), (36, 10, (100, 50, 25))):
        assert np.abs(frame[y, x] - want).max() <= 4


# ---------------------------------------------------------------- folders


def test_folder_order_and_modes(tmp_path):
    values = {
        'out2.png': ('RGB', (2, 2, 2)),
        'out10.PNG': ('RGBA', (20, 20, 20, 128)),
        'out1.tif': ('L', 1),
        'out11.webp': ('RGB', (11, 11, 11)),
        'out12.jpg': ('L', 12),
        'out13.png': ('P', 0),
        'out14.png': ('LA', (28, 128)),
    }
    for name, (mode, value) in values.items():
        Image.new(mode, (16, 12), value).save(
            tmp_path / name, **({'lossless': True} if name.endswith('webp') else {})
        )
    Image.fromarray(np.full((12, 16), 15 * 257, np.uint16)).save(tmp_path / 'out15.png')
    (tmp_path / 'readme.txt').write_text('x')
    clip = read_clip(tmp_path)
    assert [f[:5] for f in clip.files] == [
        'out1.',
        'out2.',
        'out10',
        'out11',
        'out12',
        'out13',
        'out14',
        'out15',
    ] and clip.fps == 25
    assert [int(f[5, 5, 0]) for f in clip] == [1, 2, 10, 11, 12, 0, 14, 15]
    assert array(clip).shape == (8, 12, 16, 3) and 'readme.txt' in clip.notes[0]
    assert (clip[3:5][0] == clip[3]).all() and clip[-1][0, 0, 0] == 15
    assert len(hash_of(clip)) == 16


def test_camera_orientation_of_a_picture(tmp_path):
    image = Image.fromarray(np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / 'a.png', exif=exif)
    clip = read_clip(tmp_path)
    assert (clip.width, clip.height) == (12, 16) and (
        clip[0] == np.rot90(np.asarray(image), -1)
    ).all()


def test_one_picture_is_a_clip_of_one_frame(tmp_path):
    Image.new('RGB', (16, 12), (1, 2, 3)).save(tmp_path / 'a.png')
    clip = read_clip(tmp_path / 'a.png')
    assert len(clip) == 1 and (clip[0] == (1, 2, 3)).all()
    assert len(read_clip(write_video(clip, tmp_path / 'o.mp4', clip.fps, audio_from=clip))) == 1


def test_folder_errors(tmp_path):
    Image.new('RGB', (16, 12)).save(tmp_path / 'a1.png')
    Image.new('RGB', (16, 14)).save(tmp_path / 'a2.png')
    with pytest.raises(StitchError, match='a2.png is 16x14'):
        read_clip(tmp_path)
    (tmp_path / 'a2.png').write_bytes((tmp_path / 'a1.png').read_bytes()[:20])
    with pytest.raises(StitchError, match='a2.png is damaged'):
        read_clip(tmp_path)


def test_no_descriptor_stays_open(tmp_path, make_clip):
    for i in range(60):
        Image.new('RGB', (8, 8), (i, i, i)).save(tmp_path / f'{i}.png')
    here = f'/proc/{os.getpid()}/fd'
    if not os.path.isdir(here):
        pytest.skip('needs /proc')
    before = len(os.listdir(here))
    for i, frame in enumerate(read_clip(tmp_path)):
        assert frame[0, 0, 0] == i and len(os.listdir(here)) <= before + 1
    clip = read_clip(make_clip('fd.mp4', frames=30))
    for _ in range(5):
        clip[3], next(clip.frames())
    assert len(os.listdir(here)) == before


# ---------------------------------------------------------------- sound


@pytest.mark.parametrize(
    'name, acodec, out',
    [
        ('a.mp4', ('-c:a', 'aac'), 'o.mp4'),
        ('a.mp4', ('-c:a', 'aac'), 'o.mkv'),
        ('m.mp4', ('-c:a', 'libmp3lame'), 'o.mp4'),
        ('o.webm', ('-c:a', 'libopus'), 'o.mp4'),
        ('o.webm', ('-c:a', 'libopus'), 'o.webm'),
        ('f.mkv', ('-c:a', 'flac'), 'o.mkv'),
    ],
)
def test_sound_is_copied_bit_for_bit(make_clip, exe, tmp_path, name, acodec, out):
    codec = (
        ('-c:v', 'libvpx-vp9', '-pix_fmt', 'yuv420p', '-cpu-used', '8')
        if name.endswith('webm')
        else ('-c:v', 'libx264', '-pix_fmt', 'yuv420p')
    )
    source = make_clip(name, rate='30000/1001', frames=45, audio=True, acodec=acodec, codec=codec)
    clip, notes = read_clip(source), []
    write_video(clip, tmp_path / out, clip.fps, audio_from=clip, notes=notes)
    assert notes == [] and packets(exe, tmp_path / out) == packets(exe, source)
    a, b = pcm(exe, source), pcm(exe, tmp_path / out)
    n = min(len(a), len(b)) - 2048
    assert abs(len(a) - len(b)) <= 2048
    if source.suffix == '.mp4' and out == 'o.mp4':
        assert (
            a[:n] == b[:n]
        ).mean() > 0.999  # no shift in time either; a webm's milliseconds allow one of 24 samples


def test_sound_that_does_not_fit_is_said(make_clip, tmp_path):
    source = read_clip(make_clip('v.mkv', frames=20, audio=True, acodec=('-c:a', 'pcm_s16le')))
    notes = []
    result = read_clip(
        write_video(source, tmp_path / 'o.mp4', source.fps, audio_from=source, notes=notes)
    )
    assert result.audio_codec == 'aac' and len(notes) == 1 and 'encoded again as aac' in notes[0]


@pytest.mark.parametrize('acodec', [('-c:a', 'aac'), ('-c:a', 'pcm_s16le')])
@pytest.mark.parametrize('out', ['o.mov', 'o.mp4', 'o.mkv'])
def test_trimmed_sound_follows_the_frames(ffmpeg, exe, tmp_path, acodec, out):
    "A tone that begins with frame 40 begins with frame 10 of the part that begins at 30."
    ffmpeg(
        '-f',
        'lavfi',
        '-i',
        'testsrc2=size=64x48:rate=25',
        '-f',
        'lavfi',
        '-i',
        "aevalsrc='if(gte(t,1.6),sin(2*PI*1000*t),0)':s=44100",
        '-frames:v',
        '100',
        '-t',
        '4',
        '-g',
        '50',
        '-pix_fmt',
        'yuv420p',
        *acodec,
        tmp_path / 's.mov',
    )
    clip = read_clip(tmp_path / 's.mov', frames='30:80')
    write_video(clip, tmp_path / out, clip.fps, audio_from=clip)
    sound = pcm(exe, tmp_path / out)
    done = subprocess.run(
        [exe, '-i', str(tmp_path / out), '-map', '0:a', '-af', 'ashowinfo', '-f', 'null', '-'],
        capture_output=True,
        text=True,
    ).stderr
    first = [line for line in done.splitlines() if 'pts_time:' in line][0]
    lead = float(first.split('pts_time:')[1].split()[0])
    begins = lead + np.argmax(np.abs(sound.astype(int)) > 3000) / 44100
    assert abs(begins - 0.4) < 0.03 and abs(lead + len(sound) / 44100 - 2) < 0.05
    assert len(read_clip(tmp_path / out)) == 50 and read_clip(tmp_path / out).offset == 0
    if acodec[1] == 'aac':
        assert set(packets(exe, tmp_path / out)) <= set(packets(exe, tmp_path / 's.mov'))


def test_sound_longer_than_the_picture_is_kept(make_clip, exe, ffmpeg, tmp_path):
    ffmpeg(
        '-f',
        'lavfi',
        '-i',
        'testsrc2=size=64x48:rate=25:duration=0.4',
        '-f',
        'lavfi',
        '-i',
        'sine=duration=1',
        '-pix_fmt',
        'yuv420p',
        tmp_path / 's.mp4',
    )
    clip = read_clip(tmp_path / 's.mp4')
    write_video(clip, tmp_path / 'o.mp4', clip.fps, audio_from=clip)
    assert len(read_clip(tmp_path / 'o.mp4')) == 10 and packets(exe, tmp_path / 'o.mp4') == packets(
        exe, tmp_path / 's.mp4'
    )


# ---------------------------------------------------------------- bad files, one line each


def one_line(e, *words):
    text = str(e.value)
    assert '\n' not in text and len(text) < 400 and all(w in text for w in words), text


def test_bad_files(make_clip, ffmpeg, tmp_path):
    whole = make_clip('whole.mp4', frames=40, audio=True)
    ffmpeg('-i', whole, '-c', 'copy', '-movflags', '+faststart', tmp_path / 'fast.mp4')
    ffmpeg('-i', whole, '-c', 'copy', tmp_path / 'm.mkv')
    ffmpeg('-f', 'lavfi', '-i', 'sine=duration=1', tmp_path / 'sound.m4a')
    ffmpeg(
        '-f',
        'lavfi',
        '-i',
        'color=size=64x48:duration=1',
        '-frames:v',
        '0',
        tmp_path / 'zero.mp4',
        check=False,
    )
    (tmp_path / 'words.mp4').write_text('these are words\n' * 100)
    (tmp_path / 'nothing.mp4').touch()
    (tmp_path / 'end.mp4').write_bytes(whole.read_bytes()[:-3000])
    (tmp_path / 'half.mp4').write_bytes(whole.read_bytes()[: len(whole.read_bytes()) // 2])
    (tmp_path / 'fastend.mp4').write_bytes((tmp_path / 'fast.mp4').read_bytes()[:-4000])
    (tmp_path / 'end.mkv').write_bytes((tmp_path / 'm.mkv').read_bytes()[:-4000])
    (tmp_path / 'folder').mkdir()
    for name, words in {
        'nowhere.mp4': ['no such file', 'nowhere.mp4'],
        'words.mp4': ['not a video', 'mp4, mov'],
        'nothing.mp4': ['empty'],
        'end.mp4': ['cut off', 'again'],
        'half.mp4': ['cut off'],
        'fastend.mp4': ['cut off'],
        'end.mkv': ['cut off'],
        'sound.m4a': ['no picture'],
        'folder': ['no frames'],
    }.items():
        with pytest.raises(StitchError) as e:
            read_clip(tmp_path / name)
        one_line(e, *words)
    if (tmp_path / 'zero.mp4').exists():
        with pytest.raises(StitchError) as e:
            read_clip(tmp_path / 'zero.mp4')
        one_line(e, 'zero.mp4')


def test_frames_argument(make_clip):
    path = make_clip('cut.mp4', frames=20)
    assert (
        len(read_clip(path, slice(5, 9))) == 4
        and len(read_clip(path, ':7')) == 7
        and read_clip(path, '5:').start == 5
    )
    assert len(read_clip(path, '5:900')) == 15
    for text in ('5', 'a:b', '1:2:3', '-:'):
        with pytest.raises(StitchError, match='A:B'):
            parse_frames(text)
    with pytest.raises(StitchError, match='0:20'):
        read_clip(path, '20:30')
    with pytest.raises(StitchError, match='0:20'):
        read_clip(path, '9:9')


def test_a_file_that_shrinks_after_reading(make_clip, tmp_path):
    path = tmp_path / 'c.mp4'
    path.write_bytes(make_clip('shrink.mp4', frames=40).read_bytes())
    clip = read_clip(path)
    path.write_bytes(make_clip('shrink2.mp4', frames=10).read_bytes())
    with pytest.raises(StitchError, match='changed after it was read'):
        list(clip)


def test_writing_refuses(tmp_path, make_clip):
    frame = np.zeros((48, 64, 3), np.uint8)
    with pytest.raises(StitchError, match='no frames'):
        write_video([], tmp_path / 'a.mp4', 25)
    with pytest.raises(StitchError, match='frame 1 is'):
        write_video([frame, frame[:, :60]], tmp_path / 'a.mp4', 25)
    with pytest.raises(StitchError, match='frame rate'):
        write_video([frame], tmp_path / 'a.mp4', 'fast')
    with pytest.raises(StitchError, match='choose .mp4'):
        write_video([frame], tmp_path / 'a.gif', 25)
    with pytest.raises(StitchError, match='lossless'):
        write_video([frame], tmp_path / 'a.webm', 25, lossless=True)
    source = tmp_path / 's.mp4'
    source.write_bytes(make_clip('src.mp4').read_bytes())
    clip = read_clip(source)
    with pytest.raises(StitchError, match='source itself'):
        write_video(clip, source, 25, audio_from=clip)
    assert [p.name for p in tmp_path.iterdir()] == ['s.mp4']


def test_an_interrupted_file_does_not_appear(tmp_path):
    (tmp_path / 'a.mp4').write_text('the old result')

    def frames():
        for i in range(20):
            yield np.full((48, 64, 3), i, np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(frames(), tmp_path / 'a.mp4', 25)
    assert [p.name for p in tmp_path.iterdir()] == ['a.mp4'] and (
        tmp_path / 'a.mp4'
    ).read_text() == 'the old result'


@pytest.mark.skipif(sys.platform == 'win32', reason='limits of a process are a matter of Unix')
@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'webm'])
def test_a_full_disk(tmp_path, suffix):
    "A limit on the size of a file stands for a disk that is full."
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    rng = np.random.default_rng(0)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        with pytest.raises(StitchError) as e:
            write_video(
                (rng.integers(0, 256, (96, 128, 3)).astype(np.uint8) for _ in range(60)),
                tmp_path / f'big.{suffix}',
                25,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(e, 'no room left', f'big.{suffix}')
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_clip(make_clip, tmp_path):
    "At no time are more than a few of a hundred frames held."
    clip = read_clip(
        make_clip(
            'long.mp4',
            size='480x360',
            frames=100,
            codec=('-c:v', 'libx264', '-pix_fmt', 'yuv420p', '-preset', 'ultrafast'),
        )
    )
    tracemalloc.start()
    try:
        write_video(clip, tmp_path / 'o.mp4', clip.fps, crf=40)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 480 * 360 * 3, peak
