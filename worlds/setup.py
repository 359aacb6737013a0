"The package's metadata, read from settings.ini (the one place where nbdev and pip look)."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    license="Apache-2.0",
    author=cfg["author"],
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["stitch_worlds", "stitch_worlds.*"]),
    install_requires=cfg["requirements"].split(),
    extras_require={
        name.removesuffix("_requirements"): cfg[name].split()
        for name in cfg
        if name.endswith("_requirements")
    },
    entry_points={
        "console_scripts": [
            line.strip() for line in cfg["console_scripts"].splitlines() if line.strip()
        ],
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
