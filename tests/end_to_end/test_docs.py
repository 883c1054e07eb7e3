"""The documentation's code runs, shows what the page says, and its numbers are the measured ones.

Every ``python`` block is a case of its own, in a folder with nothing but a small ``streets.osm``. Its first line may
say more:

- ``# Continues the block above.``: it shares the names of the block before it, which is run first.
- ``# torchrun OPTIONS FILE``: it is run by two processes, under that name.

``<!-- check ... -->`` after a block holds assertions about its names; anywhere else it is code of its own, which backs
the paragraph before it. Every block has an assertion, in sight or in such a comment.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed import run as torchrun
from typer.testing import CliRunner

from tsjt_pyg import datasets
from tsjt_pyg.cli import app
from tsjt_pyg.datasets.grid import AboutGrid
from tsjt_pyg.datasets.named import NamedCityDataset
from tsjt_pyg.evaluation import Comparison
from tsjt_pyg.optim import TargetSkewedOptimizer

ROOT = Path(__file__).resolve().parents[2]
#: What is written by hand; the folders that begin with _ hold what the build of the site makes of it.
FILES = [p for p in sorted(ROOT.glob("docs/**/*.md")) if not p.relative_to(ROOT / "docs").parts[0].startswith("_")]
PAGES = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in FILES}
OPTIMIZER = PAGES["docs/optimizer.md"]
BENCHMARKS = ROOT / "benchmarks"

#: What may be missing, by what a block imports: the package that has to be there.
OPTIONAL = {
    "accelerate": "accelerate",
    "dask": "distributed",
    "lightning": "lightning",
    "osmnx": "osmnx",
    "schedulefree": "schedulefree",
    "tables": "tables",
    "torchjd": "torchjd",
    "torch_geometric_temporal": "torch_geometric_temporal",
    "torch.utils.tensorboard": "tensorboard",
}
CONTINUES = "# Continues the block above.\n"
PIECE = re.compile(r"^```python\n(?P<code>.*?)^```$|^<!-- check\n(?P<check>.*?)^-->$", flags=re.DOTALL | re.MULTILINE)
SECONDS = 60


@dataclass
class Block:
    """A block of code, or a check that stands alone."""

    page: str
    line: int
    code: str
    check: str = ""
    #: What has to be run before, in the same names.
    before: list[str] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        """What follows ``# torchrun`` in the first line; empty if the block is no such script."""
        first = self.code.partition("\n")[0]
        return shlex.split(first.removeprefix("# torchrun ")) if first.startswith("# torchrun ") else []

    def missing(self) -> list[str]:
        """Optional packages that it needs and that are not installed."""
        found = set()
        for node in ast.walk(ast.parse("".join((*self.before, self.code, self.check)))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {package for name, package in OPTIONAL.items() for m in modules if f"{m}.".startswith(f"{name}.")}
        return sorted(name for name in found if importlib.util.find_spec(name) is None)


def blocks_of(page: str, text: str) -> list[Block]:
    blocks: list[Block] = []
    end_of_code = -1
    for match in PIECE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        if match["check"] is not None and not text[end_of_code : match.start()].strip() and end_of_code >= 0:
            blocks[-1].check = match["check"]
            continue
        block = Block(page, line, match["code"] or match["check"])
        if block.code.startswith(CONTINUES):
            block.before = [*blocks[-1].before, blocks[-1].code]
        blocks.append(block)
        end_of_code = match.end() if match["code"] is not None else -1
    return blocks


BLOCKS = [block for page, text in PAGES.items() for block in blocks_of(page, text)]
SCRIPTS = [block for block in BLOCKS if block.command]
SHELL_LINES = [
    (page, line.partition("#")[0].strip())
    for page, text in PAGES.items()
    for code in re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    for line in code.splitlines()
    if line.strip()
]


def named(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the files that the pages name, a known seed, and nothing left of what a block sets for all."""
    shutil.copy(ROOT / "tests" / "data" / "streets.osm", tmp_path)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def test_there_is_something_to_run() -> None:
    assert len(BLOCKS) > 30
    assert len(SCRIPTS) >= 4
    assert SHELL_LINES
    written = sum(len(re.findall(r"^```python|^<!-- check", text, flags=re.MULTILINE)) for text in PAGES.values())
    assert written == len(BLOCKS) + sum(block.check != "" for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_every_block_has_an_assertion(block: Block) -> None:
    nodes = ast.walk(ast.parse(block.code + block.check))
    assert any(isinstance(node, ast.Assert) for node in nodes) or "assert_close(" in block.code + block.check


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.command], ids=named)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
def test_the_block_runs_and_shows_what_it_says(block: Block, fresh: None) -> None:
    if missing := block.missing():
        pytest.skip(f"{' and '.join(missing)} not installed")
    if "torch.compile(" in block.code and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        pytest.skip("torch.compile needs a C++ compiler")
    names: dict = {"__name__": "__main__"}
    for i, code in enumerate((*block.before, block.code, block.check)):
        exec(compile(code, f"{named(block)}, part {i}", "exec"), names)


class Processes:
    """Two processes with the variables that torchrun sets; they run one script after the other, to import once."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def run(self, script: Path) -> list[str]:
        """What went wrong in each process; empty where nothing did."""
        if not self.running:
            for rank in "01":
                variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
                self.running.append(
                    subprocess.Popen(
                        [sys.executable, "-c", RUNNER],
                        env={**os.environ, **variables, "OMP_NUM_THREADS": "1"},
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            request = json.dumps([str(script), str(free.getsockname()[1])])
        for process in self.running:
            print(request, file=process.stdin, flush=True)
        late = threading.Timer(SECONDS, self.kill)
        late.start()
        answers = [process.stdout.readline() for process in self.running]  # type: ignore[union-attr]
        late.cancel()
        if not all(answers):
            self.stop()
        return [json.loads(answer) if answer else f"no answer within {SECONDS} s" for answer in answers]

    def kill(self) -> None:
        for process in self.running:
            process.kill()

    def stop(self) -> None:
        self.kill()
        for process in self.running:
            process.communicate()
        self.running = []


RUNNER = """
import contextlib, json, os, runpy, sys, traceback
from torch import distributed

kept = []  # a DDP model that is freed after its process group hangs at times; here both live as long as the process
for line in sys.stdin:
    script, os.environ["MASTER_PORT"] = json.loads(line)
    os.chdir(os.path.dirname(script))
    trouble = ""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            kept.append(runpy.run_path(script, run_name="__main__"))
        except BaseException:
            trouble = traceback.format_exc()
        if distributed.is_initialized():
            distributed.destroy_process_group()
    print(json.dumps(trouble), flush=True)
"""


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch was built without torch.distributed or without gloo")
    started = Processes()
    yield started
    started.stop()


@pytest.mark.parametrize("block", SCRIPTS, ids=named)
def test_the_script_runs_in_two_processes(block: Block, processes: Processes, tmp_path: Path) -> None:
    script = tmp_path / block.command[-1]
    script.write_text(f"{block.code}\n{block.check}", encoding="utf-8")
    for trouble in processes.run(script):
        assert not trouble, trouble


@pytest.mark.parametrize("block", SCRIPTS, ids=named)
def test_torchrun_knows_the_scripts_options(block: Block) -> None:
    options = torchrun.parse_args(block.command)
    assert options.nproc_per_node == "2"
    assert options.training_script == block.command[-1]


@pytest.mark.parametrize(("page", "line"), SHELL_LINES)
def test_the_command_exists_with_its_options(
    page: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, command, *rest = shlex.split(line)
    if program == "tsjt":
        text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert f"{command} [OPTIONS]" in text
    else:
        assert program == "python", f"{page}: do not know how to check {line!r}"
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.setattr(sys, "argv", [command, "--help"])
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / command), run_name="__main__")
        text = capsys.readouterr().out
        assert "usage:" in text
    for option in [word for word in rest if word.startswith("--")]:
        assert option in text


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    prose = re.sub(r"^```.*?^```$|<!--.*?-->", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^):]+)\)", prose):
        file, _, heading = link.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], link


def rows_after(text: str, start: str) -> list[list[str]]:
    """The cells of the table that follows, header and all, without the line of dashes."""
    table = text.split(start, 1)[1].strip().split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    return [rows[0], *rows[2:]]


def test_the_gains_are_the_measured_ones() -> None:
    header, *rows = rows_after(OPTIMIZER, "<!-- measured: gains -->")
    for task, *cells in rows:
        folder = re.search(r"\((\.\./benchmarks/results/\w+)\)", task)
        assert folder is not None
        found = Comparison.load(ROOT / "docs" / folder[1])
        assert f"{found.protocol['visible_days']:g} visible days" in task
        gains = [str(found.gain(name)) for name in header[1:-1]]
        rates = [run.stats["conflict_rate"] for run in found.runs("tsjt")]
        assert cells == [*gains, f"{100 * sum(rates) / len(rates):.1f}"]
    assert len(rows) == 3


def test_every_class_of_a_city_is_on_the_page() -> None:
    classes = [c for c in vars(datasets).values() if isinstance(c, type) and issubclass(c, NamedCityDataset)]
    named = [f"| `{c.__name__}` | `{c.city_name}` | " for c in classes]
    assert len(named) == sum(entry.group not in ("demo", "libcity") for entry in datasets.list_cities("nowhere"))
    assert [row for row in named if row not in PAGES["docs/pyg_datasets.md"]] == []


def test_every_reader_is_on_the_page_with_its_arguments() -> None:
    for name in [name for name in datasets.__all__ if name.startswith(("read_", "map_"))]:
        assert re.search(rf"^from tsjt_pyg.datasets import .*\b{name}\b", PAGES["docs/formats.md"], flags=re.MULTILINE)
        signature = inspect.signature(getattr(datasets, name))
        known = [*signature.parameters, *(AboutGrid.__annotations__ if name == "read_grid" else ())]
        for argument in [argument for argument in known if argument != "about"]:
            assert re.search(rf"`{argument}`|\b{argument}\b[=,)]", PAGES["docs/formats.md"]), (name, argument)


def test_the_table_of_source_weights_is_the_measured_one() -> None:
    table = OPTIMIZER.split("<!-- measured: source weight -->")[1].strip().split("\n\n")[0]
    assert table in (BENCHMARKS / "results/source_weight.md").read_text(encoding="utf-8")


def test_every_argument_of_the_optimizer_is_on_the_page() -> None:
    arguments = list(inspect.signature(TargetSkewedOptimizer.__init__).parameters)[1:]
    missing = [name for name in arguments if not re.search(rf"`{name}\b|\b{name}=", OPTIMIZER)]
    assert missing == ["params", "base_kwargs"]


@pytest.fixture(scope="module")
def peak_copies() -> Callable[..., float]:
    """Measures what a training takes at its peak, in copies of all gradients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        peak_bytes = importlib.import_module("optimizer_peers").peak_bytes
    params = [torch.zeros(256, 256, requires_grad=True) for _ in range(8)]
    data = [[torch.randn(256, 256) for _ in params] for _ in range(2)]

    def backward(which: int) -> None:
        torch.stack([(p * c).sum() for p, c in zip(params, data[which], strict=True)]).sum().backward()

    def train(make_optimizer: Callable[[], Any], kinds: Sequence[str]) -> None:
        optimizer = make_optimizer()
        for _ in range(2):
            optimizer.zero_grad()
            for i, kind in enumerate(kinds):
                with getattr(optimizer, kind, contextlib.nullcontext)():
                    backward(i % 2)
            optimizer.step()

    def measure(kinds: Sequence[str] = ("source", "target"), **options: Any) -> float:
        make = partial(TargetSkewedOptimizer, params, **options) if options else partial(torch.optim.Adam, params)
        peak = peak_bytes(lambda: train(make, kinds), torch.device("cpu"))
        for p in params:
            p.grad = None
        return float(peak) / sum(4 * p.numel() for p in params)

    summed = measure()
    return lambda *args, **options: measure(*args, **options) - summed


@pytest.mark.parametrize(
    ("option", "copies"), [(row[0], row[3]) for row in rows_after(OPTIMIZER, "large tensors.")[1:]]
)
def test_the_option_takes_as_many_copies_as_the_page_says(
    option: str, copies: str, peak_copies: Callable[..., float]
) -> None:
    options = eval(f"dict({option.strip('`')})", {"function": lambda gram: torch.ones(len(gram))})
    kinds = ["source", "target", "held_out"] if "held_out" in option else ["source", "target"]
    assert round(peak_copies(kinds, **options)) == int(copies)


WRITTEN = {
    p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8")
    for p in (ROOT / "README.md", *FILES, *sorted(ROOT.glob("benchmarks/results/*.md")))
}


@pytest.mark.parametrize("page", WRITTEN)
def test_no_page_holds_a_placeholder_or_the_marks_of_a_merge(page):
    found = re.findall(r"^(?:[A-Z]+_[A-Z_]+|<{7} .*|>{7} .*|={7}|.*\bTODO\b.*)$", WRITTEN[page], flags=re.MULTILINE)
    assert not found, f"{page}: {found}"
