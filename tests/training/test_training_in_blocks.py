"""Training and forecasting of a city in blocks of its nodes: the losses, forecasts and verdicts of the whole city."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch_geometric.nn import GCNConv

from tsjt_pyg.data import NodeBlocks, StandardScaler, last_value
from tsjt_pyg.data.last_value import node_means
from tsjt_pyg.data.rows import column_blocks
from tsjt_pyg.evaluation.measuring import measure
from tsjt_pyg.nn import CityEmbedding, Forecaster
from tsjt_pyg.training import ModelConfig, fit, forecast_windows, guard
from tsjt_pyg.training.batches import TrainingBatches
from tsjt_pyg.training.checkpoint import load_checkpoint

SETTINGS = {"steps": 12, "batch_size": 8, "evaluations": 4, "lr": 1e-2}
LOCAL = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=3)
"""Every node on its own: blocks change nothing but the order of sums."""


def new_model(config=LOCAL, seed=0, moved=False):
    torch.manual_seed(seed)
    model = config.build()
    if moved:  # the head starts at zero, where all graphs are alike
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.fixture(scope="module")
def task(commuters):
    visible, test = commuters("target", num_nodes=20, seed=1).few_shot(3)
    return visible, test, [commuters("north", num_nodes=17, seed=2), commuters("south", num_nodes=5, seed=3)]


@pytest.mark.parametrize("strategy", ["target_only", "tsjt"])
def test_a_batch_that_holds_the_city_changes_no_bit(task, strategy):
    visible, _, sources = task
    whole, blocks = (
        fit(new_model(), visible, sources, strategy, nodes_per_batch=most, **SETTINGS) for most in (None, 20)
    )
    assert same(whole.model.state_dict(), blocks.model.state_dict())
    assert (whole.log, whole.verdicts, whole.stats) == (blocks.log, blocks.verdicts, blocks.stats)
    assert whole.blocks is blocks.blocks is None


def batches_of(task, strategy="tsjt", **more):
    visible, _, sources = task
    return TrainingBatches(new_model(), visible, sources, 3, 8, 5, nodes_per_batch=6, num_hops=1, **more)


def test_every_block_takes_its_turn_once_a_pass_and_passes_differ(task):
    batches = batches_of(task)
    assert [city.blocks and len(city.blocks) for city in (batches.target, *batches.sources)] == [4, 3, None]
    turns = [[batches.target.block(step, batches.seed) for step in range(4 * n, 4 * n + 4)] for n in range(6)]
    assert all(set(turn) == set(batches.target.blocks) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1
    assert batches.sources[1].block(3, 0) is None


def test_the_loss_of_a_step_depends_on_the_seed_and_the_step_alone(task):
    model = new_model(ModelConfig(cell="GConvGRU", hidden_channels=4, history=6, horizon=3), moved=True)
    one, other = batches_of(task), batches_of(task)
    later = [one.loss(model, step, source).item() for step in (3, 4) for source in (False, True)]
    _ = [other.loss(model, step, True) for step in range(3)]
    assert later == [other.loss(model, step, source).item() for step in (3, 4) for source in (False, True)]


def test_errors_of_the_cores_add_up_to_the_error_of_the_city(task):
    """Weighted by what was observed in each core, the losses of all blocks are the loss of the whole city."""
    model, batches = new_model(moved=True), batches_of(task)
    own, index = batches.target, torch.tensor([5, 17, 3])
    observed = [int(own.windows.batch(index, block=block).y_mask.sum()) for block in own.blocks]
    losses = [own.loss(model, index, seed=7, block=block).item() for block in own.blocks]
    assert sum(observed) == int(own.windows.batch(index).y_mask.sum())
    mean = sum(n * loss for n, loss in zip(observed, losses, strict=True)) / sum(observed)
    assert mean == pytest.approx(own.loss(model, index, seed=7).item(), rel=1e-6)


def forecast_of_cores(model, windows, scaler, blocks, support=None):
    """Forecasts of all nodes, and how often each was forecast."""
    found = torch.full((len(windows), windows.horizon, windows.city.num_nodes, 1), torch.nan)
    times = torch.zeros(len(windows), windows.city.num_nodes, dtype=torch.int64)
    for batch, forecast in forecast_windows(model, windows, scaler, 16, support, blocks):
        first, last, core = int(batch.index[0]), int(batch.index[-1]) + 1, batch.block.core
        found[first:last, :, core] = forecast[:, :, batch.block.core_mask]
        times[first:last, core] += 1
    return found, times


def test_every_node_is_forecast_once_by_the_block_whose_core_it_is_in(task):
    visible, test, sources = task
    result = fit(new_model(), visible, sources, "tsjt", nodes_per_batch=6, **SETTINGS)
    assert (len(result.blocks), result.blocks.num_hops) == (4, 1)
    windows = test.windows(6, 3)
    whole = torch.cat([f for _, f in forecast_windows(result.model, windows, result.scaler, support=result.support)])
    found, times = forecast_of_cores(result.model, windows, result.scaler, result.blocks, result.support)
    assert (times == 1).all()
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)  # km/h
    one = measure(result.model, test, result.scaler, 6, 3, result.support)
    other = measure(result.model, test, result.scaler, 6, 3, result.support, result.blocks)
    assert other.mean_mae == pytest.approx(one.mean_mae, rel=1e-6)
    assert other.rmse == pytest.approx(one.rmse, rel=1e-6)


class Diffusing(torch.nn.Module):
    """A backbone that looks one hop far, at the last step alone; GCNConv divides by degrees."""

    def __init__(self):
        super().__init__()
        self.in_channels, self.out_channels = 4, 4
        self.convolution = GCNConv(4, 4)

    def forward(self, x, edge_index, edge_weight=None):
        return self.convolution(x[:, -1], edge_index, edge_weight).tanh()


@pytest.mark.parametrize(
    ("cell", "history", "num_hops"),
    [("one hop", 2, 2), ("GConvGRU", 1, 2), ("GConvGRU", 2, 4), ("DCRNN", 1, 2)],
)
def test_a_halo_one_hop_wider_than_the_receptive_field_is_exact(task, cell, history, num_hops):
    """From one step on a GConvGRU looks two hops further with each: its candidate state, and the state in its gates."""
    _, test, _ = task
    if cell == "one hop":
        torch.manual_seed(0)
        model = Forecaster(Diffusing(), history, 3)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    else:
        model = new_model(ModelConfig(cell=cell, hidden_channels=4, history=history, horizon=3), moved=True)
    windows, scaler = test.windows(history, 3), StandardScaler().fit(test.readings, test.mask)
    whole = torch.cat([f for _, f in forecast_windows(model, windows, scaler)]) / scaler.std
    for hops in (num_hops, 0):
        found, _ = forecast_of_cores(model, windows, scaler, NodeBlocks(test, 3, hops))
        error = (found / scaler.std - whole).abs().max()
        assert (error <= 1e-6) if hops else (error > 1e-3), (hops, error)


@pytest.mark.parametrize("strategy", ["target_only", "tsjt"])
def test_a_training_in_blocks_resumes_with_the_same_bits(task, strategy, tmp_path):
    visible, _, sources = task
    settings = {**SETTINGS, "steps": 8, "nodes_per_batch": 6, "num_hops": 1}
    whole = fit(new_model(), visible, sources, strategy, **settings)

    class StopError(Exception):
        pass

    def stop(done, total):
        if done == 5:
            raise StopError

    kept = {"output": tmp_path, "checkpoint_every": 2}
    with pytest.raises(StopError):
        fit(new_model(), visible, sources, strategy, progress=stop, **kept, **settings)
    assert load_checkpoint(tmp_path, prefer="last.pt")["step"] == 4
    with pytest.raises(ValueError, match=r"nodes_per_batch \(there 6, here 7\)"):
        fit(new_model(), visible, sources, strategy, resume=True, **kept, **{**settings, "nodes_per_batch": 7})
    resumed = fit(new_model(seed=9), visible, sources, strategy, resume=True, **kept, **settings)
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert (whole.log, whole.stats) == (resumed.log, resumed.stats)


def test_the_guard_finds_in_blocks_what_it_finds_in_the_whole_city(task, monkeypatch):
    visible, _, sources = task
    model = new_model()
    judging = {"steps": 40, "batch_size": 16, "lr": 1e-2, "seed": 0, "base": torch.optim.Adam, "max_grad_norm": 5.0}
    whole = guard.judge_sources(model, visible, sources, most=3, **judging)
    few = partial(column_blocks, block=2 * visible.num_steps)  # two nodes at a time
    monkeypatch.setattr(guard, "column_blocks", few)
    monkeypatch.setattr(last_value, "column_blocks", few)
    blocks = guard.judge_sources(copy.deepcopy(model), visible, sources, most=3, nodes_per_batch=6, **judging)
    for one, other in zip(whole, blocks, strict=True):
        assert (one.weight > 0, one.name) == (other.weight > 0, other.name)
        assert other.persistence == pytest.approx(one.persistence, rel=1e-9)
        assert other.error == pytest.approx(one.error, rel=0.1)  # it was trained on other batches


def test_naive_errors_are_those_of_the_whole_city(task):
    visible, _, _ = task
    windows, support = visible.windows(6, 3, stride=2), guard.SupportProfile(visible)
    std = StandardScaler().fit(visible.readings, visible.mask).std
    whole, blocks = (guard._naive_error(windows, support, std, b) for b in (None, NodeBlocks(visible, 6, 0)))
    assert blocks == pytest.approx(whole, rel=1e-9)


def test_means_of_nodes_are_taken_some_nodes_at_a_time(make_city, monkeypatch):
    city = make_city(num_nodes=7, missing=0.3, num_channels=2)
    city.mask[:, 4] = False  # nothing is known of this node: it has the city's mean
    whole = node_means(city)
    monkeypatch.setattr(last_value, "column_blocks", partial(column_blocks, block=1))
    torch.testing.assert_close(node_means(city), whole)
    expected = city.readings[..., 1][city.mask[..., 1]].double().mean()
    assert whole[4, 1].item() == pytest.approx(expected.item(), rel=1e-6)


def test_what_cannot_be_done_in_blocks_is_refused(task):
    visible, test, _ = task
    for most in (0, -3):
        with pytest.raises(ValueError, match=f"nodes_per_batch: expected at least 1, found {most}"):
            fit(new_model(), visible, [], "target_only", nodes_per_batch=most, **SETTINGS)
    with pytest.raises(ValueError, match="num_hops: expected at least 0, found -1"):
        fit(new_model(), visible, [], "target_only", nodes_per_batch=6, num_hops=-1, **SETTINGS)
    for wrong in ({"nodes_per_batch": "3"}, {"nodes_per_batch": 2.5}, {"nodes_per_batch": 6, "num_hops": 0.5}):
        with pytest.raises(ValueError, match=rf"{list(wrong)[-1]}: expected a whole number, at least \d, found"):
            fit(new_model(), visible, [], "target_only", **wrong, **SETTINGS)
    embedded = Forecaster(torch.nn.GRU(4, 4), 6, 3, city_embedding=CityEmbedding({"target": 20}, 2))
    with pytest.raises(ValueError, match="nodes_per_batch: the model has a city_embedding"):
        fit(embedded, visible, [], "target_only", nodes_per_batch=6, **SETTINGS)
    with pytest.raises(ValueError, match="blocks: they are of 5 nodes, target has 20; make"):
        next(forecast_windows(new_model(), test.windows(6, 3), StandardScaler(), blocks=NodeBlocks(task[2][1], 3)))
