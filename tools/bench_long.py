"""What a long clip costs in memory: the sample clip, repeated, through every stage, with as few updates as there can be.

    python tools/bench_long.py                        300 and 3,000 frames
    python tools/bench_long.py --frames 100 --keep D  other lengths; run folders under D, so that a stopped run goes on

One process for each length. `anon_mib` is what the process has for itself; `peak_mib` counts pages of memory-mapped
files too, which the system takes back when somebody needs them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def resident() -> dict:  # MiB
    "What this process has in memory now: all of it, and what no file stands behind."
    told = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())
    mib = lambda name: int(told[name].split()[0]) / 1024
    return dict(peak_mib=mib('VmRSS'), anon_mib=mib('RssAnon'))


class Watch(threading.Thread):
    "The highest of `resident` by the stage that was at work; in a file, so that a stopped run goes on."

    def __init__(self, file: Path):
        super().__init__(daemon=True)
        self.file, self.stage, self.over = file, 'start', threading.Event()
        self.stages = json.loads(file.read_text()) if file.exists() else {}

    def run(self):
        while not self.over.wait(0.02):
            now, kept = resident(), self.stages.setdefault(self.stage, {})
            if any(v > kept.get(k, 0) for k, v in now.items()):
                kept |= {k: max(round(v), kept.get(k, 0)) for k, v in now.items()}
                self.file.write_text(json.dumps(self.stages))

    def peak(self) -> dict:
        "Over all stages."
        kinds = next(iter(self.stages.values()))
        return {k: max(stage[k] for stage in self.stages.values()) for k in kinds}


def repeated(clip):
    "Its frames forwards and backwards for ever, so that no cut is seen."
    while True:
        yield from clip.frames()
        yield from reversed(list(clip.frames())[1:-1])


def one(frames: int, folder: Path, passes: int, steps: int) -> dict:
    "One run; its own process."
    from contextlib import contextmanager
    from dataclasses import replace

    from stitch_nb.core import sample
    from stitch_nb.models import load_models
    from stitch_nb.pipeline import RunConfig, edit_clip
    from stitch_nb.video import read_clip, write_video

    watch, file = Watch(folder / f'{frames}.json'), folder / f'{frames}.mp4'
    if not file.exists():
        source = read_clip(sample('talk'))
        write_video(islice(repeated(source), frames), file, source.fps)
    models = load_models('people', 'cpu')
    config = RunConfig.for_models(models)
    config = replace(
        config, pti=replace(config.pti, passes=passes), stitch=replace(config.stitch, steps=steps)
    )

    @contextmanager
    def progress(name):
        watch.stage = name
        yield lambda *_: None

    watch.start()
    run = edit_clip(file, 'smile=2', folder / f'run_{frames}', models, config, progress)
    watch.over.set()
    watch.join()
    spent = {k: v['seconds'] for k, v in run.record['stages'].items()}
    return dict(frames=frames, seconds=run.record['seconds'], **watch.peak()) | dict(
        passes=passes, steps=steps, leak=run.metrics['leak'], stages=watch.stages, spent=spent
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--frames', type=int, nargs='+', default=[300, 3000])
    parser.add_argument('--passes', type=int, default=1)
    parser.add_argument('--steps', type=int, default=1)
    parser.add_argument('--keep', default='', help='folder for the runs; default: a temporary one')
    parser.add_argument('--json', default='')
    parser.add_argument('--one', action='store_true', help='in this process; prints JSON')
    o = parser.parse_args()
    if o.one:
        print(json.dumps(one(o.frames[0], Path(o.keep), o.passes, o.steps)))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        for n in o.frames:
            few = ['--passes', str(o.passes), '--steps', str(o.steps)]
            child = [sys.executable, __file__, '--one', '--keep', o.keep or scratch, *few]
            done = subprocess.run(
                [*child, '--frames', str(n)], stdout=subprocess.PIPE, text=True, check=True
            )
            rows[f'{n} frames'] = json.loads(done.stdout.splitlines()[-1])
            print(n, rows[f'{n} frames'], flush=True)
    if o.json:  # added to what is there
        file = Path(o.json)
        there = json.loads(file.read_text()) if file.exists() else {}
        there['long'] = there.get('long', {}) | rows
        file.write_text(json.dumps(there, indent=1) + '\n')


if __name__ == '__main__':
    main()
