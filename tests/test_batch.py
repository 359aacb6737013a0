"Many clips by one table: a bad clip does not stop the others, the same command does what is left."

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny

from stitch_nb.commands.batch import (
    batch_devices,
    is_done,
    note_of,
    parse_row,
    read_manifest,
    run_batch,
    run_job,
    stitch_batch,
)
from stitch_nb.core import StitchError


@pytest.fixture
def table(tmp_path):
    "Two clips, one of them damaged, three rows."
    tiny.face_clip(tmp_path / 'good.mp4', T=3)
    (tmp_path / 'bad.mp4').write_bytes(b'no video at all')
    bundle = tiny.tiny_bundle(tmp_path / 'bundle')
    rest = f'{bundle},none,hull,1,1'
    rows = ['clip,edits,models,landmarks,mask,pti_steps,stitch_steps']
    rows += [f'bad.mp4,smile=1,{rest}', f'good.mp4,smile=1 age=-1,{rest}', f'good.mp4,age=1,{rest}']
    file = tmp_path / 'clips.csv'
    file.write_text('\n'.join(rows) + '\n')
    return file


def test_one_bad_clip_does_not_stop_the_rest(table, tmp_path, capsys):
    out, rows = tmp_path / 'runs', table.read_text().splitlines()
    table.write_text('\n'.join(rows[:3]) + '\n')  # each row loads the package afresh
    status, _, said = tiny.outcome(stitch_batch, capsys, str(table), str(out), 'cpu')
    assert status == 1
    lines = (out / 'batch.txt').read_text().splitlines()
    states = [re.search(r' (done|failed) ', line)[1] for line in lines[1:]]
    assert states == ['failed', 'done']
    assert 'bad.mp4' in lines[1].split('failed')[1] and lines[1] in said
    record = json.loads((out / 'good_smile1_age-1' / 'run.json').read_text())
    assert record['finished'] and len(record['edits']) == 2
    times = {p: p.stat().st_mtime_ns for p in out.glob('good*/result.mp4')}
    jobs = read_manifest(table, out)
    assert [is_done(job) for job in jobs] == [False, True]
    asked = []
    run_batch(
        jobs, ['cpu'], lambda s: None, lambda job, d: asked.append(job.number) or dict(state='done')
    )
    assert asked == [1]
    assert times == {p: p.stat().st_mtime_ns for p in out.glob('good*/result.mp4')}
    text = table.read_text().replace('good.mp4,smile=1 age=-1', 'good.mp4,smile=1 age=-2')
    table.write_text(text)  # another row is another job
    assert [is_done(job) for job in read_manifest(table, out)] == [False, False]


def test_a_process_that_is_killed_is_a_row_that_failed(table, tmp_path, monkeypatch):
    import signal

    from stitch_nb.commands import batch

    program = f'import os; os.kill(os.getpid(), {int(signal.SIGKILL)})'
    real = subprocess.Popen
    fake = lambda command, **how: real([command[0], '-c', program], **how)
    monkeypatch.setattr(batch.subprocess, 'Popen', fake)
    results = run_batch(read_manifest(table, tmp_path / 'runs')[1:], ['cpu'], lambda s: None)
    assert [note['state'] for _, note in results] == ['failed', 'failed']
    assert all('killed by signal 9' in note['why'] for _, note in results) and os.name


def test_a_clip_that_vanishes_is_a_row_that_failed(table, tmp_path):
    "So is one whose note is no record; the others go on."
    jobs = read_manifest(table, tmp_path / 'runs')
    for job in jobs:
        job.out.mkdir(parents=True)
        (job.out / 'result.mp4').touch()
        note_of(job).write_text('{"state": "done"}')
    note_of(jobs[1]).write_text('[]')
    jobs[0].clip.unlink()
    results = run_batch(jobs, ['cpu'], lambda s: None, lambda job, d: dict(state='done', why='ran'))
    assert [note['state'] for _, note in results] == ['failed', 'done', 'done']
    assert 'FileNotFoundError' in results[0][1]['why'] and results[1][1]['why'] == 'ran'


def test_every_card_gets_a_clip(table, tmp_path, monkeypatch):
    import threading

    import torch

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert batch_devices('auto') == ['cuda:0', 'cuda:1']
    both, seen = threading.Barrier(2, timeout=30), set()

    def run(job, device):
        seen.add(device)
        both.wait()  # two at once, or this breaks
        return dict(state='done', why='')

    jobs = read_manifest(table, tmp_path / 'runs')[1:]
    results = run_batch(jobs, batch_devices('auto'), lambda s: None, run)
    assert all(note['state'] == 'done' for _, note in results) and seen == {'cuda:0', 'cuda:1'}


@pytest.mark.parametrize(
    'text,said',
    [
        ('clip\ngood.mp4\n', "no column 'edits'"),
        ('clip,edits,colour\n', "column 'colour'"),
        ('clip,edits\nnone.mp4,smile=1\n', 'no such clip'),
        ('clip,edits\ngood.mp4,\n', 'no edit'),
        ('clip,edits,out\ngood.mp4,smile=1,x\ngood.mp4,age=1,x\n', 'two rows'),
        ('clip,edits\ngood.mp4,smile=1,4\n', 'more cells'),
        ('clip,edits\n', 'no rows'),
        ('clip,edits,clip\n', "two columns 'clip'"),
        ('clip,edits,lossless\ngood.mp4,smile=1,1\n', "row 1: lossless is '1'; write true"),
        ('clip,edits,lossless\ngood.mp4,smile=1,WAHR\n', 'write true or false'),
        ('clip,edits,pti_steps\ngood.mp4,smile=1,1.0\n', "row 1: .*pti_steps.*'1.0'"),
        ('clip,edits,frames\ngood.mp4,smile=1,00:04:00\n', "row 1: frames '00:04:00'"),
        ('clip,edits,fps\ngood.mp4,smile=1,fast\n', "row 1: frame rate 'fast'"),
        ('clip,edits,person\ngood.mp4,smile=1,left\n', "row 1: person is 'left'"),
        ('clip,edits,mask\ngood.mp4,smile=1,nose\n', 'row 1: mask'),
        ('clip,edits\ngood.mp4,smile\n', "row 1: edit 'smile' has no strength"),
        ('clip,edits,out\ngood.mp4,smile=1,../../x\n', 'not inside'),
        ('clip,edits,out\ngood.mp4,smile=1,/tmp/x\n', 'not inside'),
        ('clip,edits,out\ngood.mp4,smile=1,.\n', 'not inside'),
        ('PK\x03\x04', 'save it as CSV'),
    ],
)
def test_a_table_that_cannot_work(table, tmp_path, text, said):
    (tmp_path / 'wrong.csv').write_text(text)
    with pytest.raises(StitchError, match=said):
        read_manifest(tmp_path / 'wrong.csv', tmp_path / 'runs')


CASES = Path(__file__).parent / 'cases'


@pytest.mark.parametrize('name', ['semi', 'spaces', 'caps', 'trailing', 'utf16'])
def test_tables_as_spreadsheets_write_them(tmp_path, name):
    (tmp_path / 'a.mp4').touch()
    shutil.copy(CASES / f'batch_{name}.csv', tmp_path / 't.csv')
    (job,) = read_manifest(tmp_path / 't.csv', tmp_path / 'runs')
    assert (job.clip.name, job.edits, dict(job.options)) == ('a.mp4', ('smile=2',), {'frames': '0:4'})


@pytest.mark.parametrize('name, said', [('bool1', 'write true or false'), ('exceldate', 'A:B')])
def test_cells_that_a_spreadsheet_changed(tmp_path, name, said):
    (tmp_path / 'a.mp4').touch()
    shutil.copy(CASES / f'batch_{name}.csv', tmp_path / 't.csv')
    with pytest.raises(StitchError, match=said):
        read_manifest(tmp_path / 't.csv', tmp_path / 'runs')


@pytest.mark.parametrize('head', ['sep=;\r\nclip;edits\r\n', 'clip\tedits\n', 'CLIP ; Edits;;\n'])
def test_separators(tmp_path, head):
    (tmp_path / 'ä.mp4').touch()
    between = '\t' if '\t' in head else ';'
    text = head + between.join(['ä.mp4', 'smile=0:0,24:2'])
    (tmp_path / 't.csv').write_bytes(text.encode('latin-1'))
    (job,) = read_manifest(tmp_path / 't.csv', tmp_path / 'runs')
    assert (job.clip.name, job.edits) == ('ä.mp4', ('smile=0:0,24:2',))


def test_a_clip_with_the_name_of_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('-y.mp4').touch()
    Path('t.csv').write_text('clip,edits\n-y.mp4,smile=1\n')
    (job,) = read_manifest('t.csv', 'runs')
    assert parse_row(job.command('cpu'))['video'] == str(tmp_path / '-y.mp4')


def test_the_log_is_not_written_through_a_link(tmp_path, monkeypatch):
    (tmp_path / 'a.mp4').touch()
    (tmp_path / 't.csv').write_text('clip,edits,out\na.mp4,smile=1,x\n')
    (tmp_path / 'mine.txt').write_text('mine')
    (job,) = read_manifest(tmp_path / 't.csv', tmp_path / 'runs')
    (tmp_path / 'runs').mkdir()
    os.symlink(tmp_path / 'mine.txt', tmp_path / 'runs' / 'x.log')
    real = subprocess.Popen
    fake = lambda command, **how: real([command[0], '-c', 'print("done")'], **how)
    monkeypatch.setattr(subprocess, 'Popen', fake)
    run_job(job, 'cpu')
    assert (tmp_path / 'mine.txt').read_text() == 'mine'
    assert (tmp_path / 'runs' / 'x.log').read_text() == 'done\n'


@pytest.mark.skipif(os.name == 'nt', reason='signals of Unix')
def test_a_row_ends_with_the_program_that_began_it(tmp_path):
    "However that ends: KILL asks nobody."
    program = (
        'import sys, time, threading, signal\n'
        'from stitch_nb.commands import batch\n'
        'def slow(**_):\n'
        f'    open({str(tmp_path / "pid")!r}, "w").write(str(__import__("os").getpid()))\n'
        '    time.sleep(600)\n'
        'batch.stitch_edit = slow\n'
        'batch.parse_row = lambda a: {}\n'
        'batch.edit_one([])\n'
    )
    parent = (
        'import subprocess, sys, threading\n'
        'from stitch_nb.commands.batch import _run_until\n'
        f'_run_until([sys.executable, "-c", {program!r}], None, stdin=subprocess.PIPE)\n'
    )
    first = subprocess.Popen([sys.executable, '-c', parent], stderr=subprocess.DEVNULL)
    pid = tmp_path / 'pid'
    assert until(lambda: pid.is_file() and pid.read_text())
    first.kill()
    first.wait()
    child = int(pid.read_text())
    assert until(lambda: not psutil.pid_exists(child) or is_zombie(child), 20)


def is_zombie(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(true, seconds=120):
    end = time.time() + seconds
    while time.time() < end and not true():
        time.sleep(0.1)
    return true()


def test_the_log_of_a_row_is_kept_when_it_runs_again(tmp_path, monkeypatch):
    (tmp_path / 'a.mp4').touch()
    (tmp_path / 't.csv').write_text('clip,edits,out\na.mp4,smile=1,x\n')
    (job,) = read_manifest(tmp_path / 't.csv', tmp_path / 'runs')
    real = subprocess.Popen
    for words, status in (('first', 0), ('second', 1)):
        program = f'print({words!r}); raise SystemExit({status})'
        fake = lambda command, **how: real([command[0], '-c', program], **how)
        monkeypatch.setattr(subprocess, 'Popen', fake)
        note = run_job(job, 'cpu')
        monkeypatch.setattr(subprocess, 'Popen', real)
    assert (tmp_path / 'runs' / 'x.log').read_text() == 'first\nsecond\n'
    assert note['why'] == 'second'
