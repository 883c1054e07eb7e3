"""A user's script: the API card and the README's loop, with types. It is checked by ``mypy --strict`` and run.

Of the repository, and of the wheel in an empty environment, from a folder that holds nothing else.
"""

from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import assert_type

import networkx as nx  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam

import tsjt_pyg
from tsjt_pyg import City, CityPairLoader, Forecaster, NodePrompting, TargetSkewedOptimizer, check_transferable
from tsjt_pyg.data import CityPair, StandardScaler, TableReport, WindowBatch, Windows
from tsjt_pyg.datasets import CityDataset, CityEntry, list_cities, load_city
from tsjt_pyg.evaluation import Comparison, advise, compare, masked_mae, masked_mape, masked_rmse
from tsjt_pyg.nn import accelerate
from tsjt_pyg.optim import SkewHistory, skew
from tsjt_pyg.training import (
    FitResult,
    ModelConfig,
    SavedModel,
    Strategy,
    fit,
    forecast_windows,
    progress_bar,
)
from torch_geometric_temporal.nn.recurrent import GConvGRU  # type: ignore[import-untyped] # after tsjt_pyg


def cities() -> tuple[City, City]:
    """The named ones, with all that a city says of itself."""
    entries: list[CityEntry] = list_cities()
    assert {"demo/gridport", "demo/ringwood", "demo/riverton"} <= {entry.name for entry in entries if entry.present}
    city, rich = (load_city(f"demo/{name}").select("speed") for name in ("riverton", "ringwood"))
    assert_type(city, City)
    assert_type(city.readings, Tensor)
    assert_type(city.mask, Tensor)
    assert_type(city.edge_index, Tensor)
    assert_type(city.pos, Tensor | None)
    assert_type(city.name, str)
    assert_type(city.node_ids, tuple[str, ...])
    assert_type(city.units, tuple[str, ...])
    assert_type(city.channels, tuple[str, ...])
    assert_type(city.num_nodes * city.num_steps * city.steps_per_day, int)
    assert_type(city.missing, float)
    print(city.describe().facts()[0])
    return city, rich


def own_cities() -> None:
    """Every constructor that needs no file."""
    rng = np.random.default_rng(0)
    readings, ring = rng.random((600, 4)).astype(np.float32), np.roll(np.eye(4), 1, axis=1)
    place = 38 + rng.random((4, 2)) / 100
    graph = nx.cycle_graph(4, create_using=nx.DiGraph)
    nx.set_edge_attributes(graph, 100.0, "length")
    ends = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    made = [
        City.from_adjacency(readings, ring, name="a", channels="speed", units="km/h", start="2026-01-05"),
        City.from_edge_index(readings, ends, torch.ones(4), interval="5min"),
        City.from_distances(readings, np.where(ring > 0, 100.0, np.inf), sigma=100.0, positions=place),
        City.from_positions(readings, place, k=2),
        City.from_networkx(readings, graph),
    ]
    for city in made:
        repaired, report = city.repair(stuck="3h")
        print(repaired, report, sep="\n")
        assert city.to_dataset(history=12, horizon=12).len() == len(city.windows(12, 12))
        assert city.to_signal(history=12, horizon=12) is not None
    with TemporaryDirectory() as folder:
        assert City.load(made[0].save(Path(folder) / "a.npz")).fingerprint() == made[0].fingerprint()


def loss(model: torch.nn.Module, batch: WindowBatch, scale: StandardScaler) -> Tensor:
    """The README's."""
    x, y = scale.transform(batch.x, batch.x_mask), scale.transform(batch.y)
    forecast = model(x, batch.edge_index, batch.edge_weight, x_mask=batch.x_mask, time_of_day=batch.time_of_day)
    return masked_mae(forecast, y, batch.y_mask)


def own_loop(city: City, rich: City) -> dict[str, float]:
    """The optimizer in a loop of one's own."""
    visible, _ = city.few_shot(days=3)
    scale = {c: StandardScaler().fit(c.readings, c.mask) for c in (visible, rich)}
    prompt = NodePrompting(in_channels=1, prompt_channels=8, num_prompts=16)
    cell = GConvGRU(16, 16, K=2)
    model = Forecaster(cell, history=12, horizon=12, in_channels=1, out_channels=1, prompting=prompt)
    check_transferable(model)
    accelerate(cell)
    optimizer = TargetSkewedOptimizer(model.parameters(), base=Adam, lr=3e-3, filter="gate", scope="tensor")
    history = SkewHistory(optimizer)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
    assert isinstance(optimizer, torch.optim.Optimizer)
    loader = CityPairLoader([rich.windows(12, 12)], visible.windows(12, 12), batch_size=4)
    for source, target, name in islice(loader, 2):
        assert_type(source, WindowBatch)
        optimizer.zero_grad()
        with optimizer.source(str(name)):
            loss(model, source, scale[rich]).backward()  # type: ignore[no-untyped-call] # torch's
        with optimizer.target():
            loss(model, target, scale[visible]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    pair: CityPair = next(iter(loader))
    optimizer.backward(loss(model, pair.source, scale[rich]), loss(model, pair.target, scale[visible]))
    optimizer.step()
    assert history.to_frame()["step"].max() == 3
    gradient, kappa = skew([torch.ones(2)], [-torch.ones(2)], gamma_source=1.0, gamma_target=1.0)
    assert_type(gradient, list[Tensor | None])
    assert_type(kappa, Tensor | None)
    with torch.no_grad():
        assert model.prompting is not None
        x: Tensor = model.prompting(pair.target.x, pair.target.edge_index, pair.target.edge_weight)
    assert x.shape[-1] == 1 + 8
    stats: dict[str, float] = optimizer.stats()
    return stats


def trained(city: City, rich: City) -> float:
    """Ten lines of the README."""
    visible, test = city.few_shot(days=3)
    model = ModelConfig(cell="GConvGRU", hidden_channels=8).build()
    with TemporaryDirectory() as folder:
        with progress_bar("training") as progress:
            result: FitResult = fit(
                model, visible, [rich], strategy="tsjt", steps=2, evaluations=1, output=folder, progress=progress
            )
        print(*result.verdicts, SavedModel.load, sep="\n")
    windows: Windows = test.windows(12, 12)
    batch, forecast = next(forecast_windows(result.model, windows, result.scaler, support=result.support))
    assert_type(forecast, Tensor)
    errors = [float(metric(forecast, batch.y, batch.y_mask)) for metric in (masked_mae, masked_rmse, masked_mape)]
    return errors[0]


def compared(city: City, rich: City) -> None:
    """One table."""
    slow = Strategy("slow", source_weight=0.5)
    found: Comparison = compare(
        city,
        [rich],
        ["target_only", slow],
        visible_days=2,
        seeds=[0],
        steps=1,
        model=ModelConfig(hidden_channels=4, profile=False),
        verbose=False,
    )
    advice = advise(found)
    assert advice is not None
    print(found.to_markdown(), advice.text, found.to_frame()["mae"].min(), sep="\n")


def report_of(report: TableReport, data: CityDataset) -> tuple[int, int]:
    """What needs files is only looked at."""
    return report.steps, len(data)


if __name__ == "__main__":
    print(tsjt_pyg.__version__)
    own_cities()
    target, source = cities()
    print(own_loop(target, source)["steps"], trained(target, source))
    compared(target.between(0, 3 * target.steps_per_day), source)
