"What a repository is expected to bring: files for users, contributors and machines, and no address that nobody has."

import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config")
CARDS = "worlds/nbs/MODEL_CARD.md", "stitch_nb/bundles/mobile/MODEL_CARD.md"


def read(*parts) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def names(requirements: str) -> set:
    return {re.split(r"[<>=!~\[]", r)[0].lower().replace("_", "-") for r in requirements.split()}


def test_environment_is_the_users(settings):
    "A Python as new as settings.ini asks for, pip, and the package itself without extras."
    made = yaml.safe_load(read("environment.yml"))
    assert made["name"] == settings["lib_name"]
    plain = [d for d in made["dependencies"] if isinstance(d, str)]
    assert sorted(plain) == ["pip", f"python>={settings['min_python']}"]
    assert [d["pip"] for d in made["dependencies"] if isinstance(d, dict)] == [["-e ."]]


def test_fastcore_has_no_upper_bound(settings):
    "At run time both major versions do; nbdev 2.4 needs the first."
    plain = [r for r in settings["requirements"].split() if r.startswith("fastcore")]
    assert len(plain) == 1 and "<" not in plain[0] and "==" not in plain[0]
    assert "fastcore<2" in settings["dev_requirements"].split()


def test_of_fastcore_only_docments_is_used():
    "fastcore.script is not the same in versions 1 and 2."
    used = set()
    for path in (ROOT / "stitch_nb").rglob("*.py"):
        used |= set(
            re.findall(r"^\s*(?:from|import) +(fastcore[\w.]*)", path.read_text("utf-8"), re.M)
        )
    assert used == {"fastcore.docments"}


def test_extras_are_for_developers_too(settings):
    "What left the plain requirements is an extra, and all of it is in dev."
    plain, dev = names(settings["requirements"]), names(settings["dev_requirements"])
    left = {"jupyterlab", "lpips", "face-alignment", "c2pa-python"}
    extras = {
        n: names(settings[f"{n}_requirements"]) for n in ("lab", "lpips", "landmarks", "c2pa")
    }
    assert left <= set().union(*extras.values()) and left <= dev and not left & plain
    assert {"ipywidgets", "fastcore", "nbformat"} <= plain


@pytest.mark.parametrize("key", ["git_url", "doc_host", "user"])
def test_addresses_belong_together(settings, key):
    "Either the repository has an address, then all of these are set, or none is."
    assert bool(settings[key]) == bool(settings["git_url"])


def own_pages():
    "Files that may name the address of the repository: pages, texts, settings."
    found = [p for p in ROOT.glob("*") if p.suffix in (".md", ".toml", ".cff", ".yml", ".ini")]
    found += [*(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "stitch_nb").rglob("*.py")]
    found += [*(ROOT / "nbs").rglob("*.md"), *(ROOT / ".github").rglob("*.*")]
    return [p for p in found if ".ipynb_checkpoints" not in p.parts]


def test_no_address_of_ours_is_written_down(settings):
    "It stands in settings.ini only, so that there is one place to set it; user pages and badges included."
    own = re.compile(
        r"(github\.com/|github\.io/|readthedocs\.io/|colab\.research\.google\.com/github/)"
        r"(?!\{)[\w.-]*/?(stitch[_-]nb)|stitch-nb\.github\.io|users\.noreply",
        re.I,
    )
    assert own.search("https://github.com/stitch-nb/stitch_nb") and own.search(
        "colab.research.google.com/github/x/stitch_nb/blob"
    )
    files = [p for p in own_pages() if p.name not in ("settings.ini", "_modidx.py")]
    files += [] if settings["git_url"] else [ROOT / "settings.ini"]
    assert len(files) > 100
    assert not [p.name for p in files if own.search(p.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow(path):
    "Least permissions, actions at a major version, no secret."
    made = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert made["permissions"] == {"contents": "read"}
    steps = [s for job in made["jobs"].values() for s in job["steps"]]
    used = [s["uses"] for s in steps if "uses" in s]
    assert used and all(re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", u) for u in used)
    assert all("timeout-minutes" in j for j in made["jobs"].values() if len(j["steps"]) > 2)
    assert "secrets." not in path.read_text(encoding="utf-8")


def test_workflows_are_there(settings):
    assert {p.stem for p in WORKFLOWS} == {"test", "docs", "release"}
    tested = yaml.safe_load(read(".github", "workflows", "test.yml"))["jobs"]["test"]
    assert settings["min_python"] in tested["strategy"]["matrix"]["python"]
    assert any(".ci/run" in s.get("run", "") for s in tested["steps"])


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_form(path):
    "As GitHub reads it: a name, a description, fields with labels and unique ids."
    made = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert made["name"] and made["description"]
    fields = [f for f in made["body"] if f["type"] != "markdown"]
    assert all(f["type"] in ("input", "textarea", "dropdown", "checkboxes") for f in fields)
    assert all(f["attributes"]["label"] for f in fields)
    assert len({f["id"] for f in fields}) == len(fields)
    assert any(f.get("validations", {}).get("required") for f in fields)


def test_forms_are_there():
    assert {p.stem for p in FORMS} == {"bug", "question"}
    assert (ROOT / ".github" / "pull_request_template.md").is_file()


@pytest.mark.parametrize("name", CARDS)
def test_model_card(name):
    "Front matter that a catalogue of models can read."
    found = re.match(r"---\n(.*?)\n---\n# ", read(name), re.S)
    said = yaml.safe_load(found[1])
    assert said["license"] in ("apache-2.0", "other") and len(said["tags"]) >= 3
    assert said["license"] != "other" or said["license_name"]
    assert said["library_name"] == "stitch_nb" and said["pipeline_tag"]


def test_changelog_names_the_version(settings):
    "The section that a release takes its words from."
    sections = re.findall(r"^## \[([^\]]+)\]", read("CHANGELOG.md"), re.M)
    assert settings["version"] in sections
    assert yaml.safe_load(read("CITATION.cff"))["version"] == settings["version"]


def test_contributing_explains_every_flag(settings):
    said = read("CONTRIBUTING.md")
    for flag in settings["tst_flags"].split():
        assert f"| `{flag}` |" in said, flag


@pytest.mark.parametrize(
    "name", ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "data_samples/CARD.md", *CARDS]
)
def test_links_and_files_that_are_named(name):
    "Relative links lead somewhere; so do the test files and tools that a command names."
    text, place = read(name), (ROOT / name).parent
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    assert not [t for t in links if not (place / t).exists()]
    files = re.findall(
        r"(?:pytest|python|--path|--inplace) ((?:tests|tools|nbs)/[\w./]+\.\w+)", text
    )
    assert not [f for f in files if not (ROOT / f).exists()]


def test_badges_are_true(settings):
    "A badge shows what a workflow found: while there is no address, there is none."
    if settings["git_url"]:
        pytest.skip("the repository has an address")
    said = "".join(
        "".join(c["source"]) for c in json.loads(read("nbs", "index.ipynb"))["cells"]
    ) + read("README.md")
    assert not re.search(r"shields\.io|badge\.svg|badge/", said)


def test_lock_is_of_the_settings(settings):
    "Made for these requirements, each pinned with hashes, and no address in it."
    text = read("requirements.lock")
    wanted = settings["requirements"].split()
    head = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    assert head[2:] == wanted, "run python tools/lock.py"
    blocks = re.findall(r"^(\S+)==[^\n]*((?:\n    --hash=sha256:[0-9a-f]{64}[^\n]*)+)", text, re.M)
    assert names(settings["requirements"]) <= {name for name, _ in blocks}
    assert len(blocks) == len(re.findall(r"^[a-z]", text, re.M))
    assert "://" not in text


def test_placeholders_stand_in_one_file():
    "What only a published repository has: in codemeta.json, which says so."
    made = json.loads(read("codemeta.json"))
    held = [k for k, v in made.items() if isinstance(v, str) and v.startswith("PLACEHOLDER")]
    assert set(held) == {"identifier", "codeRepository", "issueTracker", "datePublished"}
    assert "PLACEHOLDER" in made["description"]
    others = [p for p in own_pages() if p.name != "CONTRIBUTING.md"]
    assert not [p.name for p in others if "PLACEHOLDER" in p.read_text(encoding="utf-8")]


def test_metadata_agrees(settings):
    made, cited = json.loads(read("codemeta.json")), yaml.safe_load(read("CITATION.cff"))
    assert made["version"] == settings["version"] == cited["version"]
    assert made["programmingLanguage"]["version"] == f">={settings['min_python']}"
    assert made["referencePublication"]["url"] == cited["preferred-citation"]["url"]


def test_container_runs_the_two_commands():
    image, box = read("Dockerfile"), json.loads(read(".devcontainer", "devcontainer.json"))
    assert "-e . && " in image and "-e '.[dev]'" in image and '"stitch_demo"' in image
    assert "nbdev_test && pytest tests" in image
    assert (ROOT / ".devcontainer" / box["build"]["dockerfile"]).is_file()


def test_samples_have_a_card():
    "Every sample is in the card, by its own name or that of its clip."
    said = yaml.safe_load(
        re.match(r"---\n(.*?)\n---\n# ", read("data_samples", "CARD.md"), re.S)[1]
    )
    assert said["license_name"] and said["pretty_name"] and len(said["tags"]) >= 3
    card = read("data_samples", "CARD.md")
    clips = {p.name.split(".")[0].split("_")[0] for p in (ROOT / "data_samples").glob("*.mp4")}
    assert len(clips) >= 8 and not [c for c in clips if f"`{c}`" not in card]


def test_readme_is_short():
    assert len(read("README.md").splitlines()) <= 100
