"Fixtures shared by all tests: golden numbers where they exist, small clips made on the spot."

import os, subprocess

workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
threads = max(1, min(2, (os.cpu_count() or 1) // workers))
os.environ.setdefault('OMP_NUM_THREADS', str(threads))  # before torch; children of tests inherit it
os.environ['STITCH_MODELS'] = 'people'  # tests that need photographs name them

import imageio_ffmpeg, pytest, torch  # noqa: E402
from golden_numbers import Golden, golden_file, load_manifest  # noqa: E402

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))


@pytest.fixture(scope='session')
def parity():
    "`parity(name)` opens the golden numbers of one component, e.g. 'f_masks': all or those kept."
    opened = {}

    def load(name: str) -> Golden:
        if name not in opened:
            opened[name] = Golden(golden_file(f'{name}.npz'))
        return opened[name]

    yield load
    for f in opened.values():
        f.close()


@pytest.fixture(scope='session')
def manifest():
    "The description of every golden array."
    return load_manifest()


@pytest.fixture(scope='session')
def ffmpeg():
    "`ffmpeg(*args)` runs the ffmpeg that comes with imageio-ffmpeg; its log comes back."

    def run(*args, check=True):
        done = subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), '-hide_banner', '-y', *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        assert not check or done.returncode == 0, done.stderr.decode(errors='replace')[-800:]
        return done.stderr.decode(errors='replace')

    return run


@pytest.fixture(scope='session')
def make_clip(ffmpeg, tmp_path_factory):
    """`make_clip('a.mp4', size='64x48', rate='25', frames=10, audio=False, codec=(...), filters='')` makes a moving test card.

    The same arguments give the same file without making it again."""
    room, made = tmp_path_factory.mktemp('clips'), {}

    def make(
        name='clip.mp4',
        size='64x48',
        rate='25',
        frames=10,
        audio=False,
        codec=('-c:v', 'libx264', '-pix_fmt', 'yuv420p'),
        filters='',
        acodec=('-c:a', 'aac'),
        extra=(),
    ):
        key = (name, size, rate, frames, audio, tuple(codec), filters, tuple(acodec), tuple(extra))
        if key in made:
            return made[key]
        folder = room / str(len(made))
        folder.mkdir()
        args = ['-f', 'lavfi', '-i', f'testsrc2=size={size}:rate={rate}']
        if audio:
            args += ['-f', 'lavfi', '-i', 'sine=frequency=440:sample_rate=44100']
        if filters:
            args += ['-vf', filters]
        args += ['-frames:v', frames, *codec]
        if audio:
            num, _, den = str(rate).partition('/')
            args += [*acodec, '-t', str(frames * int(den or 1) / float(num))]
        ffmpeg(*args, *extra, folder / name)
        made[key] = folder / name
        return made[key]

    return make
