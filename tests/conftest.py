"Fixtures shared by all tests: golden numbers where they exist, small clips made on the spot."

import os, subprocess

workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
threads = max(1, min(2, (os.cpu_count() or 1) // workers))
os.environ.setdefault('OMP_NUM_THREADS', str(threads))  # before torch; children of tests inherit it
os.environ['STITCH_MODELS'] = 'people'  # tests that need photographs name them

import imageio_ffmpeg, pytest, torch  # noqa: E402
from golden_numbers import Golden, golden_file, load_manifest  # noqa: E402

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))

# Files that take long, with the slow tests and those in a browser: about how many seconds of one core.
# The longest begin first, so that at the end no process waits for another one's long file.
LONG = dict(
    test_browser=500, test_full_size_official=240, test_faults_run=200, test_mobile=120,
    test_parity_formats=100, test_figure3=90, test_demo=80, test_resume=70, test_parity_encoder=60,
    test_doctor=60, test_parity_tuning=60, test_side_by_side=60, test_safety=60, test_figure9=50,
    test_faces=50, test_batch=40, test_docs=40, test_wheel=40, test_project=30, test_course=30,
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: -LONG.get(item.path.stem, 0))


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
