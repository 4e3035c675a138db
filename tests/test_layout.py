"""The layout: our packages are ours, tests are no packages, and imports go one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import actors
import backend
import daemon
import hrm

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN_IN_ACTORS = {
    "asyncio",
    "daemon",
    "logging",
    "os",
    "pathlib",
    "random",
    "redis",
    "socket",
    "structlog",
    "subprocess",
    "threading",
    "time",
    "torch",
}


@pytest.mark.parametrize(
    "package", [actors, backend, daemon, hrm], ids=lambda package: package.__name__
)
def test_the_packages_are_those_of_this_repository(package: object) -> None:
    # The python-daemon distribution installs a package of the same name, which would shadow ours.
    file = getattr(package, "__file__", None)

    assert file is not None
    assert Path(file).resolve() == ROOT / getattr(package, "__name__", "") / "__init__.py"


def test_no_folder_of_tests_is_a_package() -> None:
    # tests/test_hrm as a package named hrm would shadow the model.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_operators_commands_do_without_torch() -> None:
    # It takes seconds to load, and `kill` must not wait for it.
    program = "import sys, daemon.cli; sys.exit('torch' in sys.modules)"

    finished = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=ROOT, timeout=240, capture_output=True
    )

    assert finished.returncode == 0, finished.stderr.decode()


def imports_of(path: Path) -> set[str]:
    """Return the names of the modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def package_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "actors").glob("*.py")), ids=lambda path: path.stem)
def test_actors_do_no_io_and_read_no_clock(path: Path) -> None:
    assert {package_of(module) for module in imports_of(path)} & FORBIDDEN_IN_ACTORS == set()


@pytest.mark.parametrize("path", sorted((ROOT / "hrm").rglob("*.py")), ids=lambda path: path.stem)
def test_the_model_knows_nothing_of_trading(path: Path) -> None:
    assert {package_of(module) for module in imports_of(path)} & {"actors", "daemon"} == set()


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "daemon").rglob("*.py"), *(ROOT / "backend").rglob("*.py")]),
    ids=lambda path: path.stem,
)
def test_tensors_stay_in_the_model(path: Path) -> None:
    assert "torch" not in {package_of(module) for module in imports_of(path)}
