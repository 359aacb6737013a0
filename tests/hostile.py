"""Reads files in a process of its own, in little memory: python tests/hostile.py FOLDER FLIPS.

Each file of FOLDER is read as it is, cut short, and with bits flipped; what came of it is printed as JSON."""

import json
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)
from stitch_nb.core import StitchError  # noqa: E402
from stitch_nb.weights.formats import read_network  # noqa: E402

MORE = 2**29  # bytes of address space on top of what the interpreter and torch have


def outcome(path):
    "What reading gives: ['shapes', ...], ['refused', line] or ['other', error]; and seconds."
    signal.alarm(60)  # a hang ends the process, and the test
    start = time.process_time()
    try:
        found = read_network(path)
        said = [
            "shapes",
            sorted(list(v.shape) for v in found.state_dict.values()),
            found.cls,
            json.dumps(found.config),
        ]
    except StitchError as error:
        said = ["refused", str(error)]
    except BaseException as error:
        said = ["other", f"{type(error).__name__}: {error}"]
    return said, time.process_time() - start


def variants(content, flips, rng):
    "Damaged copies: cut short, and with one to eight bits flipped, half of them among the first bytes or the last."
    n = len(content)
    for keep in (0, 1, 7, n // 3, n // 2, n - 1):
        yield f"first {keep} bytes", content[:keep]
    for i in range(flips):
        damaged, many = bytearray(content), rng.choice((1, 1, 2, 8))
        near = rng.choice((n, n, min(n, 3000), -min(n, 3000)))
        places = [
            rng.randrange(near) if near > 0 else n - 1 - rng.randrange(-near) for _ in range(many)
        ]
        for p in places:
            damaged[p] ^= 1 << rng.randrange(8)
        yield f"flips at {places}", bytes(damaged)


def main(folder, flips):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE, size + MORE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results, rng = {}, random.Random(0)
    for path in sorted(folder.iterdir()):
        said, seconds = outcome(path)
        results[path.name] = dict(whole=said, seconds=seconds, damaged=[])
        if flips and said[0] == "shapes":
            content = path.read_bytes()
            for how, damaged in variants(content, flips, rng):
                path.write_bytes(damaged)
                results[path.name]["damaged"].append([how, *outcome(path)])
            path.write_bytes(content)
    signal.alarm(0)
    json.dump(
        dict(
            results=results,
            grown=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
        ),
        sys.stdout,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
