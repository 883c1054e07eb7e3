"""``make package``: the sdist and the wheel, used as by somebody who has no clone.

Builds both (the wheel from the sdist), holds their files against those that git tracks, installs the wheel into an
empty environment outside the clone, and does there what the README promises.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
TEMPORAL = "torch-geometric-temporal==0.56.2"
MOST = 6 * 2**20
"""Bytes of the sdist and of the wheel; the three bundled cities take half of that."""
REPORT = 8 * 2**20
"""Bytes of the page that `tsjt report` writes."""


def run(*command: str | Path, folder: Path, fails: bool = False) -> str:
    """What a command prints; without what this environment would lend it."""
    lent = ("PYTHONPATH", "PYTHONHOME", "TSJT_CITIES", "VIRTUAL_ENV")
    known = {name: value for name, value in os.environ.items() if name not in lent} | {"COLUMNS": "200"}
    started = time.perf_counter()
    ran = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=known,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = " ".join(Path(str(part)).name if os.sep in str(part) else str(part) for part in command)
    print(f"{time.perf_counter() - started:6.1f} s  {shown}", flush=True)
    assert (ran.returncode != 0) == fails, f"{shown}: status {ran.returncode}\n{ran.stdout}"
    return ran.stdout


def tracked() -> set[str]:
    """The files that belong into the sdist for the package's sake, as git knows them."""
    files = run("git", "ls-files", "tsjt_pyg", "datasets", folder=ROOT).splitlines()
    return {file for file in files if PurePosixPath(file).suffix in (".css", ".js", ".md", ".npz", ".py", ".typed")}


def check_files(sdist: Path, wheel: Path) -> None:
    """Both hold what is tracked and nothing else, and are small."""
    for path in (sdist, wheel):
        assert path.stat().st_size < MOST, f"{path.name}: {path.stat().st_size} bytes, at most {MOST} are sane"
    expected = tracked()
    about = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"}
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    names = {name for name in names if not name.startswith("tsjt_pyg.egg-info/")}
    same(sdist, names, expected | about | {"pyproject.toml", "setup.cfg"})
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    meta = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")}
    bundled = {f"tsjt_pyg/datasets/bundled{file.removeprefix('datasets')}" for file in expected if file[0] == "d"}
    code = {file for file in expected if file[0] == "t"}
    same(wheel, names, code | bundled | meta | {f"{info}/licenses/LICENSE"})


def same(path: Path, found: set[str], expected: set[str]) -> None:
    """Says what is missing and what is there for no reason."""
    assert found == expected, (
        f"{path.name}: missing {sorted(expected - found)}, too much {sorted(found - expected)}; pyproject.toml lists "
        "packages and their data, git the files that there are"
    )


def check_use(wheel: Path, folder: Path) -> None:
    """The main jobs, in an empty environment."""
    venv.create(folder / "env", with_pip=True)
    bin = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    python, tsjt = bin / "python", bin / "tsjt"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    work = folder / "work"
    work.mkdir()
    for script in ("user_script.py", "missing_extras.py"):
        shutil.copy(HERE / script, work)
    run(*pip, "-c", ROOT / "constraints.txt", f"{wheel}[viz]", folder=work)
    assert f"pip install --no-deps {TEMPORAL}" in run(tsjt, "doctor", folder=work, fails=True)
    run(*pip, "--no-deps", TEMPORAL, folder=work)
    where = run(python, "-c", "import tsjt_pyg; print(tsjt_pyg.__file__)", folder=work)
    assert str(folder / "env") in where, where

    assert "tsjt_pyg" in run(tsjt, "doctor", folder=work)
    assert "demo/riverton" in run(tsjt, "cities", folder=work)
    assert "advice" in (said := run(tsjt, "demo", "--quick", folder=work)) or "warning" in said, said
    run(tsjt, "report", "runs/demo", folder=work)
    (page,) = work.rglob("*.html")
    assert 0 < page.stat().st_size < REPORT, f"{page.name}: {page.stat().st_size} bytes"
    run(python, "user_script.py", folder=work)
    run(python, "missing_extras.py", folder=work)
    # The mypy of this environment, in the user's: no settings, and no types but those that are installed there.
    mypy = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", python)
    run(*mypy, "user_script.py", folder=work)


def main() -> None:
    """All of it, in a folder that is gone after it."""
    with TemporaryDirectory(prefix="tsjt-package-") as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
        (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
        check_files(sdist, wheel)
        print(f"{sdist.stat().st_size / 2**20:.1f} MB sdist, {wheel.stat().st_size / 2**20:.1f} MB wheel")
        check_use(wheel, folder)
    print("the package is fine")


if __name__ == "__main__":
    main()
