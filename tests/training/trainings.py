"""What two processes train, and one process with the whole batches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from two_processes import launched
from typer.testing import CliRunner

from tsjt_pyg.cli import app
from tsjt_pyg.data import City
from tsjt_pyg.nn import CityEmbedding, Forecaster
from tsjt_pyg.training import ModelConfig, Processes, fit
from tsjt_pyg.training.distributed import ALONE

CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=3)
SETTINGS = {"steps": 50, "batch_size": 7, "lr": 1e-2, "evaluations": 4}
"""Neither 7 windows nor what is observed of them can be shared out evenly."""

Task = tuple[City, list[City]]


@dataclass
class Trained:
    model: dict[str, torch.Tensor]
    last: dict[str, torch.Tensor]
    log: list[dict[str, Any]]
    best_step: int
    verdicts: list[Any]
    stats: dict[str, float]


class Spoiler:
    def __init__(self, spoilt: tuple[int, ...]) -> None:
        self.spoilt, self.calls = spoilt, 0

    def __call__(self, model: torch.nn.Module, _: Any, forecast: torch.Tensor) -> torch.Tensor | None:
        self.calls += model.training
        return forecast * torch.nan if model.training and self.calls in self.spoilt else None


def embedded(cities: list[City]) -> Forecaster:
    """Each city has parameters that no batch of another uses."""
    embedding = CityEmbedding({city.name: city.num_nodes for city in cities}, 3)
    return Forecaster(torch.nn.GRU(8, 8), history=6, horizon=3, city_embedding=embedding)


def trained(
    rank: int | None,
    task: Task,
    strategy: str = "tsjt",
    embedding: bool = False,
    parallel: str = "ddp",
    precision: str = "32",
    stop_at: int | None = None,
    timeout: float = 60.0,
    spoilt: tuple[int, ...] = (),
    **settings: Any,
) -> Trained | str:
    """The result; or what went wrong. ``spoilt``: which forecasts of the last rank's training are nan."""
    visible, sources = task
    torch.manual_seed(rank or 0)  # ranks begin with different models: rank 0's counts
    model = embedded([visible, *sources]) if embedding else CONFIG.build()
    if rank != 0:
        model.register_forward_hook(Spoiler(spoilt))
    steps = []

    def stop() -> bool:
        steps.append(1)
        return rank != 0 and len(steps) == stop_at

    try:
        with launched(rank):
            alone = rank is None and precision == "32"
            with ALONE if alone else Processes(parallel, precision, timeout=timeout) as processes:
                settings = {**SETTINGS, "stop": stop if stop_at else None, **settings}
                result = fit(model, visible, sources, strategy, processes=processes, **settings)
    except (ValueError, OSError, ArithmeticError, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    assert all(type(p) is torch.nn.Parameter for p in result.model.parameters())
    return Trained(
        result.model.state_dict(), result.last_model, result.log, result.best_step, result.verdicts, result.stats
    )


PATIENCE = 5
"""Seconds that processes wait for one that is lost."""


def with_one_lost(rank: int, task: Task, hang: bool) -> str:
    """Rank 1 ends, or does not go on, in the middle of the training; what rank 0 says, and after how long."""
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        if rank == 1 and done == 3:
            if hang:
                time.sleep(3 * PATIENCE)
            distributed.destroy_process_group()
            raise OSError("rank 1 is gone")

    # Asked at each step, through the group whose timeout it is.
    found = trained(rank, task, "pooled", timeout=PATIENCE, progress=progress, stop_at=1000)
    return f"{found} ({time.monotonic() - began:.0f} s)"


def typed(rank: int, arguments: list[str]) -> tuple[int, str]:
    """Exit status and all output of a command that torchrun started."""
    with launched(rank):
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return result.exit_code, result.output


def with_other_settings(rank: int, task: Task) -> Trained | str:
    return trained(rank, task, seed=rank)
