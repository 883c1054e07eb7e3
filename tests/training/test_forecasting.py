"""What of a batch is given to a model: readings, roads and time of day always, the rest where its forward names it."""

from __future__ import annotations

import torch

from tsjt_pyg.data import StandardScaler
from tsjt_pyg.nn import CityEmbedding, Forecaster
from tsjt_pyg.training import fit, forecast_windows
from tsjt_pyg.training.forecasting import forecast_scaled


class Old(torch.nn.Module):
    """A model of the user's own that knows of nothing but the time of day."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.given = {}

    def forward(self, x, edge_index, edge_weight=None, *, x_mask=None, time_of_day=None):
        self.given = {"x_mask": x_mask, "time_of_day": time_of_day}
        return x[:, -1:] * self.scale


class New(Old):
    def forward(self, x, edge_index, edge_weight=None, *, x_mask=None, time_of_day=None, day_of_week=None, city=None):
        self.given = {"day_of_week": day_of_week, "city": city}
        return x[:, -1:] * self.scale


class Named(Old):
    def forward(self, x, edge_index, edge_weight, x_mask, time_of_day, city):
        self.given = {"city": city}
        return x[:, -1:] * self.scale


def test_models_get_what_they_name(commuters):
    city = commuters("target")
    batch, scaler = city.windows(4, 1).batch(torch.tensor([20, 3])), StandardScaler().fit(city.readings, city.mask)
    old, new, named = Old(), New(), Named()
    for model in (old, new, named):
        forecast_scaled(model, batch, scaler)
    assert torch.equal(old.given["time_of_day"], batch.time_of_day)
    assert new.given["day_of_week"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]  # it starts on a Monday
    assert (new.given["city"], named.given["city"]) == ("target", "target")


def test_wrapped_and_compiled_models_get_what_the_one_inside_names(commuters):
    city = commuters("target")
    batch, scaler = city.windows(4, 1).batch(torch.tensor([3])), StandardScaler().fit(city.readings, city.mask)
    for model in (Old(), New()):
        for wrapped in (torch.nn.DataParallel(model), torch.compile(model, backend="eager")):
            model.given = {}
            forecast_scaled(wrapped, batch, scaler)
            assert model.given.get("city") == ("target" if isinstance(model, New) else None)


def test_training_gives_each_city_its_embedding_and_its_days(commuters):
    visible, test = commuters("target", num_nodes=5).few_shot(3)
    sources = [commuters("north", num_nodes=7, seed=2)]
    embedding = CityEmbedding({"target": 5, "north": 7, "south": 3}, 4)
    before = {name: embedding(name).clone() for name in embedding.cities}
    torch.manual_seed(0)
    cell, decoder = torch.nn.GRU(8, 8), torch.nn.GRU(8, 8)
    model = Forecaster(cell, 6, 3, decoder=decoder, city_embedding=embedding, day_of_week=True)
    result = fit(model, visible, sources, "tsjt", steps=5, batch_size=8, evaluations=1)
    moved = {name: not torch.equal(model.city_embedding(name), before[name]) for name in before}
    assert moved == {"target": True, "north": True, "south": False}
    batch, forecast = next(forecast_windows(result.model, test.windows(6, 3), result.scaler))
    assert forecast.shape == batch.y.shape
    assert batch.city == "target"
