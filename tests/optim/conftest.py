from collections.abc import Iterator

import pytest
from optimizer_options import OPTIONS, Option, small_model
from torch import distributed, nn
from two_processes import TwoProcesses


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


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoProcesses]:
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch was built without torch.distributed or without gloo")
    processes = TwoProcesses(tmp_path_factory.mktemp("two_processes"))
    yield processes
    processes.stop()
