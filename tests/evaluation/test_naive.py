from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from tsjt_pyg.evaluation.naive import fit_historical_average, fit_last_value, fit_linear, last_value, node_means


def all_windows(city, history=6, horizon=3):
    windows = city.windows(history, horizon)
    return windows.batch(torch.arange(len(windows)))


def test_last_value_is_the_newest_observed_reading(commuters):
    visible, test = commuters(missing=0.4).few_shot(3)
    batch = all_windows(test)
    found = fit_last_value(visible)(batch, test)
    means = node_means(visible)
    for window in range(0, len(batch), 5):
        for node in range(test.num_nodes):
            seen = [v for v, m in zip(batch.x[window, :, node, 0], batch.x_mask[window, :, node, 0], strict=True) if m]
            expected = seen[-1] if seen else means[node, 0]
            assert (found[window, :, node, 0] == expected).all()


def test_where_nothing_was_observed_the_default_stands():
    x, mask = torch.randn(2, 4, 3, 1), torch.zeros(2, 4, 3, 1, dtype=torch.bool)
    assert torch.equal(last_value(x, mask, torch.tensor([[1.0], [2.0], [3.0]]))[1, :, 0], torch.tensor([1.0, 2.0, 3.0]))


def test_historical_average_is_pandas_mean_by_node_and_time_of_day(commuters):
    city = replace(commuters(missing=0.3), start=commuters().start + 5 * commuters().interval)
    visible, test = city.few_shot(3)
    readings = visible.readings[..., 0].masked_fill(~visible.mask[..., 0], torch.nan).numpy()
    import pandas as pd

    table = pd.DataFrame(readings, index=visible.time)
    by_hour = table.groupby(visible.time.hour).mean().fillna(table.mean())
    batch = all_windows(test)
    found = fit_historical_average(visible)(batch, test)
    for window in (0, 7, 23, 30):
        hours = test.time[window + 6 : window + 9].hour
        np.testing.assert_allclose(found[window, :, :, 0].numpy(), by_hour.loc[hours].to_numpy(), rtol=1e-5)


def test_linear_is_a_ridge_a_node_on_the_history_relative_to_the_last_reading(commuters):
    visible, test = commuters(missing=0.0).few_shot(3)
    forecast = fit_linear(visible, 6, 3, alphas=(10.0,))
    scale = float(visible.readings.double().std())
    train, batch = all_windows(visible), all_windows(test)
    found = forecast(batch, test)
    for node in range(visible.num_nodes):
        x, y = train.x[:, :, node, 0].numpy(), train.y[:, :, node, 0].numpy()
        last = x[:, -1:]
        ridge = Ridge(alpha=10.0).fit((x - last) / scale, (y - last) / scale)
        new = batch.x[:, :, node, 0].numpy()
        expected = new[:, -1:] + scale * ridge.predict((new - new[:, -1:]) / scale)
        np.testing.assert_allclose(found[:, :, node, 0].numpy(), expected, rtol=1e-4)


def test_linear_chooses_its_penalty_on_the_validation_day(commuters, monkeypatch):
    visible, _ = commuters(missing=0.0).few_shot(3)
    used = []
    original = Ridge.fit

    def spy(self, x, y):
        used.append((self.alpha, len(x)))
        return original(self, x, y)

    monkeypatch.setattr(Ridge, "fit", spy)
    fit_linear(visible, 6, 3, alphas=(1e-3, 1e6))
    assert used[-1][0] == 1e-3  # so large a penalty is the last value, which the daily wave beats
    assert used[-1][1] == visible.num_steps - 9 + 1
    assert {length for _, length in used[: -visible.num_nodes]} == {48 - 9 + 1}


def test_linear_learns_each_step_from_the_windows_in_which_it_was_observed(commuters):
    visible, test = commuters(missing=0.0).few_shot(3)
    mask = visible.mask.clone()
    mask[30:40, 2] = False
    forecast = fit_linear(replace(visible, mask=mask, readings=visible.readings * mask), 6, 3, alphas=(10.0,))
    spoiled = replace(visible, mask=mask, readings=visible.readings.masked_fill(~mask, 1e6))
    batch = all_windows(test)
    found = forecast(batch, test)
    assert torch.equal(found, fit_linear(spoiled, 6, 3, alphas=(10.0,))(batch, test))
    train = all_windows(replace(visible, mask=mask))
    scale = float(visible.readings[mask].double().std())
    x, y, seen = (part[:, :, 2, 0].numpy() for part in (train.x, train.y, train.y_mask))
    known = train.x_mask[:, :, 2, 0].numpy()
    last = last_value(train.x, train.x_mask, node_means(replace(visible, mask=mask)))[:, 2].numpy()
    ridge = Ridge(alpha=10.0).fit(
        (np.where(known, x - last, 0) / scale)[seen[:, 1]], ((y - last) / scale)[seen[:, 1], 1]
    )
    new = batch.x[:, :, 2, 0].numpy()
    expected = new[:, -1] + scale * ridge.predict((new - new[:, -1:]) / scale)
    np.testing.assert_allclose(found[:, 1, 2, 0].numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("fit", [fit_last_value, fit_historical_average, lambda city: fit_linear(city, 6, 3)])
def test_naive_forecasts_see_no_target_and_are_finite(fit, commuters):
    visible, test = commuters(missing=0.3).few_shot(3)
    forecast = fit(visible)
    batch = all_windows(test)
    found = forecast(batch, test)
    assert found.shape == batch.y.shape
    assert torch.isfinite(found).all()
    assert torch.equal(found, forecast(replace(batch, y=torch.full_like(batch.y, torch.nan)), test))
