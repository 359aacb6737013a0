"Many clips by one table: a bad clip does not stop the others, the same command does what is left."

import json
import re

import pytest
import tiny

from stitch_nb.commands.batch import (
    batch_devices,
    is_done,
    note_of,
    read_manifest,
    run_batch,
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
    out = tmp_path / 'runs'
    status, _, said = tiny.outcome(stitch_batch, capsys, str(table), str(out), 'cpu')
    assert status == 1
    lines = (out / 'batch.txt').read_text().splitlines()
    states = [re.search(r' (done|failed) ', line)[1] for line in lines[1:]]
    assert states == ['failed', 'done', 'done']
    assert 'bad.mp4' in lines[1].split('failed')[1] and lines[1] in said
    record = json.loads((out / 'good_smile1_age-1' / 'run.json').read_text())
    assert record['finished'] and len(record['edits']) == 2
    times = {p: p.stat().st_mtime_ns for p in out.glob('good*/result.mp4')}
    jobs = read_manifest(table, out)
    assert [is_done(job) for job in jobs] == [False, True, True]
    asked = []
    run_batch(
        jobs, ['cpu'], lambda s: None, lambda job, d: asked.append(job.number) or dict(state='done')
    )
    assert asked == [1]
    assert times == {p: p.stat().st_mtime_ns for p in out.glob('good*/result.mp4')}
    text = table.read_text().replace('good.mp4,age=1', 'good.mp4,age=2')
    table.write_text(text)  # another row is another job
    assert [is_done(job) for job in read_manifest(table, out)] == [False, True, False]


def test_a_process_that_is_killed_is_a_row_that_failed(table, tmp_path, monkeypatch):
    import os
    import signal
    import subprocess

    from stitch_nb.commands import batch

    program = f'import os; os.kill(os.getpid(), {int(signal.SIGKILL)})'
    real = subprocess.run
    fake = lambda command, **how: real([command[0], '-c', program], **how)
    monkeypatch.setattr(batch.subprocess, 'run', fake)
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
    ],
)
def test_a_table_that_cannot_work(table, tmp_path, text, said):
    (tmp_path / 'wrong.csv').write_text(text)
    with pytest.raises(StitchError, match=said):
        read_manifest(tmp_path / 'wrong.csv', tmp_path / 'runs')
