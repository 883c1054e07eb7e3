"""A comparison whose cities do not fit into a batch."""

import pytest
import torch

from tsjt_pyg.evaluation import comparison, measuring
from tsjt_pyg.evaluation.naive import fit_last_value
from tsjt_pyg.training import ModelConfig

CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=3)


def test_strategies_are_trained_and_measured_in_blocks(commuters):
    city = commuters("target", num_nodes=20)
    settings = {"model": CONFIG, "seeds": 1, "steps": 6, "batch_size": 8, "naive": ["last value"], "verbose": False}
    whole, blocks, fitting = (
        comparison.compare(city, [], ["target_only"], nodes_per_batch=most, **settings) for most in (None, 6, 20)
    )
    assert "nodes_per_batch" not in whole.protocol
    assert blocks.protocol["nodes_per_batch"] == 6
    digests = [table.records[-1].digest for table in (whole, blocks, fitting)]
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]  # all nodes fit into a batch
    one, other = (table.records[-1].errors.mean_mae for table in (whole, blocks))
    assert other == pytest.approx(one, rel=0.2)


def test_naive_forecasts_of_a_large_city_are_measured_a_few_windows_at_a_time(commuters, monkeypatch):
    city = commuters("target", num_nodes=20)
    visible, test = city.few_shot(3)
    last, sizes = fit_last_value(visible), []

    def forecast(batch, city):
        sizes.append(len(batch))
        return last(batch, city)

    at_once = measuring.measure_naive(forecast, test, 6, 3)
    assert max(sizes) == 64
    sizes.clear()
    monkeypatch.setattr(measuring, "MOST_AT_ONCE", 2 * 20)
    in_parts = measuring.measure_naive(forecast, test, 6, 3)
    assert max(sizes) == 2
    torch.testing.assert_close(torch.tensor(in_parts.rmse), torch.tensor(at_once.rmse))
