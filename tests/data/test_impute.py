"""Imputation: what is made up, what is kept, and from what it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg.data import City, StandardScaler
from tsjt_pyg.training import ModelConfig, forecast_windows


@pytest.fixture
def city(commuters) -> City:
    return commuters(missing=0.15, days=5)


METHODS = [("hour_mean", {}), ("knn", {"n_neighbors": 3}), ("iterative", {"max_iter": 3})]


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_gaps_are_filled_and_mask_and_observed_readings_kept(city, method, options):
    filled = city.impute(method, **options)
    assert torch.equal(filled.mask, city.mask)
    assert torch.equal(filled.readings[city.mask], city.readings[city.mask])
    made_up = filled.readings[~city.mask]
    assert len(made_up) > 50
    assert torch.isfinite(made_up).all()
    assert (made_up > 20).all()
    assert (made_up < 70).all()
    assert (city.readings[~city.mask] == 0).all()


def test_the_hour_mean_is_that_of_pandas(city):
    frame = pd.DataFrame(np.where(city.mask[..., 0], city.readings[..., 0], np.nan), index=city.time).astype(float)
    expected = frame.fillna(frame.groupby(frame.index.hour).transform("mean")).fillna(frame.mean())
    np.testing.assert_allclose(city.impute().readings[..., 0], expected, rtol=1e-6)


def test_an_hour_without_readings_takes_the_mean_of_the_node(make_city):
    city = make_city(num_steps=48, num_nodes=2, interval="60min")
    mask = city.mask.clone()
    mask[[3, 27], 1] = False
    filled = replace(city, mask=mask).impute()
    mean = city.readings[:, 1][mask[:, 1]].double().mean().item()
    assert filled.readings[[3, 27], 1, 0].tolist() == pytest.approx([mean, mean])


def test_knn_is_that_of_scikit_learn(city):
    from sklearn.impute import KNNImputer

    frame = np.where(city.mask[..., 0], city.readings[..., 0], np.nan).astype(float)
    expected = KNNImputer(n_neighbors=4).fit_transform(frame)
    np.testing.assert_allclose(city.impute("knn", n_neighbors=4).readings[..., 0], expected, rtol=1e-6)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_it_learns_from_the_visible_days_only_if_told_to(city, method, options):
    visible, test = city.few_shot(3)
    other_test = replace(test, readings=torch.where(test.mask, test.readings + 7, 0))
    both = [replace(city, readings=torch.cat([visible.readings, t.readings])) for t in (test, other_test)]
    one, two = (c.impute(method, learn_from=visible, **options).readings[: visible.num_steps] for c in both)
    assert torch.equal(one, two)
    if method == "hour_mean":
        leaky = both[1].impute(method).readings[: visible.num_steps]
        assert not torch.equal(leaky, one)


def test_what_goes_by_the_mask_does_not_see_it(city):
    filled = city.impute()
    one, two = (StandardScaler().fit(c.readings, c.mask) for c in (city, filled))
    assert torch.equal(one.mean, two.mean)
    torch.manual_seed(0)
    model = ModelConfig(cell="GRU", hidden_channels=4).build()
    (_, plain), (_, imputed) = (next(forecast_windows(model, c.windows(12, 12), one)) for c in (city, filled))
    assert torch.equal(plain, imputed)


def test_a_repair_leaves_what_was_made_up(city):
    filled = city.impute()
    assert torch.equal(filled.repair(stuck=None).city.readings, filled.readings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "zero"}, r"method: expected 'hour_mean', 'knn' or 'iterative', found 'zero'"),
        ({"n_neighbors": 3}, r"method: 'hour_mean' takes no options, found n_neighbors"),
    ],
)
def test_bad_arguments_are_refused(city, arguments, message):
    with pytest.raises(ValueError, match=message):
        city.impute(**arguments)


def test_another_city_cannot_teach(city, make_city):
    with pytest.raises(ValueError, match="learn_from: city has other node_ids than target"):
        city.impute(learn_from=make_city())


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_node_that_was_never_observed_is_named(city, method, options):
    mask = city.mask.clone()
    mask[:, 4] = False
    with pytest.raises(
        ValueError, match=r"impute: node '4' of target has no observed reading in channel 'speed'.*drop_"
    ):
        replace(city, mask=mask).impute(method, **options)
