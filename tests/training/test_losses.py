import math

import pytest
import torch
from sklearn.metrics import mean_absolute_error

from tsjt_pyg.training import masked_mae


def test_it_is_the_mean_absolute_error_of_the_observed_entries():
    forecast, y = torch.randn(3, 4, 5, 1), torch.randn(3, 4, 5, 1)
    mask = torch.rand(y.shape) < 0.6
    expected = mean_absolute_error(y[mask].numpy(), forecast[mask].numpy())
    assert masked_mae(forecast, y, mask).item() == pytest.approx(expected, rel=1e-6)
    assert masked_mae(forecast, y).item() == pytest.approx(
        mean_absolute_error(y.flatten(), forecast.flatten()), rel=1e-6
    )


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_what_lies_under_the_mask_reaches_neither_loss_nor_gradient(garbage):
    forecast = torch.randn(2, 3, requires_grad=True)
    y, mask = torch.randn(2, 3), torch.tensor([[True, False, True], [True, True, False]])
    loss = masked_mae(forecast, y.masked_fill(~mask, garbage), mask)
    loss.backward()
    assert loss.item() == pytest.approx((forecast - y)[mask].abs().mean().item())
    assert forecast.grad is not None
    assert torch.equal(forecast.grad != 0, mask)


def test_without_an_observed_entry_it_is_zero_with_zero_gradient():
    forecast = torch.randn(2, 3, requires_grad=True)
    loss = masked_mae(forecast, torch.full((2, 3), math.nan), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert forecast.grad is not None
    assert not forecast.grad.any()


def test_shapes_that_differ_are_refused_rather_than_broadcast():
    with pytest.raises(ValueError, match=r"one shape, found \[2, 3\], \[2, 1\]"):
        masked_mae(torch.zeros(2, 3), torch.zeros(2, 1))
