"""Packages as pip would leave them in a folder: their files, and a .dist-info with entry points."""

import shutil
import tomllib
from pathlib import Path

TINY = Path(__file__).parents[1] / "plugin"


def install(folder, name, entry_points, modules, version="1.0"):
    """Write a package: entry points by group and name, the text of modules by name."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[spikebrain.{group}]\n" + "\n".join(f"{n} = {v}" for n, v in e.items()) for group, e in entry_points.items()
    ]
    (info / "entry_points.txt").write_text("\n\n".join(lines) + "\n")
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


def install_tiny(folder):
    """Write the package of tests/plugin, by its own pyproject.toml."""
    project = tomllib.loads((TINY / "pyproject.toml").read_text())["project"]
    groups = {group.removeprefix("spikebrain."): entries for group, entries in project["entry-points"].items()}
    install(folder, project["name"], groups, {}, project["version"])
    shutil.copytree(TINY / "spikebrain_tiny", folder / "spikebrain_tiny", dirs_exist_ok=True)
