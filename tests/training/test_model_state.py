"""Models that are compiled, wrapped or neither read each other's checkpoints."""

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tsjt_pyg.training import ModelConfig, fit
from tsjt_pyg.training.checkpoint import load_checkpoint
from tsjt_pyg.training.model_state import load_model_state, model_state

CONFIG = ModelConfig(cell="GRU", hidden_channels=4, history=6, horizon=3, profile=False)
SETTINGS = {"steps": 2, "batch_size": 4, "evaluations": 1}


def plain():
    torch.manual_seed(0)
    return CONFIG.build()


def compiled():
    return torch.compile(plain(), backend="eager")


def compiled_part():
    model = plain()
    model.head = torch.compile(model.head, backend="eager")
    return model


def wrapped():
    return DistributedDataParallel(plain())


def wrapped_and_compiled():
    return torch.compile(wrapped(), backend="eager")


KINDS = [plain, compiled, compiled_part, wrapped, wrapped_and_compiled]


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """Without which nothing can be wrapped."""
    store = tmp_path_factory.mktemp("store") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [*KINDS, lambda: DataParallel(plain())])
def test_the_state_has_the_names_of_the_plain_model_and_loads_into_any(kind):
    state = model_state(kind())
    assert list(state) == list(plain().state_dict())
    changed = {name: value + 1.0 for name, value in state.items()}
    for other in KINDS:
        model = other()
        load_model_state(model, changed)
        assert all(torch.equal(value, changed[name]) for name, value in model_state(model).items())


@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda number: KINDS[number].__name__)
def test_each_continues_what_another_began(number, commuters, tmp_path):
    visible, _ = commuters("target", seed=1).few_shot(2)
    arguments = visible, [], "target_only"
    whole = fit(plain(), *arguments, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        fit(KINDS[number - 1](), *arguments, output=tmp_path, stop=lambda: True, **SETTINGS)
    resumed = fit(KINDS[number](), *arguments, output=tmp_path, resume=True, **SETTINGS)
    for found in (resumed.last_model, load_checkpoint(tmp_path, prefer="last.pt")["model"]):
        assert list(found) == list(whole.last_model)
        for name, value in found.items():
            torch.testing.assert_close(value, whole.last_model[name], atol=1e-6, rtol=1e-5)
    plain().load_state_dict(load_checkpoint(tmp_path)["model"])


def test_the_guard_takes_a_wrapped_model(commuters):
    visible, _ = commuters("target", seed=1).few_shot(2)
    arguments = visible, [commuters("north", num_nodes=8, seed=2)], "tsjt"
    assert fit(wrapped(), *arguments, **SETTINGS).verdicts == fit(plain(), *arguments, **SETTINGS).verdicts
