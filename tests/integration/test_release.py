"""Release archives are reproducible and contain the whole package and nothing else."""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import llmsim_magic

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
PROJECT: dict[str, Any] = tomllib.loads(PYPROJECT)["project"]
DISTRIBUTION = "llmsim_magic-" + llmsim_magic.__version__

# Which Apache-2.0 software may depend on; the last two as they are, unchanged.
LICENCES = re.compile(r"\b(Apache|MIT|BSD|ISC|PSF|Python Software Foundation|MPL.2\.0|EPL-2\.0)\b")
REFUSED = re.compile(r"GPL|SSPL|Propriet|Commercial", re.IGNORECASE)
# What torch's CUDA build brings and its CPU build does not.
CUDA = re.compile(r"(nvidia|cuda)-|triton$")


def _declared() -> dict[str, Requirement]:
    """What users and tests install; `bench` is what benchmarks are compared with."""
    extras = PROJECT["optional-dependencies"]
    lists = [PROJECT["dependencies"], *(extras[name] for name in extras if name != "bench")]
    found = [Requirement(line) for lines in lists for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def _pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pins}


def test_the_lowest_pins_are_the_bounds_that_are_declared() -> None:
    bounds = {
        name: Version(bound.version)
        for name, requirement in _declared().items()
        for bound in requirement.specifier
        if bound.operator == ">="
    }
    assert bounds == _pins("constraints-lowest.txt")


def test_what_ci_runs_with_is_pinned_and_within_the_bounds() -> None:
    pins = _pins("constraints.txt")
    for name, requirement in _declared().items():
        assert pins[name] in requirement.specifier, name


def test_an_upper_bound_has_its_reason_above_it() -> None:
    lines = PYPROJECT.splitlines()
    bounded = [place for place, line in enumerate(lines) if re.match(r'\s*"[\w-]+.*<[\d.]', line)]
    assert bounded
    for place in bounded:
        assert lines[place - 1].strip().startswith("#"), lines[place]


def test_the_version_is_said_once() -> None:
    assert PROJECT["dynamic"] == ["version"]
    said = re.compile(rf'["\']{re.escape(llmsim_magic.__version__)}["\']')
    files = [*(ROOT / "llmsim_magic").rglob("*.py"), ROOT / "pyproject.toml"]
    assert [file.name for file in files if said.search(file.read_text("utf-8"))] == ["__init__.py"]


def test_every_package_that_is_imported_is_declared() -> None:
    homes = metadata.packages_distributions()
    extra = PROJECT["optional-dependencies"]["train"]
    lines = (*PROJECT["dependencies"], *extra)  # what it has is imported where a step asks for it
    needed = {canonicalize_name(Requirement(line).name) for line in lines}
    for file in (ROOT / "llmsim_magic").rglob("*.py"):
        for name in _imported(file.read_text("utf-8")) - sys.stdlib_module_names - {"llmsim_magic"}:
            assert needed & set(map(canonicalize_name, homes.get(name, [name]))), (file, name)


def _imported(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def test_the_licence_of_every_dependency_is_one_to_build_on() -> None:
    for distribution in _needed():
        name = canonicalize_name(distribution.name)
        if not CUDA.match(name):
            licence = _licence(distribution)
            assert LICENCES.search(licence), (name, licence)
            assert not REFUSED.search(licence), (name, licence)


def _needed() -> Iterator[metadata.Distribution]:
    """What is installed for the package itself, directly or through another, each once."""
    seen = set()
    open_ends = [Requirement("llmsim-magic")]
    while open_ends:
        requirement = open_ends.pop()
        if requirement.name in seen:
            continue
        seen.add(requirement.name)
        distribution = metadata.distribution(requirement.name)
        yield distribution
        for line in distribution.requires or ():
            needs = Requirement(line)
            extras = requirement.extras or {""}
            if needs.marker is None or any(needs.marker.evaluate({"extra": e}) for e in extras):
                open_ends.append(needs)


def _licence(distribution: metadata.Distribution) -> str:
    """The licence as its metadata has it: an expression, or classifiers, or words."""
    facts = distribution.metadata
    classifiers = [line for line in facts.get_all("Classifier", []) if line.startswith("License")]
    words = (facts.get("License") or "").strip().partition("\n")[0]
    return facts.get("License-Expression") or " ".join(classifiers) or words


class Built(NamedTuple):
    sources: Path
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    return [name for name in listed.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Built:
    """From a checkout in which other things lie about."""
    sources = tmp_path_factory.mktemp("here")
    _check_out(tracked, sources)
    for litter in (
        "credentials.env",
        ".venv/lib/other.py",
        "llmsim_magic/__pycache__/old.pyc",
        "notebooks/tables/ops.csv",
        "notebooks/.ipynb_checkpoints/tour.ipynb",
    ):
        file = sources / litter
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("not to be released")
    return _build(sources, {})


def _check_out(tracked: list[str], where: Path) -> None:
    for name in tracked:
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, where / name)


def _build(sources: Path, environment: dict[str, str], umask: int = 0o022) -> Built:
    clean = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build"],
        cwd=sources,
        env=clean | environment,
        umask=umask,
        check=True,
        capture_output=True,
    )
    (wheel,) = (sources / "dist").glob("*.whl")
    (sdist,) = (sources / "dist").glob("*.tar.gz")
    return Built(sources, wheel, sdist)


@pytest.mark.slow
def test_the_wheel_is_the_package_whole_and_nothing_else(built: Built, tracked: list[str]) -> None:
    package = {name for name in tracked if name.startswith("llmsim_magic/")}
    about = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert {"llmsim_magic/py.typed", "llmsim_magic/views/graph_viewer/drawing.js"} < package
    with zipfile.ZipFile(built.wheel) as wheel:
        assert set(wheel.namelist()) == package | {
            f"{DISTRIBUTION}.dist-info/{name}" for name in about
        }


@pytest.mark.slow
def test_the_sdist_is_what_builds_tests_and_tells(built: Built, tracked: list[str]) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    released = {name for name in tracked if not name.startswith((".ci/", ".github/"))}
    assert names == released | {"PKG-INFO"}


@pytest.mark.slow
def test_the_same_sources_give_the_same_bytes(
    built: Built, tracked: list[str], tmp_path: Path
) -> None:
    """Elsewhere, at another time, for another user, in another country; and from the sdist."""
    other = tmp_path / "elsewhere"
    _check_out(list(reversed(tracked)), other)
    for file in other.rglob("*"):
        os.utime(file, (86_400, 86_400))
    abroad = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "HOME": str(tmp_path)}
    again = _build(other, abroad, umask=0o077)
    with tarfile.open(built.sdist) as sdist:
        sdist.extractall(tmp_path, filter="data")
    unpacked = _build(tmp_path / DISTRIBUTION, {})
    for anew in (again, unpacked):
        assert anew.wheel.read_bytes() == built.wheel.read_bytes()
        assert anew.sdist.read_bytes() == built.sdist.read_bytes()


@pytest.mark.slow
def test_the_wheel_says_what_it_is(built: Built) -> None:
    facts = _facts(built.wheel)
    assert facts["Version"] == llmsim_magic.__version__
    assert facts["License-Expression"] == "Apache-2.0"
    assert facts.get_all("License-File") == ["LICENSE"]
    assert facts["Requires-Python"] == PROJECT["requires-python"]
    assert facts["Description-Content-Type"] == "text/markdown"
    assert facts.get_payload(decode=True) == (ROOT / "README.md").read_bytes()
    plain = [line for line in facts.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert set(map(Requirement, plain)) == set(map(Requirement, PROJECT["dependencies"]))


def _facts(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as opened:
        return email.message_from_bytes(opened.read(f"{DISTRIBUTION}.dist-info/METADATA"))


@pytest.mark.slow
def test_a_release_is_a_commit_and_a_tag_of_the_next_version(
    tracked: list[str], tmp_path: Path
) -> None:
    _check_out(tracked, tmp_path)
    environment = os.environ | {
        f"GIT_{who}_{what}": "someone@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }

    def run(*command: str) -> str:
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).strip()

    run("git", "init", "--quiet")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "All of it")
    run(sys.executable, ".ci/release", "minor")
    now = Version(llmsim_magic.__version__)
    version = f"{now.major}.{now.minor + 1}.0"
    assert run("git", "describe", "--exact-match") == f"v{version}"
    assert run(sys.executable, "-m", "hatchling", "version") == version
    changes = (tmp_path / "CHANGELOG.md").read_text("utf-8")
    assert f"## Unreleased\n\n## {version} (" in changes
    assert run("git", "status", "--porcelain") == ""
