"""Runs the pages as `nbdev_test` does, and compares what they print with what is committed.

python tools/pages.py                  every page of the project in this folder
python tools/pages.py PAGE FOLDER      these pages, the pages of these folders
python tools/pages.py --write PAGE     puts fresh outputs where the committed ones are stale

A page is executed once, by nbdev's own `test_nb`: a cell that raises fails, as in `nbdev_test`.
After each cell its text is compared: words exactly, numbers within a tolerance; pictures by their count
and their alternative texts. Cells that `nbdev_test` leaves out (`#| eval: false`, the flags of
settings.ini, such as `mobile`) do not run, and their outputs are not looked at: whoever changes such
a cell runs it (CONTRIBUTING.md).
"""

import argparse
import os
import re
import sys
import tokenize
from concurrent.futures import ProcessPoolExecutor
from html import unescape
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path

SLOW = ["torch", "torch._dynamo", "torchvision", "scipy.ndimage", "scipy.optimize"]  # to import
SLOW += ["matplotlib.pyplot", "cv2", "av", "ipywidgets", "tqdm.auto"]
SLOW += ["stitch_nb.commands.edit", "stitch_nb.figures.app"]
RELATIVE = 0.05  # of a number; processors, threads and versions of torch round differently
DIGITS = 2  # units of the last place that is shown
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)", re.I)
ADDRESS = re.compile(r"(<.*?)( at 0x[0-9a-fA-F]+)(>)")


def text_of(field) -> str:
    return field if isinstance(field, str) else "".join(field)


def words_of(markup: str) -> str:
    "What a reader sees of HTML: no tags, no pictures within."
    markup = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", markup, flags=re.S)
    return unescape(re.sub(r"<[^>]*>", " ", markup))


def alternative(picture: dict) -> str:
    "An output's words for readers who do not see it; '' without any."
    kinds = picture.get("metadata", {}).values()
    return next((k["alt"] for k in kinds if isinstance(k, dict) and "alt" in k), "")


def shown(outputs: list) -> dict:
    "What a cell's outputs say, by kind; errors of a stream and the bytes of pictures are left out."
    said = {"printed": "", "pictures": [], "texts": []}
    for output in outputs:
        data = output.get("data", {})
        if output["output_type"] == "stream":
            said["printed"] += text_of(output["text"]) if output["name"] == "stdout" else ""
        elif any(kind.startswith("image/") for kind in data):
            said["pictures"].append(alternative(output))
        elif "text/markdown" in data:
            said["texts"].append(text_of(data["text/markdown"]))
        elif "text/html" in data:
            said["texts"].append(words_of(text_of(data["text/html"])))
        elif "text/plain" in data:
            said["texts"].append(ADDRESS.sub(r"\1\3", text_of(data["text/plain"])))
    return said


def near(old: str, new: str) -> bool:
    "Whether two numbers, as they are shown, may come from the same code."
    if old == new:
        return True
    places = [len(n.partition(".")[2]) for n in (old, new) if "e" not in n.lower()]
    unit = 10.0 ** -max(places) if places and max(places) else 0.0
    a, b = float(old), float(new)
    return abs(a - b) <= max(RELATIVE * max(abs(a), abs(b)), DIGITS * unit)


def differing(old: str, new: str) -> str:
    "Where two texts differ, in one line; '' where they agree."
    rows = [[line for line in map(str.split, t.splitlines()) if line] for t in (old, new)]
    for before, after in zip_longest(*rows, fillvalue=[]):
        before, after = " ".join(before), " ".join(after)
        if before == after:
            continue
        numbers = NUMBER.findall(before), NUMBER.findall(after)
        # a number's place may be wider by a sign or a digit: a rule of a table is as wide as it
        plain = [re.sub(r"[-\s]+", " ", NUMBER.sub(" # ", t)) for t in (before, after)]
        if plain[0] != plain[1] or not all(map(near, *numbers)):
            return f"{before[:160]!r} is now {after[:160]!r}"
    return ""


def stale(before: list, after: list) -> str:
    "What is no longer true of a cell's committed outputs, in one line; '' where nothing is."
    old, new = shown(before), shown(after)
    if len(old["pictures"]) != len(new["pictures"]):
        return f"{len(old['pictures'])} pictures are now {len(new['pictures'])}"
    if len(old["texts"]) != len(new["texts"]):
        return f"{len(old['texts'])} texts are now {len(new['texts'])}: {new['texts']}"[:300]
    pairs = [(old["printed"], new["printed"]), *zip(old["texts"], new["texts"])]
    for pair in zip(old["pictures"], new["pictures"]):
        if what := differing(*pair):
            return f"alternative text {what}"
    return next(filter(None, (differing(*pair) for pair in pairs)), "")


def run_page(path: Path, skip: list, root: Path, write: bool = False) -> tuple:
    "Runs one page: whether every cell ran, seconds, [(cell, what is stale)]."
    import nbdev.test
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from IPython.core.displayhook import DisplayHook

    def is_quiet(source: str) -> bool:
        "Whether the cell ends in `;`, also before a comment, where execnb does not look."
        try:
            return DisplayHook.semicolon_at_end_of_expression(source)
        except (IndexError, SyntaxError, tokenize.TokenError):  # an empty cell, or magics
            return False

    found, fresh = [], {}

    class Comparing(CaptureShell):
        "nbdev's shell, which looks at each cell's outputs before they are lost."

        def __init__(self, path):
            super().__init__(path, mpl_format="png")  # as a Jupyter kernel does

        def cell(self, cell, **options):
            before, cell.outputs = cell.get("outputs", []), []
            super().cell(cell, **options)
            if cell.cell_type == "code" and is_quiet(cell.source):
                cell.outputs = [o for o in cell.outputs if o["output_type"] != "execute_result"]
            what = "" if cell.cell_type != "code" or self.exc else stale(before, cell.outputs)
            if what:
                found.append((cell.idx_, what))
                fresh[cell.idx_] = cell.outputs

    nbdev.test.CaptureShell = Comparing
    passed, seconds = nbdev.test.test_nb(path, skip_flags=skip, basepath=root)
    if write and fresh:
        page = read_nb(path)
        for i, outputs in fresh.items():
            page.cells[i].outputs = [o for o in outputs if o.get("name") != "stderr"]
        write_nb(page, path)
        from nbdev.clean import nbdev_clean

        nbdev_clean.__wrapped__(str(path))
    return passed, seconds, found


def main(argv=None) -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("pages", nargs="*", help="notebooks or folders; all of the project")
    options.add_argument("--write", action="store_true", help="replace stale outputs")
    options.add_argument("--flags", default="", help="flags whose cells run too, 'slow mobile'")
    options.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8))
    chosen = options.parse_args(argv)
    from nbdev.config import get_config
    from nbdev.doclinks import nbglob

    config = get_config()
    skip = [f for f in config.tst_flags.split() if f not in chosen.flags.split()]
    pages = []
    for place in map(Path, chosen.pages or [config.nbs_path]):
        pages += sorted(nbglob(place, as_path=True)) if place.is_dir() else [place]
    pages = [p.absolute() for p in pages]
    root, bad = Path(config.config_path), 0
    os.chdir(config.nbs_path)
    threads = max(1, (os.cpu_count() or 1) // chosen.workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    ways = get_context("forkserver")  # a process a page, which finds the slow imports done
    ways.set_forkserver_preload(["nbdev.test", *(SLOW if len(pages) > 1 else ())])
    with ProcessPoolExecutor(chosen.workers, ways, max_tasks_per_child=1) as pool:
        # the largest first: they take longest, and the last one keeps all workers but one waiting
        ordered = sorted(pages, key=lambda p: -p.stat().st_size)
        jobs = {p: pool.submit(run_page, p, skip, root, chosen.write) for p in ordered}
        for page in pages:
            passed, seconds, found = jobs[page].result()
            bad += not passed or bool(found and not chosen.write)
            name = page.relative_to(root) if page.is_relative_to(root) else page
            state = "FAILED" if not passed else "stale" if found else "ok"
            print(f"{state:6} {seconds:5.0f} s  {name}", flush=True)
            for i, what in found:
                print(f"       cell {i}: {what}", flush=True)
    print(f"{len(pages) - bad} of {len(pages)} pages run and print what is committed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
