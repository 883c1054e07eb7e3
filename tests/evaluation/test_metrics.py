import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_absolute_percentage_error, root_mean_squared_error

from tsjt_pyg.evaluation import HorizonErrors, masked_mae, masked_mape, masked_rmse


@pytest.fixture
def errors():
    torch.manual_seed(0)
    y = torch.randn(40, 3, 5, 1) * 10 + 30
    y[torch.rand(y.shape) < 0.05] = 0.0
    mask = torch.rand(y.shape) < 0.8
    return y + torch.randn(y.shape), y.masked_fill(~mask, 0.0), mask


def test_metrics_are_scikit_learns_on_the_observed_entries(errors):
    forecast, y, mask = errors
    true, found = y[mask].numpy(), forecast[mask].numpy()
    assert masked_mae(forecast, y, mask).item() == pytest.approx(mean_absolute_error(true, found), rel=1e-5)
    assert masked_rmse(forecast, y, mask).item() == pytest.approx(root_mean_squared_error(true, found), rel=1e-5)
    share = mean_absolute_percentage_error(true[true != 0], found[true != 0])
    assert masked_mape(forecast, y, mask).item() == pytest.approx(100 * share, rel=1e-5)


def test_a_true_zero_counts_in_mae_and_rmse_but_not_in_mape():
    y, forecast = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])
    assert masked_mae(forecast, y).item() == 1.0
    assert masked_rmse(forecast, y).item() == 1.0
    assert masked_mape(forecast, y).item() == 50.0


@pytest.mark.parametrize("metric", [masked_mae, masked_rmse, masked_mape])
def test_garbage_under_the_mask_has_no_influence(metric, errors):
    forecast, y, mask = errors
    assert torch.equal(metric(forecast, y, mask), metric(forecast, y.masked_fill(~mask, math.nan), mask))


def test_errors_gathered_in_batches_are_the_pooled_errors_of_all(errors):
    forecast, y, mask = errors
    gathered = HorizonErrors(horizon=3)
    for part in torch.arange(40).split(7):
        gathered.update(forecast[part], y[part], mask[part])
    found = gathered.compute()
    for step in range(3):
        here = (forecast[:, step], y[:, step], mask[:, step])
        assert found.mae[step] == pytest.approx(masked_mae(*here).item(), rel=1e-5)
        assert found.rmse[step] == pytest.approx(masked_rmse(*here).item(), rel=1e-5)
        assert found.mape[step] == pytest.approx(masked_mape(*here).item(), rel=1e-5)
    assert found.mean_mae == pytest.approx(masked_mae(forecast, y, mask).item(), rel=1e-5)
    assert found.mean_rmse == pytest.approx(masked_rmse(forecast, y, mask).item(), rel=1e-5)
    # Pooled over all entries: not the mean over batches, nor over steps.
    assert found.mean_rmse != pytest.approx(float(np.mean(found.rmse)), rel=1e-9)


def test_a_test_period_without_readings_is_an_error():
    errors = HorizonErrors(horizon=2)
    errors.update(torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, 3, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="test period: no reading was observed"):
        errors.compute()
