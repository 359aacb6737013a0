"The package's metadata, read from settings.ini (the one place where nbdev and pip look)."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
extras = {
    name[: -len("_requirements")]: cfg[name].split()
    for name in cfg
    if name.endswith("_requirements")
}
packages = [
    p for p in find_packages(include=["stitch_nb", "stitch_nb.*"]) if p != "stitch_nb.data_samples"
]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8")
    if (here / "README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"],
    url=cfg["git_url"] or None,
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']}",
    packages=[*packages, "stitch_nb.data_samples"],
    package_dir={"stitch_nb.data_samples": "data_samples"},
    package_data={"stitch_nb": ["bundles/*/*"], "stitch_nb.data_samples": ["*"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": [
            line.strip() for line in cfg["console_scripts"].splitlines() if line.strip()
        ],
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
