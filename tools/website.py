"""What mkdocs.yml calls while `mkdocs build` makes the site of the notebooks beside it.

mkdocs-jupyter turns notebooks into pages. Added here: cells and directives that readers need not
see are left out, pictures keep their alternative texts, formulas become MathML (no program is
fetched), links to files lead to the repository, the reference is a table of the docments (which
mkdocstrings does not read), and a link within the site that leads nowhere fails the build.
"""

import html
import importlib
import inspect
import re
import tempfile
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from posixpath import normpath
from urllib.parse import unquote, urlsplit

import nbformat
from fastcore.docments import docments
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

STYLE = """.jp-InputPrompt, .jp-OutputPrompt {display:none !important}
.jp-RenderedHTMLCommon table {margin-left:0 !important}
.jp-OutputArea-output img, .jp-OutputArea-output video {max-width:100%; height:auto}
.jp-OutputArea-output {overflow-x:auto}
.jp-InputArea pre, .highlight pre, .highlight code {white-space:pre-wrap}
:focus-visible {outline:3px solid #0072B2; outline-offset:2px}
.badge {display:inline-block; background:#0072B2; color:white !important}
.badge {font-size:85%; padding:.1em .7em; border-radius:.4em}
"""
FIRST = "walkthrough", "results", "beside_the_authors", "notation", "speed"
PARTS = dict(
    Figures="figures/",
    Stages="",
    Engine="engine/",
    Running="run/",
    Networks="nets/",
    Weights="weights/",
    Commands="commands/",
)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\\w])\$(?!\s)([^$\n]+?)(?<![\s\\])\$(?!\w)", re.S)


def shown_cell(source: str) -> str:
    "What is left of a code cell on a page: no directives; '' where the cell is not for readers."
    marks = [m.strip() for m in re.findall(r"^#\|(.*)", source, re.M)]
    if any(m.startswith(("hide", "default_exp")) for m in marks):
        return ""
    return re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")


def with_formulas(text: str) -> str:
    "Markdown with MathML in place of $...$ and $$...$$; code is left alone."

    def set_one(m):
        tex = re.sub(r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}", (m[1] or m[2]).strip())
        try:
            done = convert(tex, display="block" if m[1] else "inline")
        except Exception:
            return m[0]  # a formula that the converter does not know stays as it was written
        if "\\" in re.sub(r"<[^>]*>", "", done):
            return m[0]
        return f"\n\n{done}\n\n" if m[1] else done

    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    return "".join(p if k % 2 else FORMULA.sub(set_one, p) for k, p in enumerate(parts))


def moved_links(text: str, page: PurePosixPath, pages: set, address: str) -> str:
    "Links of a notebook as they stand on the site; a name where there is nothing to link."

    def move(m):
        label, target = m[1], m[2]
        if urlsplit(target).scheme or target.startswith(("#", "/")):
            return m[0]
        path, _, anchor = target.partition("#")
        there = normpath(page.parent / unquote(path))
        if there in pages:
            return f"{label}({path[:-6]}.html{'#' + anchor if anchor else ''})"
        if there.startswith("images/"):
            return m[0]
        file = normpath(f"nbs/{page.parent}/{unquote(path)}")
        return f"{label}({address}/blob/main/{file})" if address else f"{label[1:-1]} (`{file}`)"

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", move, text)


def colab_badge(address: str, page: PurePosixPath) -> str:
    "A link that opens the notebook in Colab, which reads from GitHub only; else ''."
    host, _, repo = address.partition("github.com/")
    if host != "https://" or not repo:
        return ""
    link = f"https://colab.research.google.com/github/{repo}/blob/main/nbs/{page}"
    badge = f'<a class="badge" href="{link}">Open in Colab</a>'
    return badge + f" (first: <code>!pip install git+{address}</code>)"


def worded(output) -> None:
    "Makes a picture an `img` with its alternative text, which nbconvert's template leaves out."
    for kind in ("image/png", "image/jpeg"):
        words = output.get("metadata", {}).get(kind, {}).get("alt")
        if words and kind in output.get("data", {}):
            source = f"data:{kind};base64,{output.data[kind].strip()}"
            output.data = {"text/html": f'<img alt="{html.escape(words)}" src="{source}">'}
            return


def page_of(nb, page: PurePosixPath, pages: set, address: str) -> tuple:
    "Makes a notebook a page: its title, and the modules it becomes (one or none)."
    text = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    code = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    title, cells = re.search(r"^# (.+)$", text, re.M), []
    for cell in nb.cells:
        if cell.cell_type == "code":
            source = shown_cell(cell.source)
            if not source and ("hide" in cell.source or not cell.get("outputs")):
                continue
            cell.source = source
            for output in cell.get("outputs", []):
                worded(output)
        elif cell.cell_type == "markdown":
            cell.source = with_formulas(moved_links(cell.source, page, pages, address))
        cells.append(cell)
    badge = colab_badge(address, page)
    nb.cells = cells[:1] + [nbformat.v4.new_markdown_cell(badge)] * bool(badge) + cells[1:]
    return title[1].strip() if title else page.stem, re.findall(
        r"^#\| *default_exp +(\S+)", code, re.M
    )


def reference(name: str) -> str:
    "The API of a module of the package, Markdown: what its docments tell."
    module = importlib.import_module(f"stitch_nb.{name}")
    cell = lambda x: html.escape(str(x or "")).replace("|", "\\|").replace("\n", " ")
    out = [f"# stitch_nb.{name}", "", (module.__doc__ or "").strip(), ""]
    for key in getattr(module, "__all__", []):
        thing = getattr(module, key)
        if not inspect.isroutine(thing) and not inspect.isclass(thing):
            continue
        if thing.__module__ != module.__name__:
            continue
        out += [f"## {key}", "", (inspect.getdoc(thing) or "").split("\n\n")[0], ""]
        try:
            signature, told = inspect.signature(thing), docments(thing, full=True)
        except (ValueError, TypeError, OSError, AttributeError, SyntaxError):
            continue
        if signature.parameters:
            out += ["| argument | type | default | |", "|---|---|---|---|"]
        for word, p in signature.parameters.items():
            kind = "" if p.annotation in (p.empty, None) else p.annotation
            kind = re.sub(r"\s+at 0x[0-9a-f]+", "", getattr(kind, "__name__", str(kind)))
            default = "" if p.default is p.empty else repr(p.default)[:60]
            said = (told.get(word) or {}).get("docment")
            out.append(f"| `{word}` | {cell(kind)} | {cell(default)} | {cell(said)} |")
        back = (told.get("return") or {}).get("docment")
        out += ["", f"**Returns** {cell(back)}", ""] if back else [""]
    return "\n".join(out)


def menu(titles: dict, modules: list) -> list:
    "mkdocs' table of contents."
    top = [{"Home": "index.ipynb"}] if "index.ipynb" in titles else []
    top += [{titles[p]: p} for p in (f"{name}.ipynb" for name in FIRST) if p in titles]
    for part, folder in PARTS.items():
        below = re.compile(rf"{folder}\w+\.ipynb" if folder else r"\d\d_\w+\.ipynb")
        top.append({part: [{t: p} for p, t in titles.items() if below.fullmatch(p)]})
    top.append({"Reference": [{m: f"api/{m}.md"} for m in sorted(modules)]})
    return [entry for entry in top if any(entry.values())]


def write_pages(root: Path, docs: Path, address: str) -> tuple:
    "The notebooks, their pictures and the reference, as mkdocs reads them: titles, modules."
    found = sorted(
        p.relative_to(root)
        for p in root.rglob("*.ipynb")
        if not any(part.startswith(("_", ".")) for part in p.relative_to(root).parts)
    )
    pages, titles, modules = {p.as_posix() for p in found}, {}, []
    for page in found:
        nb = nbformat.read(root / page, as_version=4)
        titles[page.as_posix()], made = page_of(nb, PurePosixPath(page), pages, address)
        modules += made
        (docs / page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, docs / page)
    for folder in ("api", "images"):
        (docs / folder).mkdir()
    for image in root.glob("images/*"):
        (docs / "images" / image.name).write_bytes(image.read_bytes())
    for module in modules:
        (docs / "api" / f"{module}.md").write_text(reference(module), encoding="utf-8")
    (docs / "pages.css").write_text(STYLE)
    return titles, modules


class _Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.names = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.names |= {a[k] for k in ("id", "name") if a.get(k)}
        self.links += [a[k] for k in ("href", "src") if a.get(k)]


def broken_links(site: Path) -> list:
    "(page, link) within the site that lead nowhere: no such file, or no such element in it."
    site, out = Path(site).resolve(), []
    read = {
        p: _Links(p.read_text(encoding="utf-8", errors="replace")) for p in site.rglob("*.html")
    }
    for page in sorted(read):
        for link in dict.fromkeys(read[page].links) if page.name != "404.html" else ():
            parts, named = urlsplit(link), unquote(urlsplit(link).fragment)
            if parts.scheme or link.startswith(("//", "data:")):
                continue
            there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            there = there / "index.html" if there.is_dir() else there
            wanted = named and there in read and not named.startswith("__")
            if not there.exists() or wanted and named not in read[there].names:
                out.append((page.relative_to(site).as_posix(), link))
    return out


def on_config(config):
    "mkdocs: the pages are prepared in a folder of their own; what is committed stays as it is."
    root, ini = Path(config.docs_dir), ConfigParser(delimiters=["="])
    ini.read(root.parent / "settings.ini", encoding="utf-8")
    address = ini["DEFAULT"].get("git_url", "").strip().rstrip("/")
    room = tempfile.TemporaryDirectory()
    config.extra["room"] = room  # removed with the configuration
    titles, modules = write_pages(root, Path(room.name), address)
    config.docs_dir, config.nav = room.name, menu(titles, modules)
    if address:
        config.copyright = f'<a href="{address}">Sources</a>, {config.copyright}'
    return config


def on_post_build(config):
    "mkdocs: links that lead nowhere fail the build."
    broken = broken_links(Path(config.site_dir))
    if broken:
        rows = "\n".join(f"broken link in {page}: {link}" for page, link in broken)
        raise PluginError(rows)
