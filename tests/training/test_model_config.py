import pytest
import torch

from tsjt_pyg import check_transferable
from tsjt_pyg.training import CELLS, ModelConfig, fit


@pytest.mark.parametrize("num_prompts", [0, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_learns_from_cities_of_different_size(cell, num_prompts, commuters):
    visible, _ = commuters("target", num_nodes=6, seed=1).few_shot(3)
    sources = [commuters("north", num_nodes=9, seed=2)]
    torch.manual_seed(0)
    model = ModelConfig(cell=cell, hidden_channels=8, num_prompts=num_prompts, history=6, horizon=3).build()
    check_transferable(model, visible, *sources)
    result = fit(model, visible, sources, "tsjt", steps=25, batch_size=8, lr=1e-2, evaluations=1)
    assert result.validation_loss < result.log[0]["validation_loss"]  # better than the last value
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    if num_prompts:
        assert model.prompting.keys.shape[0] == num_prompts


def test_the_settings_rebuild_the_model():
    config = ModelConfig(cell="A3TGCN", hidden_channels=8, num_prompts=4, history=6, horizon=3)
    torch.manual_seed(0)
    one = config.build()
    torch.manual_seed(0)
    other = ModelConfig(**config.as_dict()).build()
    other.load_state_dict(one.state_dict())
    assert repr(one) == repr(other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": "LSTM"}, "cell: expected one of GConvGRU, .* found 'LSTM'"),
        ({"hidden_channels": 0}, "hidden_channels: expected at least 1, found 0"),
        ({"num_prompts": -1}, "num_prompts: expected at least 0, found -1"),
    ],
)
def test_settings_that_make_no_model_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)
