"""What a user installs: built from the tree, the three folders land inside ``ovd_gym`` and nothing else comes along."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ("envs", "agents", "teachers")


def build(source: Path, target: str, out: Path) -> Path:
    """Build ``target`` of the tree at ``source`` with the declared backend and without the network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


def files_of_package() -> set[str]:
    """Every file the installed package should have, by its path in the wheel."""
    found = set()
    for folder, prefix in (("ovd_gym", ""), *((plugin, "ovd_gym/") for plugin in PLUGINS)):
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder],
            capture_output=True, text=True, check=True, cwd=ROOT,
        ).stdout.splitlines()  # fmt: skip
        found |= {prefix + name for name in listed if (ROOT / name).is_file()}
    return found


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files_of_package()
    assert {"ovd_gym/envs/base.py", "ovd_gym/teachers/base.py", "ovd_gym/py.typed"} <= names
    assert {"ovd_gym/report/report.html.j2", "ovd_gym/report/assets/main.js"} <= names
    assert any(name.startswith("ovd_gym/agents/") for name in names)
    assert any(name.startswith("ovd_gym/teachers/prompts/") for name in names)


def test_the_wheel_takes_no_name_but_its_own(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"ovd_gym"}
    assert len(names) == len(set(names))


def test_the_wheel_names_its_command(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(path).decode()
    assert "ovd-gym = ovd_gym.cli:main" in text


def test_the_wheel_works_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import ovd_gym.envs.base, ovd_gym.teachers.base, ovd_gym.report.page as p\n"
        "print(ovd_gym.envs.base.__file__); assert '<h1>hello</h1>' in p.render_page('hello', {}, {})"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "ovd_gym" / "envs" / "base.py"


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert (source / "tests").is_dir()
    assert not list((source / "ovd_gym").glob("envs*"))  # neither the link nor a second copy
    again = build(source, "wheel", tmp_path / "again")

    def content(path: Path) -> dict[str, int]:
        return {info.filename: info.CRC for info in ZipFile(path).infolist()}

    assert content(again) == content(wheel)
