"The site: two notebooks as pages, the reference of one module, links that lead somewhere."

import re
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path, PurePosixPath

import nbformat
import pytest

for package in "mkdocs", "mkdocs_jupyter", "material", "latex2mathml":
    pytest.importorskip(package, reason=f"{package}: pip install 'stitch_nb[docs]'")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import website  # noqa: E402

ADDRESS = "https://github.com/USER/REPO"


def build(folder: Path, address: str, text: list, code: list) -> subprocess.CompletedProcess:
    "mkdocs on a checkout of two notebooks."
    (folder / "nbs").mkdir()
    shutil.copy(ROOT / "nbs" / "70_stitch.ipynb", folder / "nbs")
    cells = [nbformat.v4.new_markdown_cell(t) for t in text]
    cells += [nbformat.v4.new_code_cell(c) for c in code]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "nbs" / "index.ipynb")
    (folder / "settings.ini").write_text(f"[DEFAULT]\ngit_url = {address}\n")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (folder / "mkdocs.yml").write_text(config.replace("tools/", f"{ROOT.as_posix()}/tools/"))
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", "site"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "Of 70_stitch and a page that links to it."
    folder = tmp_path_factory.mktemp("docs")
    text = [
        "# Home\n\nSee [stitching](70_stitch.ipynb), [the licence](../LICENSE), $e_i = G(w_i)$.",
        "| a | b |\n|---|---|\n| $x_i$ | [s](70_stitch.ipynb) |",
    ]
    code = ["#| hide\nsecret = 1", "#| export\ndef seen(): pass"]
    done = build(folder, ADDRESS, text, code)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "site"


@pytest.mark.slow
def test_links_are_whole(site):
    index = (site / "index.html").read_text()
    assert 'href="70_stitch.html"' in index and f'href="{ADDRESS}/blob/main/LICENSE"' in index
    (site / "70_stitch.html").rename(site / "gone")
    assert ("index.html", "70_stitch.html") in website.broken_links(site)
    (site / "gone").rename(site / "70_stitch.html")
    assert website.broken_links(site) == []


@pytest.mark.slow
def test_a_broken_link_fails_the_build(tmp_path):
    done = build(tmp_path, "", ["# Home\n\n[there](70_stitch.ipynb#nowhere)"], [])
    assert done.returncode != 0 and "index.html: 70_stitch.html#nowhere" in done.stderr


def test_links_of_a_notebook():
    "No link to an address that does not exist: what was a link is a name."
    pages, page = {"70_stitch.ipynb", "nets/10_small.ipynb"}, PurePosixPath("nets/10_small.ipynb")
    move = lambda text, address="": website.moved_links(text, page, pages, address)
    assert move("[s](../70_stitch.ipynb#top)") == "[s](../70_stitch.html#top)"
    assert move("See [l](../../LICENSE).") == "See l (`LICENSE`)."
    assert move("[l](../../LICENSE)", ADDRESS) == f"[l]({ADDRESS}/blob/main/LICENSE)"
    assert move("[p](https://arxiv.org)") == "[p](https://arxiv.org)"
    assert not website.colab_badge("", page)
    assert not website.colab_badge("https://example.org/U/R", page)


@pytest.mark.slow
def test_formulas_need_no_network(site):
    index, page = ((site / n).read_text() for n in ("index.html", "70_stitch.html"))
    assert index.count("<math") == 2 and page.count("<math") > 3
    words = re.sub(r"<(script|style|pre|code|annotation)\b.*?</\1>", "", page, flags=re.S)
    assert not re.search(r"\$[^$<>\n]*\\[a-z]+", words)  # nothing was left in LaTeX
    assert "\\" not in website.with_formulas(r"$\arg\min_\theta L$")
    for same in ("it costs 5$ or 6$", "`$HOME` or $HOME", r"$\foo x$"):
        assert website.with_formulas(same) == same


@pytest.mark.slow
def test_cells_for_readers(site):
    index = (site / "index.html").read_text()
    assert "seen" in index and "secret" not in index and "#| export" not in index
    assert "colab.research.google.com/github/USER/REPO/blob/main/nbs/index.ipynb" in index


@pytest.mark.slow
def test_nothing_is_fetched(site):
    "Scripts, styles, fonts and pictures are files of the site."
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        found = re.findall(
            r'<(?:script|img|link)\b[^>]*?(?:src|href)="(https?:[^"]+)"[^>]*', page.read_text()
        )
        assert not found, (page.name, found)


def test_a_picture_keeps_its_words():
    "Of two kinds in one output the one with words; an output without words stays as it is."
    kinds = {"image/png": "eA==\n", "image/jpeg": "eQ=="}
    made, plain = (
        nbformat.v4.new_output("display_data", dict(kinds), metadata=m)
        for m in ({"image/jpeg": {"alt": 'm & "b"'}}, {})
    )
    for output in (made, plain):
        website.worded(output)
    words = '<img alt="m &amp; &quot;b&quot;" src="data:image/jpeg;base64,eQ==">'
    assert made.data == {"text/html": words} and set(plain.data) == {"image/png", "image/jpeg"}


@pytest.mark.slow
def test_pictures_have_words(site):
    page = (site / "70_stitch.html").read_text()
    pictures = re.findall(r'<img\b[^>]*?src="data:image[^>]*>', page)
    assert len(pictures) == 9 and all(re.search(r'alt="[^"]+', p) for p in pictures)


@pytest.mark.slow
def test_reference(site):
    from stitch_nb.stitch import stitch_frame

    page = (site / "api" / "stitch.html").read_text()
    assert 'id="stitch_frame"' in page and "edited latent" in page
    for name in signature(stitch_frame).parameters:
        assert f"<code>{name}</code>" in page


def test_every_page_is_in_the_menu():
    "Whatever an index page links to is a page, and every notebook has its line in the menu."
    nbs = ROOT / "nbs"
    pages = {
        p.relative_to(nbs).as_posix()
        for p in nbs.rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
    }
    entries = website.menu({p: p for p in pages}, [])
    below = [v for entry in entries for v in entry.values()]
    listed = [e for v in below for e in ([v] if isinstance(v, str) else v)]
    names = {e if isinstance(e, str) else next(iter(e.values())) for e in listed}
    assert names == pages
    text = (nbs / "index.ipynb").read_text(encoding="utf-8")
    assert all(link in pages for link in re.findall(r"\]\(((?!http)[\w/]+\.ipynb)", text))
