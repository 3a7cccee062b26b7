"""The wheel holds what the repository does; the package imports cheaply; the README says what runs."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAPPED = ("compress", "merge", "prune", "cli")


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing to compare the wheel with")
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [line for line in listing.stdout.splitlines() if (ROOT / line).exists()]


def test_wheel_holds_what_git_holds(tmp_path: Path) -> None:
    """An unlisted sub-package works in an editable install and is missing from the wheel."""
    files = tracked()
    expected = {
        ("paring/" if name.split("/")[0] in MAPPED else "") + name
        for name in files
        if name.split("/")[0] in (*MAPPED, "paring")
        and not (ROOT / name).is_symlink()
        and (ROOT / name).is_file()
    }
    source = tmp_path / "source"
    for name in files:  # a build writes beside its sources
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        else:
            target.write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {name.split("/")[0] for name in found} == {"paring"}


@pytest.mark.parametrize(
    "module", ["paring", "paring.registry", "paring.api", "paring.cli", "paring.cli.compress"]
)
def test_import_is_cheap(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'numba', 'scipy', 'rich'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_readme_names_only_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert (ROOT / link).exists(), link


def test_constraints_cover_all_requirements() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    for requirement in wanted:
        name = re.sub(r"[-_.]+", "-", re.split(r"[<>=\[ ]", requirement)[0]).lower()
        assert name in pinned, requirement
