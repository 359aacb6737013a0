"""README.md is nbs/index.ipynb without its machinery.

python tools/readme.py                 writes it
python tools/readme.py --check         fails where the two differ
python tools/readme.py --picture RUN   takes the pictures at the top from a run folder first: its
                                        strip; source and edit side by side, moving; its numbers
                                        (nbs/history/demo.json). Then execute nbs/index.ipynb, which shows them, and write again
python tools/readme.py --animation RUN only the moving one
"""

import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"image/jpeg": "jpg", "image/png": "png", "image/svg+xml": "svg"}


def text_of(field) -> str:
    return field if isinstance(field, str) else "".join(field)


def shown(output: dict, name: str, files: dict) -> str:
    "One output as markdown; a picture goes into `files`."
    if output["output_type"] == "stream":
        return (
            "```\n" + text_of(output["text"]).rstrip() + "\n```"
            if output["name"] == "stdout"
            else ""
        )
    data = output.get("data", {})
    for kind, suffix in KINDS.items():
        if kind not in data:
            continue
        raw = text_of(data[kind])
        path = f"nbs/images/{name}.{suffix}"
        files[path] = raw.encode() if suffix == "svg" else base64.b64decode(raw)
        return f"![]({path})"
    if "text/markdown" in data:
        return text_of(data["text/markdown"]).strip()
    return "```\n" + text_of(data["text/plain"]).rstrip() + "\n```" if "text/plain" in data else ""


def parts(notebook: dict, files: dict):
    "The pieces of the page, in order."
    pictures = 0
    for cell in notebook["cells"]:
        source = text_of(cell["source"]).strip()
        flags = set(re.findall(r"^#\|\s*(.+?)\s*$", source, re.M))
        if not source or flags & {"hide", "include: false"}:
            continue
        if cell["cell_type"] != "code":
            yield re.sub(r"\]\(images/", "](nbs/images/", source)
            continue
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
        if "echo: false" not in flags:
            yield f"```python\n{code}\n```"
        for output in cell.get("outputs", []):
            piece = shown(output, f"index-{pictures}", files)
            pictures += "nbs/images/index-" in piece
            if piece:
                yield piece


def links(page: str) -> str:
    "Links between notebooks, as they are from the repository's root."
    return re.sub(r"\]\((?!https?://|#|nbs/|\.\./)([\w/]+\.ipynb)", r"](nbs/\1", page).replace(
        "](../", "]("
    )


def build() -> dict:
    "Path to bytes: README.md and the pictures that it shows."
    files: dict = {}
    notebook = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    page = (
        "<!-- made from nbs/index.ipynb by tools/readme.py: edit the notebook -->\n\n"
        + "\n\n".join(parts(notebook, files))
        + "\n"
    )
    return files | {"README.md": links(page).encode()}


def differing() -> list:
    "The files that are not what the notebook says."
    made = build()
    old = [
        str(p.relative_to(ROOT))
        for p in (ROOT / "nbs" / "images").glob("index-*")
        if str(p.relative_to(ROOT)) not in made
    ]
    return [
        path
        for path, content in made.items()
        if not (ROOT / path).is_file() or (ROOT / path).read_bytes() != content
    ] + old


def name_of(run: Path) -> str:
    "What a run's pictures and numbers are called: by the bundle that drew it."
    bundle = json.loads((run / "run.json").read_text())["bundle"]["name"]
    return "demo" if bundle == "people" else f"demo_{bundle}"


def take_picture(run: Path) -> None:
    "A run's strip as the picture at the top."
    from PIL import Image

    target = ROOT / "nbs" / "images" / f"{name_of(run)}.jpg"
    target.parent.mkdir(exist_ok=True)
    picture = Image.open(run / "strip.png").convert("RGB")
    if picture.width > 1300:
        picture = picture.resize(
            (1300, round(picture.height * 1300 / picture.width)), Image.Resampling.LANCZOS
        )
    picture.save(target, quality=88, optimize=True)


def take_animation(run: Path, limit: int = 900_000) -> None:
    """A run's compare.mp4 as an animated WebP.

    Every second frame, as large and as good as fits under `limit` bytes."""
    import imageio_ffmpeg
    from PIL import Image

    reader = imageio_ffmpeg.read_frames(str(run / "compare.mp4"), pix_fmt="rgb24")
    about = next(reader)
    size, fps = about["size"], about["fps"]
    frames = [Image.frombytes("RGB", size, data) for k, data in enumerate(reader) if k % 2 == 0]
    target = ROOT / "nbs" / "images" / f"{name_of(run)}.webp"
    target.parent.mkdir(exist_ok=True)
    for width, quality in ((1040, 82), (880, 78), (720, 74), (600, 66), (480, 58)):
        width = min(width, 2 * size[0])
        pictures = [
            f.resize((width, round(size[1] * width / size[0])), Image.Resampling.LANCZOS)
            for f in frames
        ]
        pictures[0].save(
            target,
            save_all=True,
            append_images=pictures[1:],
            duration=round(2000 / fps),
            loop=0,
            quality=quality,
            method=4,
        )
        if target.stat().st_size < limit:
            return
    raise SystemExit(
        f"{target} has {target.stat().st_size} bytes at its smallest: take a run of fewer frames"
    )


def take_numbers(run: Path) -> None:
    "What a run measured, for the tables of the index page: nbs/history/demo*.json."
    told, measured = (json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))
    kept = dict(
        edits=told["edits"],
        frames=told["source"]["frames"],
        size=[told["source"]["width"], told["source"]["height"]],
        seconds=round(told["seconds"]),
        peak_mib=round(told["peak_mib"]),
        reused=any(s["reused"] for s in told["stages"].values()),
        threads=told["machine"]["threads"],
        metrics=measured,
    )
    target = ROOT / "nbs" / "history" / f"{name_of(run)}.json"
    target.write_text(json.dumps(kept, indent=1) + "\n")


def main(arguments: list) -> int:
    if "--picture" in arguments:
        take_picture(Path(arguments[arguments.index("--picture") + 1]))
    for option in ("--picture", "--animation"):
        if option in arguments:
            take_animation(Path(arguments[arguments.index(option) + 1]))
    if "--picture" in arguments:
        take_numbers(Path(arguments[arguments.index("--picture") + 1]))
    if "--check" in arguments:
        wrong = differing()
        if wrong:
            print("not what nbs/index.ipynb says (run python tools/readme.py):", *wrong)
        return bool(wrong)
    made = build()
    for path in (ROOT / "nbs" / "images").glob("index-*"):
        path.unlink()
    for path, content in made.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
