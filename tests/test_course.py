"The labs: the student's version has no solutions, right answers pass, planted faults are caught."

import ast
import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
LABS = sorted((ROOT / "course").glob("[0-9]*.ipynb"))
FAULTS = {  # lab to question to (a line of the solution, what stands there instead)
    "1_stitching": dict(
        q1=("side = 2 * radius + 1", "side = 3; radius = 1"),  # one pixel, whatever is asked
        q2=("return (mask - grown).abs()", "return grown"),  # the head counts as border
        q3=("/ content.sum()", "/ content.numel()"),  # a mean over the whole crop
        q4=("copy.deepcopy(G_pti)", "G_pti"),  # the clip's generator is tuned for one frame
        q5=("content + border > 0.5", "content > 0.5"),  # what was stitched is cut off
    ),
    "2_pti": dict(
        q1=(".flatten(1).norm(dim=1)", ".norm(dim=-1)"),  # the norm of a row
        q2=("drawn - crops).square()", "drawn - crops).abs()"),  # L1
        q3=(
            "params = [p.requires_grad_() for p in tuned.tunable().values()]",
            "params = [pivots.clone().requires_grad_()]",  # the latents, and a copy at that
        ),
        q4=("torch.randn(pivots.shape,", "torch.randn((1, *pivots.shape[1:]),"),  # one for all
        q5=(
            "encoded + (found - encoded).mean(0, keepdim=True)",
            "found.mean(0, keepdim=True).expand_as(found)",  # a frozen head
        ),
    ),
    "3_direction": dict(
        q1=(" / eyes.norm(dim=1)", ""),  # in pixels
        q2=("G.synthesis(w)).sum()", "G.synthesis(w)).mean()"),  # divided by the faces
        q3=("axes @ torch.diag(size**p) @ axes.T", "cov**p"),  # elementwise
        q4=("before.std() / (after", "1 / (after"),  # one unit, not one spread
        q5=(" / held.square().sum()", ""),  # right for gradients of length 1 alone
        q6=(".mean().abs()", ".mean()"),  # with its sign
    ),
}


def otter(*words, cwd):
    "Run otter's command line; its process alone."
    code = "from otter.cli import cli; cli()"
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    env |= dict(STITCH_MODELS="people", OMP_NUM_THREADS="2")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module", params=LABS, ids=lambda p: p.stem)
def made(request, tmp_path_factory):
    "Folder of a lab's two versions."
    pytest.importorskip("otter", reason="pip install 'stitch_nb[course]'")
    folder = tmp_path_factory.mktemp("course")
    otter("assign", request.param, folder, "--no-run-tests", cwd=folder)
    return request.param.stem, folder


def grade(notebook, folder) -> dict:  # question to whether all of its tests passed
    "What the grader says of a notebook that was handed in."
    path = folder / "handed_in.ipynb"
    nbformat.write(notebook, path)
    (archive,) = (folder / "autograder").glob("*autograder*.zip")
    otter("run", "-a", archive, path, "-o", folder, "--no-logo", cwd=folder)
    tests = json.loads((folder / "results.json").read_text())["tests"]
    names = {t["name"].split(" - ")[0].removesuffix(".py") for t in tests if t.get("max_score")}
    lost = {t["name"].split(" - ")[0] for t in tests if t.get("score", 0) < t.get("max_score", 0)}
    return {name: name not in lost for name in names}


def solved(name, folder):
    return nbformat.read(folder / "autograder" / f"{name}.ipynb", 4)


def test_sources_are_clean():
    "No outputs, and each lab asks for a prediction."
    assert [p.stem for p in LABS] == list(FAULTS)
    for path in LABS:
        cells = nbformat.read(path, 4).cells
        assert not [c for c in cells if c.get("outputs")], f"{path.name} has outputs"
        assert sum("Predict, before" in c.source for c in cells) >= 1, path.name
        assert sum("hidden: true" in c.source for c in cells) >= 5, path.name


def test_the_course_brings_what_grading_needs():
    "A grader without a kernel to run the notebook in grades nothing."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    wanted = config["DEFAULT"]["course_requirements"].split()
    assert {re.split("[<>=]", w)[0] for w in wanted} == {"otter-grader", "ipykernel"}


@pytest.mark.parametrize("path", LABS, ids=lambda p: p.stem)
def test_no_test_shows_a_value(path):
    "The grader runs a test's lines as doctests: a value that is shown, and not expected, fails it."
    inside, tests = False, []
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "raw":
            inside = "BEGIN TESTS" in cell.source or (inside and "END TESTS" not in cell.source)
        elif inside:
            tests.append(cell.source)
    assert len(tests) >= 10
    for statement in (line for text in tests for line in ast.parse(text).body):
        shown = isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant)
        assert not shown, ast.unparse(statement)


@pytest.mark.slow
def test_the_student_gets_no_solution(made):
    name, folder = made
    text = (folder / "student" / f"{name}.ipynb").read_text()
    assert "SOLUTION" not in text and "hidden: true" not in text
    student = nbformat.read(folder / "student" / f"{name}.ipynb", 4).cells
    for question, (line, _) in FAULTS[name].items():
        (k,) = [i for i, c in enumerate(student) if c.source == f'grader.check("{question}")']
        assert student[k - 1].source.endswith("..."), f"{question} has a body"
        assert line not in student[k - 1].source, f"{question} is answered"


@pytest.mark.slow
def test_the_right_solution_passes(made):
    name, folder = made
    said = grade(solved(name, folder), folder)
    assert set(FAULTS[name]) <= set(said)
    assert all(said.values()), said


@pytest.mark.slow
def test_planted_faults_are_caught(made):
    "Questions are checked alone, so that one notebook carries a fault in each."
    name, folder = made
    notebook = solved(name, folder)
    for question, (line, wrong) in FAULTS[name].items():
        cells = [c for c in notebook.cells if c.cell_type == "code" and line in c.source]
        assert len(cells) >= 1, f"{question}: no cell has {line}"
        cells[0].source = cells[0].source.replace(line, wrong)
    said = grade(notebook, folder)
    assert {q for q in FAULTS[name] if said[q]} == set(), "faults that no test has caught"
    assert said["p1"]


def test_slides():
    "One command makes them; each picture has its words, and the README counts right."
    nbconvert = pytest.importorskip("nbconvert")
    course = str(ROOT / "course")
    how = dict(template_name="slides", extra_template_basedirs=[course], exclude_input=True)
    page, _ = nbconvert.SlidesExporter(**how).from_filename(str(ROOT / "nbs/walkthrough.ipynb"))
    words = re.findall(r"<img[^>]*\balt=\"([^\"]*)\"", page)
    assert len(words) >= 20 and all(words)
    assert "No description has been provided" not in page
    slides = len(re.findall(r"<section>(?!\s*<section>)", page))
    assert f"{slides} slides" in (ROOT / "course" / "README.md").read_text(encoding="utf-8")
