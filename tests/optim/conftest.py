import pytest
from optimizer_options import OPTIONS, Option, small_model
from torch import nn


@pytest.fixture(params=OPTIONS, ids=lambda option: option.name)
def option(request: pytest.FixtureRequest) -> Option:
    request.param.skip_unless_possible()
    return request.param


@pytest.fixture
def model() -> nn.Sequential:
    return small_model()


@pytest.fixture
def twin() -> nn.Sequential:
    """A second model equal to ``model``."""
    return small_model()
