"The site: two notebooks as pages, the reference of one module, links that lead somewhere."

import importlib.util
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from stitch_nb.commands import docs
from stitch_nb.core import StitchError

NBS = Path(__file__).resolve().parents[1] / "nbs"
ADDRESS = "https://github.com/USER/REPO"
PACKAGES = "mkdocs", "mkdocs_jupyter", "material", "latex2mathml"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "Of 70_stitch and a page that links to it."
    for package in PACKAGES:
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed: pip install 'stitch_nb[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    (folder / "nbs").mkdir()
    shutil.copy(NBS / "70_stitch.ipynb", folder / "nbs")
    text = [
        "# Home\n\nSee [stitching](70_stitch.ipynb), [the licence](../LICENSE), $e_i = G(w_i)$.",
        "| a | b |\n|---|---|\n| $x_i$ | [s](70_stitch.ipynb) |",
    ]
    code = ["#| hide\nsecret = 1", "#| export\ndef seen(): pass"]
    cells = [nbformat.v4.new_markdown_cell(t) for t in text] + [
        nbformat.v4.new_code_cell(c) for c in code
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "nbs" / "index.ipynb")
    (folder / "settings.ini").write_text(f"[DEFAULT]\ngit_url = {ADDRESS}\n")
    made = docs.build_site(folder / "nbs", folder / "site", modules=["stitch"])
    return folder / "site", made


def test_links_are_whole(site):
    folder, made = site
    assert made["broken"] == [] and made["pages"] >= 3
    index = (folder / "index.html").read_text()
    assert 'href="70_stitch.html"' in index and f'href="{ADDRESS}/blob/main/LICENSE"' in index
    (folder / "70_stitch.html").rename(folder / "gone")
    assert ("index.html", "70_stitch.html") in docs.broken_links(folder)
    (folder / "gone").rename(folder / "70_stitch.html")


def test_a_repository_without_address(tmp_path):
    "No badge and no link to an address that nobody has: what was a link is a name."
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_text("[DEFAULT]\ngit_url =\n")
    page = tmp_path / "nbs" / "a.ipynb"
    cells = [nbformat.v4.new_markdown_cell("# Home\n\nSee [the licence](../LICENSE).")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), page)
    assert docs.repository(tmp_path / "nbs") == ""
    text = "\n".join(c.source for c in docs.page_of(page, tmp_path / "nbs", set())[0].cells)
    assert text == "# Home\n\nSee the licence (`LICENSE`)."


def test_formulas_need_no_network(site):
    folder, _ = site
    index, page = ((folder / n).read_text() for n in ("index.html", "70_stitch.html"))
    assert index.count("<math") == 2 and page.count("<math") > 3
    words = re.sub(r"<(script|style|pre|code|annotation)\b.*?</\1>", "", page, flags=re.S)
    assert not re.search(r"\$[^$<>\n]*\\[a-z]+", words)  # nothing was left in LaTeX


def test_cells_for_readers(site):
    index = (site[0] / "index.html").read_text()
    assert "seen" in index and "secret" not in index and "#| export" not in index
    assert "colab.research.google.com/github/USER/REPO/blob/main/nbs/index.ipynb" in index


def test_nothing_is_fetched(site):
    "Scripts, styles, fonts and pictures are files of the site."
    for page in site[0].rglob("*.html"):
        if page.name == "404.html":
            continue
        found = re.findall(
            r'<(?:script|img|link)\b[^>]*?(?:src|href)="(https?:[^"]+)"[^>]*', page.read_text()
        )
        assert not found, (page.name, found)


def test_reference(site):
    page = (site[0] / "api" / "stitch.html").read_text()
    assert 'id="stitch_frame"' in page and "lambda_m" in page
    assert "edited latent" in page or "latent" in page
    from inspect import signature
    from stitch_nb.stitch import stitch_frame

    for name in signature(stitch_frame).parameters:
        assert f"<code>{name}</code>" in page


def test_refuses(tmp_path):
    for package in PACKAGES:
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")
    with pytest.raises(StitchError, match="holds no notebooks"):
        docs.build_site(tmp_path, tmp_path / "site")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(StitchError, match="is not empty"):
        docs.build_site(NBS, tmp_path / "mine", only=["index.ipynb"])
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_every_page_is_found():
    "Whatever an index page links to is a page, and every module has one."
    pages = {p.relative_to(NBS).as_posix() for p in docs.notebooks(NBS)}
    text = "".join(
        c.source
        for c in nbformat.read(NBS / "index.ipynb", as_version=4).cells
        if c.cell_type == "markdown"
    )
    for link in re.findall(r"\]\(((?!http)[\w/]+\.ipynb)", text):
        assert link in pages, link
    assert {
        "70_stitch.ipynb",
        "figures/90_figure_3.ipynb",
        "nets/10_small.ipynb",
        "walkthrough.ipynb",
    } <= pages
