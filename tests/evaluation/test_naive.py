from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from tsjt_pyg.evaluation.naive import (
    NAIVE_FITS,
    fit_boosting,
    fit_global_linear,
    fit_historical_average,
    fit_last_value,
    fit_last_value_and_profile,
    fit_linear,
    last_value,
    node_means,
)


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
    table = pd.DataFrame(readings, index=visible.time)
    by_hour = table.groupby(visible.time.hour).mean().fillna(table.mean())
    batch = all_windows(test)
    found = fit_historical_average(visible)(batch, test)
    for window in (0, 7, 23, 30):
        hours = test.time[window + 6 : window + 9].hour
        np.testing.assert_allclose(found[window, :, :, 0].numpy(), by_hour.loc[hours].to_numpy(), rtol=1e-5)


def test_last_value_and_profile_is_half_way_from_the_one_to_the_days_of_the_same_type(commuters):
    city = replace(commuters(days=9, missing=0.3), start=pd.Timestamp("2024-03-08 05:00"))  # a Friday
    visible, test = city.few_shot(3)
    readings = visible.readings[..., 0].masked_fill(~visible.mask[..., 0], torch.nan).numpy()
    table = pd.DataFrame(readings, index=visible.time)
    profile = table.groupby([visible.time.dayofweek >= 5, visible.time.hour]).mean()
    other = table.groupby(visible.time.hour).mean()
    batch = all_windows(test)
    found = fit_last_value_and_profile(visible)(batch, test)
    last = fit_last_value(visible)(batch, test)
    for window in (0, 7, 23, 60, 100):
        for step, time in enumerate(test.time[window + 6 : window + 9]):
            key = (time.dayofweek >= 5, time.hour)
            typical = profile.loc[key] if key in profile.index else other.loc[time.hour]
            before = pd.Series(last[window, step, :, 0].numpy())
            expected = ((before + typical) / 2).fillna(before)
            np.testing.assert_allclose(found[window, step, :, 0].numpy(), expected, rtol=1e-5)


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


@pytest.mark.parametrize("name", NAIVE_FITS)
def test_naive_forecasts_see_no_target_and_are_finite(name, commuters):
    visible, test = commuters(missing=0.3).few_shot(3)
    forecast = NAIVE_FITS[name](visible, 6, 3, 1.0)
    batch = all_windows(test)
    found = forecast(batch, test)
    assert found.shape == batch.y.shape
    assert torch.isfinite(found).all()
    assert torch.equal(found, forecast(replace(batch, y=torch.full_like(batch.y, torch.nan)), test))


def mean_error(forecast, city):
    batch = all_windows(city)
    return float((forecast(batch, city) - batch.y).abs()[batch.y_mask].mean())


@pytest.mark.parametrize("fit", [fit_global_linear, fit_boosting])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_regressions_of_all_nodes_beat_the_last_value_where_days_are_alike(fit, missing, commuters):
    visible, test = commuters(days=8, missing=missing).few_shot(4)
    assert mean_error(fit(visible, 6, 3), test) < 0.75 * mean_error(fit_last_value(visible), test)


def test_the_naive_forecasts_are_ordered_from_the_simplest_to_the_strongest():
    assert list(NAIVE_FITS) == [
        "last value",
        "historical average",
        "last value and profile",
        "linear per node",
        "global linear",
        "gradient boosting",
    ]


def test_global_linear_is_one_ridge_on_history_level_and_clock(commuters):
    visible, test = commuters(missing=0.0).few_shot(3)
    found = fit_global_linear(visible, 6, 3, alphas=(10.0,))(all_windows(test), test)
    scale = float(visible.readings.double().std())

    def rows(batch):
        x = batch.x[..., 0].permute(0, 2, 1).double().numpy()
        angle = 2 * np.pi * batch.time_of_day[:, -1].double().numpy()[:, None, None]
        clock = np.broadcast_to(np.concatenate([np.sin(angle), np.cos(angle)], axis=2), (*x.shape[:2], 2))
        return np.concatenate([(x - x[..., -1:]) / scale, x[..., -1:] / scale, clock], axis=2), x[..., -1:]

    train, new = all_windows(visible), all_windows(test)
    x, last = rows(train)
    y = (train.y[..., 0].permute(0, 2, 1).double().numpy() - last) / scale
    ridge = Ridge(alpha=10.0).fit(x.reshape(-1, x.shape[-1]), y.reshape(-1, 3))
    x, last = rows(new)
    expected = last + scale * ridge.predict(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], 3)
    np.testing.assert_allclose(found[..., 0].permute(0, 2, 1).numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("fit", [fit_global_linear, fit_boosting])
def test_what_stands_under_the_mask_has_no_influence_on_a_regression(fit, commuters):
    visible, test = commuters(missing=0.3).few_shot(3)
    spoiled = replace(visible, readings=visible.readings.masked_fill(~visible.mask, 1e6))
    batch = all_windows(test)
    assert torch.equal(fit(visible, 6, 3)(batch, test), fit(spoiled, 6, 3)(batch, test))


@pytest.mark.parametrize("observed", [0, 1, 2, 3, 12])
def test_trees_of_a_step_that_was_hardly_ever_observed_fall_back_on_what_is_there(observed, commuters):
    visible, test = commuters(days=6, num_nodes=2, missing=0.0).few_shot(3)
    mask = torch.zeros_like(visible.mask)
    mask[:6] = True
    mask.view(-1)[16 : 16 + observed] = True  # readings of the last steps of horizons
    city = replace(visible, mask=mask, readings=visible.readings * mask)
    batch = all_windows(test)
    found = fit_boosting(city, 6, 3)(batch, test)
    assert torch.isfinite(found).all()
    if observed == 0:
        assert torch.equal(found, fit_last_value(city)(batch, test))


def test_trees_are_drawn_by_the_seed(commuters):
    visible, test = commuters(missing=0.0).few_shot(3)
    batch = all_windows(test)
    one, again, other = (fit_boosting(visible, 6, 3, max_rows=150, seed=seed)(batch, test) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
