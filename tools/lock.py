"""requirements.lock: the plain requirements of settings.ini, pinned, with hashes, for every Python.

python tools/lock.py            resolves again and writes it (needs `uv`)
python tools/lock.py --check    fails where it was made for other requirements

Use: pip install --require-hashes -r requirements.lock && pip install --no-deps -e .
"""

import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"


def requirements() -> tuple:
    "The oldest Python and the plain requirements."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]["min_python"], config["DEFAULT"]["requirements"].split()


def head() -> str:
    "What the lock was made for."
    python, wanted = requirements()
    lines = ["# made by tools/lock.py: do not edit", f"# python >= {python}"]
    return "\n".join([*lines, *(f"# {r}" for r in wanted)]) + "\n"


def main(arguments: list) -> int:
    if "--check" in arguments:
        made = LOCK.is_file() and LOCK.read_text(encoding="utf-8").startswith(head())
        if not made:
            print("requirements.lock is not of settings.ini: run python tools/lock.py")
        return int(not made)
    python, wanted = requirements()
    with tempfile.TemporaryDirectory() as room:
        source, lock = Path(room) / "requirements.in", Path(room) / "requirements.lock"
        source.write_text("\n".join(wanted) + "\n")
        options = ["--universal", "--generate-hashes", "--no-header", "--no-annotate"]
        command = ["uv", "pip", "compile", *options, "--python-version", python]
        subprocess.run([*command, "-q", "-o", str(lock), str(source)], check=True)
        LOCK.write_text(head() + lock.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
