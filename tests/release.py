"""Build the files of a release, and install and try them as a user would. Nothing is uploaded.

    python tests/release.py FOLDER [VERSION ...]

Each Python that is found gets two environments: one with the lowest version of each dependency that the metadata
allow, and one with the newest. In each of them the wheel starts servers and runs the example of the README. A
Python version among the arguments has to be installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from zipfile import Path as ZipPath
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = ("embedded", "web")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def build(folder: Path) -> Path:
    """The wheel, beside its sdist, after checks of the metadata and of how the README is rendered."""
    tools, built = folder / "tools", folder / "dist"
    venv.create(tools, with_pip=True)
    run(tools / "bin/pip", "install", "--quiet", "build", "twine", "uv")
    run(tools / "bin/python", "-m", "build", "--outdir", built, ROOT)
    run(tools / "bin/twine", "check", "--strict", *built.iterdir())
    [wheel], [_] = built.glob("*.whl"), built.glob("*.tar.gz")
    check_files(wheel)
    return wheel


def check_files(wheel: Path) -> None:
    """Exit unless every file of the package is in the wheel."""
    names = set(ZipFile(wheel).namelist())
    for path in (ROOT / "src/hubbub").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and str(path.relative_to(ROOT / "src")) not in names:
            sys.exit(f"the wheel lacks {path}")


def metadata(wheel: Path) -> Distribution:
    [folder] = [path for path in ZipPath(wheel).iterdir() if path.name.endswith(".dist-info")]
    return PathDistribution(folder)


def requirements(wheel: Path) -> Iterator[str]:
    """The requirements of the wheel and of its `EXTRAS`."""
    for requirement in metadata(wheel).requires or ():
        needed, _, marker = requirement.partition(";")
        if not marker or any(f"extra == '{extra}'" in marker.replace('"', "'") for extra in EXTRAS):
            yield needed.strip()


def find(version: str) -> Path | None:
    """An interpreter of pyenv, or on the PATH, where it may be a shim of pyenv that runs nothing."""
    pyenv = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    on_path = shutil.which(f"python{version}")
    for python in [*pyenv, *([Path(on_path)] if on_path else [])]:
        if subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0:
            return python
    return None


def try_out(wheel: Path, python: Path, folder: Path, tools: Path, resolution: str) -> str:
    """Install the wheel, and run the example of the README on its own servers. Returns the output."""
    venv_folder, needed = folder / "venv", folder / "requirements.txt"
    run(python, "-m", "venv", venv_folder)
    needed.write_text("\n".join(requirements(wheel)) + "\n")
    # uv, because pip cannot choose lowest versions. A dependency counts from its first version that has a wheel.
    install = (tools / "bin/uv", "pip", "install", "--quiet", "--python", venv_folder / "bin/python")
    run(*install, "--only-binary", ":all:", "--resolution", resolution, "--requirement", needed)
    run(*install, "--no-deps", wheel)
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (folder / "example.py").write_text(program)
    hubbub = folder / "venv/bin/hubbub"
    run(hubbub, "up", cwd=folder)
    try:
        run(folder / "venv/bin/python", "-c", "import hubbub.web, hubbub.client, hubbub.sync", cwd=folder)
        return run(folder / "venv/bin/python", "example.py", cwd=folder)
    finally:
        run(hubbub, "down", cwd=folder)


def main(folder: Path, required: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wheel = build(folder)
    version = metadata(wheel).version
    if f"\n## {version}" not in (ROOT / "CHANGELOG.md").read_text():
        sys.exit(f"CHANGELOG.md has no section {version}")
    print(f"hubbub {version}: sdist and wheel built, metadata and README checked")  # noqa: T201
    for number in PYTHONS:
        python = find(number)
        if python is None:
            if number in required:
                sys.exit(f"Python {number}: none is installed")
            print(f"Python {number}: skipped, none is installed")  # noqa: T201
            continue
        for name, resolution in (("lowest", "lowest-direct"), ("newest", "highest")):
            environment = folder / f"{number}-{name}"
            environment.mkdir()
            printed = try_out(wheel, python, environment, folder / "tools", resolution)
            if "a retry gives the same message: True" not in printed:
                sys.exit(f"Python {number}, {name}: {printed}")
            print(f"Python {number}, {name} versions of dependencies: the example runs")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
