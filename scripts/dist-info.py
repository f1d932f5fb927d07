"""Writes the *.dist-info directory of a pyproject.toml: how Python finds a package's entry points.

usage: dist-info.py PYPROJECT DIRECTORY

pip would do it too, but it needs a network or wheels for the build system, and notes more than that.
"""

import pathlib
import sys
import tomllib

project = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())["project"]
name = project["name"].replace("-", "_")
where = pathlib.Path(sys.argv[2]) / f"{name}-{project['version']}.dist-info"
where.mkdir(parents=True)
metadata = [
    "Metadata-Version: 2.1",
    f"Name: {project['name']}",
    f"Version: {project['version']}",
    f"Summary: {project['description']}",
    f"Requires-Python: {project['requires-python']}",
]
(where / "METADATA").write_text("\n".join(metadata) + "\n")
(where / "INSTALLER").write_text("dpkg\n")
lines = []
for group, entries in sorted(project.get("entry-points", {}).items()):
    lines.append(f"[{group}]")
    lines.extend(f"{key} = {value}" for key, value in sorted(entries.items()))
    lines.append("")
(where / "entry_points.txt").write_text("\n".join(lines))
