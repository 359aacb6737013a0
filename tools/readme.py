"""README.md is nbs/index.ipynb without its machinery.

python tools/readme.py                 writes it
python tools/readme.py --check         fails where the two differ
python tools/readme.py --picture RUN   takes the picture at the top from a run folder first
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
    if output["output_type"] == "stream": return "```\n" + text_of(output["text"]).rstrip() + "\n```" if output["name"] == "stdout" else ""
    data = output.get("data", {})
    for kind, suffix in KINDS.items():
        if kind not in data: continue
        raw = text_of(data[kind])
        path = f"nbs/images/{name}.{suffix}"
        files[path] = raw.encode() if suffix == "svg" else base64.b64decode(raw)
        return f"![]({path})"
    if "text/markdown" in data: return text_of(data["text/markdown"]).strip()
    return "```\n" + text_of(data["text/plain"]).rstrip() + "\n```" if "text/plain" in data else ""


def parts(notebook: dict, files: dict):
    "The pieces of the page, in order."
    pictures = 0
    for cell in notebook["cells"]:
        source = text_of(cell["source"]).strip()
        flags = set(re.findall(r"^#\|\s*(.+?)\s*$", source, re.M))
        if not source or flags & {"hide", "include: false"}: continue
        if cell["cell_type"] != "code":
            yield re.sub(r"\]\(images/", "](nbs/images/", source)
            continue
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
        if "echo: false" not in flags: yield f"```python\n{code}\n```"
        for output in cell.get("outputs", []):
            piece = shown(output, f"index-{pictures}", files)
            pictures += "nbs/images/index-" in piece
            if piece: yield piece


def links(page: str) -> str:
    "Links between notebooks, as they are from the repository's root."
    return re.sub(r"\]\((?!https?://|#|nbs/|\.\./)([\w/]+\.ipynb)", r"](nbs/\1", page).replace("](../", "](")


def build() -> dict:
    "Path to bytes: README.md and the pictures that it shows."
    files: dict = {}
    notebook = json.loads((ROOT/"nbs"/"index.ipynb").read_text(encoding="utf-8"))
    page = "<!-- made from nbs/index.ipynb by tools/readme.py: edit the notebook -->\n\n" + "\n\n".join(parts(notebook, files)) + "\n"
    return files | {"README.md": links(page).encode()}


def differing() -> list:
    "The files that are not what the notebook says."
    made = build()
    old = [str(p.relative_to(ROOT)) for p in (ROOT/"nbs"/"images").glob("index-*") if str(p.relative_to(ROOT)) not in made]
    return [path for path, content in made.items() if not (ROOT/path).is_file() or (ROOT/path).read_bytes() != content] + old


def take_picture(run: Path) -> None:
    "A run's strip as the picture at the top."
    from PIL import Image
    target = ROOT/"nbs"/"images"/"demo.jpg"
    target.parent.mkdir(exist_ok=True)
    picture = Image.open(run/"strip.png").convert("RGB")
    if picture.width > 1300: picture = picture.resize((1300, round(picture.height*1300/picture.width)), Image.Resampling.LANCZOS)
    picture.save(target, quality=88, optimize=True)


def main(arguments: list) -> int:
    if "--picture" in arguments: take_picture(Path(arguments[arguments.index("--picture") + 1]))
    if "--check" in arguments:
        wrong = differing()
        if wrong: print("not what nbs/index.ipynb says (run python tools/readme.py):", *wrong)
        return bool(wrong)
    made = build()
    for path in (ROOT/"nbs"/"images").glob("index-*"): path.unlink()
    for path, content in made.items():
        (ROOT/path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT/path).write_bytes(content)
    return 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
