"What is not as it was written or pinned is refused or said: wheels, converted files, records, command lines."

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import stitch_nb
from stitch_nb.core import StitchError
from stitch_nb.figures.finished import read_run
from stitch_nb.figures.report import changed_files
from stitch_nb.run.store import OUTPUTS, digest_of, hidden_folder, sweep, write_json, write_sealed
from stitch_nb.script import named_files
from stitch_nb.weights import catalogue

PACKAGE = Path(stitch_nb.__file__).parent


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, 'cache_folder', lambda: tmp_path)
    return tmp_path


def test_a_wheel_with_a_changed_member_is_refused(cache, monkeypatch):
    file = SimpleNamespace(name='x.whl', package='x==1', members=(('a.bin', '0' * 64, 4),))
    monkeypatch.setattr(catalogue, 'original_path', lambda f: cache / 'x.whl')
    with zipfile.ZipFile(cache / 'x.whl', 'w') as wheel:
        wheel.writestr('a.bin', b'evil')
    with pytest.raises(StitchError, match='is pinned'), catalogue.wheel_of(file):
        pass


@pytest.mark.parametrize('text', ['{}', '[]', '[' * 9999, '{"sha256": 4}', 'null', '{"sha'])
def test_a_strange_record_beside_a_converted_file(cache, text):
    (cache / 'x.safetensors').write_bytes(b'1')
    (cache / 'x.json').write_text(text)
    with pytest.raises(StitchError, match='missing or damaged|is damaged'):
        catalogue.check_converted(cache / 'x.safetensors')


def test_a_converted_file_whose_record_was_rewritten_with_it(cache):
    path = cache / 'x.safetensors'
    path.write_bytes(b'right')
    (cache / 'x.json').write_text(json.dumps(dict(sha256=catalogue.sha256_of(path))))
    catalogue.write_lock(path.name, dict(sha256=catalogue.sha256_of(path)))
    catalogue.check_converted(path)
    path.write_bytes(b'wrong')
    (cache / 'x.json').write_text(json.dumps(dict(sha256=catalogue.sha256_of(path))))
    with pytest.raises(StitchError, match='is damaged'):
        catalogue.check_converted(path)


# ---------------------------------------------------------------- the report


@pytest.fixture
def run(tmp_path):
    for name in OUTPUTS[:3]:
        (tmp_path / name).write_bytes(b'1')
    for name in OUTPUTS[3:5]:
        write_json(tmp_path / name, dict(frames=3) if name == 'metrics.json' else {})
    outputs = {n: digest_of(tmp_path / n) for n in OUTPUTS[:-1]}
    write_sealed(tmp_path / 'run.json', dict(finished=True, key='a', outputs=outputs))
    return tmp_path


def test_changed_numbers_are_said(run):
    assert changed_files(read_run(run)) == []
    write_json(run / 'metrics.json', dict(frames=3, psnr=dict(pti=dict(mean=99.9))))
    assert changed_files(read_run(run)) == ['metrics.json']
    record = json.loads((run / 'run.json').read_text())
    (run / 'run.json').write_text(json.dumps(record | dict(key='another')))
    assert changed_files(read_run(run)) == ['run.json']


def test_the_record_of_another_run(run):
    "Sealed, but of other files."
    outputs = {n: digest_of(run / n) for n in OUTPUTS[:-1]} | {'metrics.json': '0' * 32}
    write_sealed(run / 'run.json', dict(finished=True, key='b', outputs=outputs))
    assert changed_files(read_run(run)) == ['metrics.json']


@pytest.mark.parametrize(
    'text, said',
    [
        ('{"frames": 1' + '0' * 400 + '}', 'digits'),
        ('{"x": ' + '[' * 900 + ']' * 900 + '}', 'nested'),
        (r'{"frames": 3, "x": "\ud800"}', 'no Unicode'),
    ],
)
def test_records_that_no_run_writes(run, text, said):
    (run / 'metrics.json').write_text(text)
    with pytest.raises(StitchError, match=said):
        read_run(run)


# ---------------------------------------------------------------- how a command ends


def test_a_file_that_looks_like_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '-clip.mp4').touch()
    assert named_files(['-clip.mp4', '--edit', 'smile=2']) == ['./-clip.mp4', '--edit', 'smile=2']


PROGRAM = '''
import sys, time
from stitch_nb.script import call_parse

@call_parse
def wait(how: str):
    "Wait, or fail."
    if how == 'alloc':
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 99 bytes")
    if how == 'pipe':
        raise BrokenPipeError
    try:
        print('ready', flush=True)
        time.sleep(60)
    finally:
        print('tidied', flush=True)
'''


@pytest.fixture
def program(tmp_path):
    (tmp_path / 'p.py').write_text(PROGRAM)
    return [sys.executable, str(tmp_path / 'p.py')]


@pytest.mark.skipif(os.name == 'nt', reason='signals of Unix')
def test_term_ends_a_command_as_ctrl_c_does(program):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([*program, 'wait'], **pipes) as process:
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, 'tidied\n', 'wait: stopped\n')


@pytest.mark.parametrize('how, status, lines', [('alloc', 2, 1), ('pipe', 0, 0)])
def test_no_traceback(program, how, status, lines):
    done = subprocess.run([*program, how], capture_output=True, text=True, timeout=120)
    assert done.returncode == status and len(done.stderr.splitlines()) == lines
    assert lines == 0 or 'out of memory' in done.stderr


def test_marks_of_dead_runs_are_swept(tmp_path):
    mark = hidden_folder(tmp_path) / 'use-0123456789ab.json'
    mark.write_text('{}')
    mark.with_suffix('.lock').touch()
    sweep(tmp_path)
    assert not mark.exists() and not mark.with_suffix('.lock').exists()


# ---------------------------------------------------------------- the program that encodes


@pytest.mark.skipif(os.name == 'nt', reason='a script as a program')
@pytest.mark.parametrize('body, said', [('exit 3', 'status 3'), ('exec sleep 9', 'no answer')])
def test_an_encoder_that_does_not_run_is_named(tmp_path, body, said):
    from stitch_nb.video import _does_not_run

    (tmp_path / 'ffmpeg').write_text(f'#!/bin/sh\n{body}\n')
    (tmp_path / 'ffmpeg').chmod(0o755)
    start = time.time()
    assert said in _does_not_run(str(tmp_path / 'ffmpeg'), 1.0) and time.time() - start < 8
    assert 'No such file' in _does_not_run(str(tmp_path / 'none'), 1.0)


# ---------------------------------------------------------------- networks from strangers


@pytest.mark.parametrize(
    'cls, args',
    [
        ([], '{}'),
        (4, '{}'),
        ('Generator', '[]'),
        ('Generator', 'null'),
        ('Generator', '{"resolution": 1099511627776}'),
        ('Generator', '{"resolution": NaN}'),
        ('Generator', '{"resolution": "big"}'),
        ('Generator', '{"resolution": -1}'),
        ('Generator', '{"surprise": 1}'),
        ('Encoder', '{"blocks": {}}'),
    ],
)
def test_strange_arguments_of_a_network(cls, args):
    from stitch_nb.models import build_network

    with pytest.raises(StitchError):
        build_network({'class': cls, 'args': json.loads(args)}, {}, 'x.safetensors')


@pytest.mark.parametrize('text', ['{', '[1', '[' * 100000, 'nan'])
def test_strange_metadata_of_a_file(tmp_path, text):
    import torch
    from safetensors.torch import save_file
    from stitch_nb.models import convert_weights

    save_file({'w': torch.zeros(1)}, tmp_path / 'x.safetensors', {'class': '"Generator"', 'args': text})
    with pytest.raises(StitchError):
        convert_weights(tmp_path / 'x.safetensors')


@pytest.mark.parametrize(
    'change',
    [
        dict(resolution='big'),
        dict(resolution=-1),
        dict(resolution=None),
        dict(meta=dict(scale=float('nan'))),
        dict(name=4),
        dict(format=2),
        dict(networks=dict(generator=dict(file=4, sha256='', args={}) | {'class': 'Generator'})),
    ],
)
def test_strange_records_of_a_bundle(tmp_path, change):
    from stitch_nb.models import read_record

    right = dict(name='x', resolution=64, networks={}, meta=dict(scale=1.05))
    (tmp_path / 'bundle.json').write_text(json.dumps(right))
    read_record(tmp_path)
    (tmp_path / 'bundle.json').write_text(json.dumps(right | change))
    with pytest.raises(StitchError, match='not a bundle'):
        read_record(tmp_path)


# ---------------------------------------------------------------- the app


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='signals of Unix')
def test_the_app_asks_for_its_token_and_ends_with_us(tmp_path):
    "Whatever host a page of another site claims; TERM leaves no server behind."
    import socket
    import urllib.error
    import urllib.request

    import nbformat
    import psutil

    pytest.importorskip('voila')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1 + 1')])
    nbformat.write(page, tmp_path / 'a.ipynb')
    program = (
        'import signal, sys\n'
        'from pathlib import Path\n'
        'from stitch_nb.commands.apps import serve, voila_command\n'
        'def stop(*_): raise KeyboardInterrupt\n'
        'signal.signal(signal.SIGTERM, stop)\n'
        f'serve(voila_command(Path({str(tmp_path / "a.ipynb")!r}), {port}), {port}, False)\n'
    )
    quiet = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with subprocess.Popen([sys.executable, '-c', program], **quiet) as app:
        assert '?token=' in app.stdout.readline()
        address, host = f'http://127.0.0.1:{port}/', {'Host': 'evil.example'}
        asked = urllib.request.Request(address, headers=host)
        answer, end = None, time.time() + 120
        while answer is None and time.time() < end:
            try:
                answer = urllib.request.urlopen(asked, timeout=60).geturl()
            except urllib.error.HTTPError as error:
                answer = error.code
            except OSError:
                time.sleep(0.3)
        servers = psutil.Process(app.pid).children(recursive=True)
        app.terminate()
    assert answer in (401, 403) or 'login' in str(answer)
    assert servers and not any(s.is_running() and s.status() != 'zombie' for s in servers)


# ---------------------------------------------------------------- the first seconds, and the last


@pytest.fixture
def loads(tmp_path):
    "A program whose command is in a module with this text."

    def make(text):
        (tmp_path / 'slow.py').write_text(text)
        program = "from stitch_nb.commands.start import started\nstarted('slow:stitch_x')()\n"
        (tmp_path / 'stitch_x').write_text(program)
        return [sys.executable, str(tmp_path / 'stitch_x')]

    return make


@pytest.mark.skipif(os.name == 'nt', reason='signals of Unix')
@pytest.mark.parametrize('times', [1, 2])
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_libraries_load(loads, times, number):
    "One line, also if it is pressed twice."
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    hear = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    command = loads('import time; print("ready", flush=True); time.sleep(60)')
    with subprocess.Popen(command, preexec_fn=hear, **pipes) as process:
        assert process.stdout.readline() == 'ready\n'
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.02)
        out, err = process.communicate(timeout=60)
    assert process.returncode in (130, -number) and err == 'stitch_x: stopped\n'


def test_importing_sets_nothing_in_the_process(tmp_path):
    "Also in a program that is called like a command."
    names = sorted(
        '.'.join(('stitch_nb', *p.relative_to(PACKAGE).with_suffix('').parts))
        for p in PACKAGE.rglob('*.py')
        if not p.name.startswith('_')
    )
    program = f"""
import importlib, os, signal, sys, torch, warnings
def state():
    hooks = sys.excepthook, sys.unraisablehook, sys.displayhook
    signals = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    threads = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    return hooks, signals, threads, dict(os.environ), os.getcwd(), sys.stdout, sys.stderr
import numpy, cv2, matplotlib, ipywidgets, tqdm.auto
before = state()
for name in {names!r}:
    importlib.import_module(name)
    assert state() == before, name
"""
    (tmp_path / 'stitch_x').write_text(program)
    command = [sys.executable, str(tmp_path / 'stitch_x')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.skipif(os.name == 'nt', reason='signals of Unix')
def test_a_second_ctrl_c_does_not_disturb_the_tidying(tmp_path):
    text = PROGRAM.replace("print('tidied'", "time.sleep(0.5); print('tidied'")
    (tmp_path / 'p.py').write_text(text)
    hear = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, str(tmp_path / 'p.py'), 'wait']
    with subprocess.Popen(command, preexec_fn=hear, **pipes) as process:
        assert process.stdout.readline() == 'ready\n'
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.1)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, 'tidied\n', 'wait: stopped\n')


@pytest.mark.parametrize('lacks', ['memory', 'import', 'files', 'cause'])
def test_what_lacks_while_libraries_load(loads, lacks):
    raised = dict(
        memory='raise MemoryError',
        import_='raise ImportError("libtorch.so: failed to map segment from shared object")',
        files='raise OSError(24, "Too many open files")',
        cause='try: raise KeyboardInterrupt\nexcept BaseException: [].x',
    )[lacks.replace('import', 'import_')]
    done = subprocess.run(loads(raised), capture_output=True, text=True)
    assert done.returncode and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith('stitch_x: ')


@pytest.mark.skipif(os.name == 'nt', reason='descriptors of Unix')
def test_a_closed_stderr_stays_closed(program, tmp_path):
    "No file is opened in its place, and the program ends as it would."
    line = ' '.join([*program, 'alloc'])
    done = subprocess.run(['sh', '-c', f'{line} 2>&-'], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, '', '')


@pytest.mark.skipif(os.name == 'nt', reason='limits of Unix')
def test_too_many_files(tmp_path):
    text = PROGRAM.replace('raise BrokenPipeError', 'x = [open(__file__) for _ in range(99)]')
    (tmp_path / 'p.py').write_text(text)
    line = f'ulimit -n 32; {sys.executable} {tmp_path / "p.py"} pipe'
    done = subprocess.run(['sh', '-c', line], capture_output=True, text=True)
    assert done.returncode == 2 and 'ulimit -n' in done.stderr and 'Traceback' not in done.stderr


# ---------------------------------------------------------------- ffmpeg that stops, rooms left


@pytest.mark.skipif(os.name == 'nt', reason='a script as a program')
@pytest.mark.parametrize('body, said', [('exec sleep 99', 'gave no sign'), ('exit 3', 'reinstall')])
def test_an_encoder_that_stops_later(tmp_path, monkeypatch, body, said):
    import numpy as np
    from stitch_nb import video

    (tmp_path / 'ffmpeg').write_text(f'#!/bin/sh\n[ "$1" = -version ] && exit 0\n{body}\n')
    (tmp_path / 'ffmpeg').chmod(0o755)
    monkeypatch.setenv('IMAGEIO_FFMPEG_EXE', str(tmp_path / 'ffmpeg'))
    frames = [np.zeros((480, 640, 3), np.uint8)] * 3
    start = time.time()
    with pytest.raises(StitchError, match=said):
        video.write_video(frames, tmp_path / 'o.mp4', 25, patience=1.0)
    assert time.time() - start < 30 and not (tmp_path / 'o.mp4').exists()


def test_rooms_of_killed_processes_are_swept(tmp_path, monkeypatch):
    import tempfile
    from socket import gethostname

    from stitch_nb.video import temporary_room

    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    names = [f'stitch_nb-{gethostname()}-{n}-x' for n in (999999999, os.getpid())]
    for name in (*names, 'stitch_nb-elsewhere-999999999-x', 'mine'):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))  # a room that is in use is younger than a day
    with temporary_room():
        there = {p.name for p in tmp_path.iterdir()}
    assert names[0] not in there and names[1] in there
    assert {'stitch_nb-elsewhere-999999999-x', 'mine'} <= there


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    "The sound is not given up for it."
    from stitch_nb import video
    from stitch_nb.core import sample

    full = 'echo "x: No space left on device" >&2; exit 1'
    script = f'#!/bin/sh\n[ "$1" = -version ] && exit 0\n{full}\n'
    (tmp_path / 'ffmpeg').write_text(script)
    (tmp_path / 'ffmpeg').chmod(0o755)
    clip = video.read_clip(sample('talk.mp4'))
    monkeypatch.setenv('IMAGEIO_FFMPEG_EXE', str(tmp_path / 'ffmpeg'))
    with pytest.raises(StitchError, match='no room left in .*TMPDIR'):
        video.sound_plan(clip, '.mp4')


@pytest.mark.skipif(os.name == 'nt', reason='rights of Unix')
def test_a_cache_that_others_may_write_to(cache, capsys):
    from stitch_nb.commands.weights import stitch_weights

    cache.chmod(0o700)
    stitch_weights(['list', 'ffhq'])
    assert 'others can write' not in capsys.readouterr().out
    (cache / 'converted').mkdir()
    (cache / 'converted').chmod(0o775)
    stitch_weights(['list', 'ffhq'])
    assert f'chmod go-w {cache / "converted"}' in capsys.readouterr().out


@pytest.mark.skipif(os.name == 'nt', reason='signals of Unix')
def test_handlers_of_the_caller_come_back(capsys):
    "A command that a notebook calls leaves its signals as they were."
    from stitch_nb.commands.weights import stitch_weights

    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    stitch_weights(['list', 'ffhq'])
    assert before == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

def test_an_encoder_in_the_generators_place(tmp_path):
    import tiny
    from stitch_nb.models import load_models

    folder = tiny.tiny_bundle(tmp_path / 'b')
    record = json.loads((folder / 'bundle.json').read_text())
    record['networks']['generator'] = record['networks']['encoder']
    (folder / 'bundle.json').write_text(json.dumps(record))
    with pytest.raises(StitchError, match='generator'):
        load_models(folder)


@pytest.mark.parametrize('error', ['MemoryError', 'OSError'])
def test_no_memory_is_not_a_damaged_film(monkeypatch, error):
    "Nor are too many open files."
    import av.error
    from stitch_nb import probe, video
    from stitch_nb.core import sample

    raised = dict(
        MemoryError=av.error.MemoryError(12, 'Cannot allocate memory'),
        OSError=OSError(24, 'Too many open files'),
    )[error]

    def lacking(*_):
        raise raised

    clip = video.read_clip(sample('talk.mp4')).trim(0, 3)
    monkeypatch.setattr(probe, 'pictures', lacking)
    with pytest.raises((MemoryError, OSError)) as found:
        list(clip.frames())
    assert not isinstance(found.value, StitchError)


# ---------------------------------------------------------------- memory that a shell limits


@pytest.mark.skipif(sys.platform != 'linux', reason='limits that not every system keeps')
@pytest.mark.parametrize('kib, loaded', [(2_000_000, False), (40_000_000, True)])
def test_a_limit_on_addresses(loads, kib, loaded):
    "Said before a library is loaded that would abort."
    command = ' '.join(loads('print("loaded")\ndef stitch_x(): pass'))
    line = f'ulimit -v {kib}; {command}'
    done = subprocess.run(['sh', '-c', line], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == ((0, 'loaded\n') if loaded else (2, ''))
    said = 'a small run takes 4.4 GiB of addresses); raise the limit on addresses (ulimit -v), '
    said = f'stitch_x: out of memory ({said}which is 1.9 GiB\n'
    assert done.stderr == ('' if loaded else said)


def test_a_panic_of_rust_for_want_of_memory(loads):
    text = 'class PanicException(BaseException): pass\n'
    text += 'raise PanicException("PyObject pointer is null")'
    done = subprocess.run(loads(text), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('stitch_x: out of memory')
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('name', ['a.safetensors', 'a.npz'])
def test_no_memory_is_not_a_damaged_file(tmp_path, monkeypatch, name):
    "Its reader is not told to delete it."
    import numpy as np
    import torch
    from stitch_nb import core

    def lacking(*_, **__):
        raise OSError('Cannot allocate memory (os error 12)')

    core.save_tensors(tmp_path / 'a.safetensors', dict(x=torch.zeros(2)))
    core.save_arrays(tmp_path / 'a.npz', x=np.zeros(2))
    monkeypatch.setattr(core, 'load_file', lacking)
    monkeypatch.setattr(np, 'load', lacking)
    read = core.load_tensors if name == 'a.safetensors' else core.load_arrays
    with pytest.raises(MemoryError, match='no memory to read'):
        read(tmp_path / name)


def test_the_app_leaves_no_folder(tmp_path, monkeypatch):
    "However it ends: TERM is heard as Ctrl-C."
    import tempfile

    from stitch_nb.commands import apps

    def stopped(*_):
        assert list(tmp_path.glob('stitch_app_*/*.ipynb'))
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(apps, 'voila_command', lambda *_: [])
    monkeypatch.setattr(apps, 'serve', stopped)
    with pytest.raises(SystemExit):
        apps.stitch_app('3', models='people')
    assert not list(tmp_path.iterdir())
