"""The scaler, against scikit-learn."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import sklearn.preprocessing
import torch

from tsjt_pyg.data import StandardScaler


def test_it_is_sklearns_on_the_observed_entries(make_city):
    city = make_city(num_steps=200, num_channels=3, missing=0.3)
    scaler = StandardScaler().fit(city.readings, city.mask)
    holed = city.readings.masked_fill(~city.mask, torch.nan).double().reshape(-1, 3).numpy()
    reference = sklearn.preprocessing.StandardScaler().fit(holed)  # NaNs are left out
    assert scaler.mean.numpy() == pytest.approx(reference.mean_, rel=1e-6)
    assert scaler.std.numpy() == pytest.approx(reference.scale_, rel=1e-6)
    expected = np.nan_to_num(reference.transform(holed)).reshape(city.readings.shape)
    assert np.allclose(scaler.transform(city.readings, city.mask), expected, atol=1e-5)


def test_it_knows_only_what_it_was_given(make_city):
    city = make_city(num_steps=100, interval="1h")
    visible, _ = city.few_shot(2)
    scaler = StandardScaler().fit(visible.readings, visible.mask)
    assert scaler.mean.item() == pytest.approx(city.readings[:48].double().mean().item())
    assert scaler.mean.item() != pytest.approx(city.readings.double().mean().item())


def test_there_and_back(make_city):
    city = make_city(num_channels=2)
    scaler = StandardScaler().fit(city.readings)
    scaled = scaler.transform(city.readings)
    assert scaled.mean(dim=(0, 1)).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert torch.allclose(scaler.inverse_transform(scaled), city.readings, rtol=1e-5)


def test_large_values_keep_their_spread():
    readings = 1e6 + torch.arange(8.0).reshape(-1, 1)
    assert StandardScaler().fit(readings).std.item() == pytest.approx(np.arange(8).std())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 65.3, 1e7])
def test_a_constant_channel_becomes_zero_not_noise(value, dtype):
    readings = torch.full((1001, 1), value, dtype=dtype)
    scaler = StandardScaler().fit(readings)
    assert scaler.std.item() == 1
    assert scaler.transform(readings).abs().max() <= 1e-6 * max(1, value)


def test_state_and_pickle_and_repr():
    scaler = StandardScaler().fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    for again in (StandardScaler.from_state_dict(scaler.state_dict()), pickle.loads(pickle.dumps(scaler))):
        assert torch.equal(again.mean, torch.tensor([2.0, 20.0]))
        assert torch.equal(again.std, torch.tensor([1.0, 10.0]))
    assert repr(scaler) == "StandardScaler(mean=[2.0, 20.0], std=[1.0, 10.0])"
    assert repr(StandardScaler()) == "StandardScaler()"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: s.fit(torch.ones(4, 2), torch.tensor([[True, False]] * 4)),
            "channel 1 has no observed entry.*more vis",
        ),
        (lambda s: s.fit(torch.ones(4, 2), torch.ones(2, 4, dtype=torch.bool)), r"mask: .*\[4, 2\], found \[2, 4\]"),
        (
            lambda s: s.fit(torch.ones(4, 2)).transform(torch.ones(4, 3)),
            r"readings: expected 2 channels.*found shape \[4, 3\]",
        ),
        (lambda s: s.fit(torch.ones(4, 2)).inverse_transform(torch.ones(4, 1)), "readings: expected 2 channels"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call(StandardScaler())


def test_before_fit_it_says_so():
    with pytest.raises(AttributeError, match="this scaler knows nothing yet; call fit"):
        StandardScaler().transform(torch.ones(2, 1))
    with pytest.raises(AttributeError, match="StandardScaler has no attribute 'means'"):
        _ = StandardScaler().means
