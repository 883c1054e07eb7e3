"""A saved model forecasts as the trained one did, with its support days where it takes a profile."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg.data import SupportProfile
from tsjt_pyg.training import ModelConfig, SavedModel, fit, forecast_windows

CONFIG = {"cell": "GRU", "hidden_channels": 8, "history": 6, "horizon": 3}


def train(config, visible, folder):
    torch.manual_seed(0)
    return fit(
        config.build(),
        visible,
        steps=30,
        batch_size=8,
        lr=1e-2,
        strategy="target_only",
        output=folder,
    )


@pytest.mark.parametrize("profile", [True, False])
def test_a_loaded_model_forecasts_what_the_trained_one_did(commuters, tmp_path, profile):
    visible, test = commuters(missing=0.1).few_shot(3)
    config = ModelConfig(**CONFIG, profile=profile)
    result = train(config, visible, tmp_path)
    saved = SavedModel.load(tmp_path)
    assert (saved.support is not None) == profile
    windows = test.windows(6, 3)
    expected = torch.cat([f for _, f in forecast_windows(result.model, windows, result.scaler, support=result.support)])
    table = pd.DataFrame(
        test.readings[..., 0].masked_fill(~test.mask[..., 0], torch.nan).numpy(), index=test.time, columns=test.node_ids
    )
    for number in (0, 5, 20, 40):  # over midnight, and of a working day
        found = saved.forecast(table.iloc[: number + 6])
        np.testing.assert_allclose(found.to_numpy(), expected[number, :, :, 0].numpy(), rtol=1e-5)
        assert list(found.index) == list(test.time[number + 6 : number + 9])


def test_a_checkpoint_holds_the_visible_days_and_not_what_comes_after_them(commuters, tmp_path):
    city = commuters(days=60)
    train(ModelConfig(**CONFIG), city.few_shot(3).visible, tmp_path)
    for name in ("last.pt", "best.pt"):
        support = torch.load(tmp_path / name, weights_only=True)["support"]
        for key in ("readings", "mask"):
            assert support[key].untyped_storage().nbytes() == support[key].numel() * support[key].element_size()
            assert len(support[key]) == 72


def test_the_support_days_are_the_visible_ones_and_matter(commuters, tmp_path):
    visible, test = commuters(missing=0.1).few_shot(3)
    result = train(ModelConfig(**CONFIG), visible, tmp_path)
    saved = SavedModel.load(tmp_path)
    city = saved.support.support
    assert torch.equal(city.readings, visible.readings)
    assert torch.equal(city.mask, visible.mask)
    assert (city.start, city.interval, city.node_ids) == (visible.start, visible.interval, visible.node_ids)
    windows, index = test.windows(6, 3), torch.arange(9)
    here, there = (support.at(windows, index) for support in (SupportProfile(visible), saved.support))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    with_days, without = (
        next(forecast_windows(result.model, windows, result.scaler, support=support))[1]
        for support in (saved.support, None)
    )
    assert not torch.allclose(with_days, without)
