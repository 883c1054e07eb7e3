"""What of a batch is given to a model: readings, roads and time of day always, the rest where its forward names it."""

from __future__ import annotations

import torch

from tsjt_pyg.data import StandardScaler, SupportProfile
from tsjt_pyg.nn import CityEmbedding, Forecaster
from tsjt_pyg.training import fit, forecast_windows
from tsjt_pyg.training.forecasting import forecast_scaled, takes_profile


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


class Typical(Old):
    def forward(
        self,
        x,
        edge_index,
        edge_weight=None,
        *,
        x_mask=None,
        time_of_day=None,
        profile=None,
        profile_mask=None,
        profile_same_type=None,
    ):
        self.given = {"profile": profile, "profile_mask": profile_mask, "profile_same_type": profile_same_type}
        return x[:, -1:] * self.scale


def small(**more):
    return Forecaster(torch.nn.GRU(3, 4), 4, 1, **more)


def test_a_profile_is_for_models_that_name_it_and_were_built_for_it():
    built = {"a": small(profile=True), "b": small(), "c": Old(), "d": New(), "e": Typical()}
    takes = {"a": True, "b": False, "c": False, "d": False, "e": True}
    assert {name: takes_profile(model) for name, model in built.items()} == takes
    for name, model in built.items():
        for wrapped in (torch.nn.DataParallel(model), torch.compile(model, backend="eager")):
            assert takes_profile(wrapped) == takes[name]
        assert takes_profile(torch.compile(torch.nn.DataParallel(model), backend="eager")) == takes[name]


class Alone(Old):
    def __init__(self):
        super().__init__()
        self.profile = torch.zeros(3)  # of its own, and no switch

    def forward(self, x, edge_index, edge_weight=None, *, x_mask=None, time_of_day=None, profile=None):
        self.given = {"profile": profile}
        return x[:, -1:] * self.scale


def test_who_names_the_profile_alone_is_given_it_alone(commuters):
    visible, test = commuters().few_shot(3)
    scaler, model = StandardScaler().fit(visible.readings, visible.mask), Alone()
    assert takes_profile(model)
    next(forecast_windows(model, test.windows(4, 1), scaler, support=SupportProfile(visible)))
    assert model.given["profile"] is not None


def test_a_profile_is_given_in_scaled_units_with_what_is_known_of_it(commuters):
    visible, test = commuters(missing=0.3).few_shot(3)
    scaler, windows = StandardScaler().fit(visible.readings, visible.mask), test.windows(4, 1)
    index = torch.tensor([20, 3])
    profile, model = SupportProfile(visible).at(windows, index), Typical()
    for wrapped in (model, torch.nn.DataParallel(model), torch.compile(model, backend="eager")):
        model.given = {}
        forecast_scaled(wrapped, windows.batch(index), scaler, profile)
        assert torch.equal(model.given["profile"], scaler.transform(profile.values, profile.mask))
        assert not model.given["profile"][~profile.mask].any()
        assert (~profile.mask).any()
        assert model.given["profile_mask"] is profile.mask
        assert model.given["profile_same_type"] is profile.same_type
    forecast_scaled(model, windows.batch(index), scaler)
    assert set(model.given.values()) == {None}


def test_forecasts_of_windows_see_the_support_days(commuters):
    visible, test = commuters().few_shot(3)
    scaler, windows = StandardScaler().fit(visible.readings, visible.mask), test.windows(4, 1)
    support, model = SupportProfile(visible), small(profile=True)
    torch.nn.init.normal_(model.head[-1].weight)
    whole = torch.cat([f for _, f in forecast_windows(model, windows, scaler, batch_size=7, support=support)])
    index = torch.arange(len(windows))
    with torch.no_grad():
        at_once = forecast_scaled(model, windows.batch(index), scaler, support.at(windows, index))
    torch.testing.assert_close(whole, scaler.inverse_transform(at_once))
    without = torch.cat([f for _, f in forecast_windows(model, windows, scaler)])
    assert not torch.allclose(whole, without)
    old = Old()
    assert len(list(forecast_windows(old, windows, scaler, support=support)))  # which it is not given


def test_training_gives_each_city_its_embedding_and_its_days(commuters):
    visible, test = commuters("target", num_nodes=5).few_shot(3)
    sources = [commuters("north", num_nodes=7, seed=2)]
    embedding = CityEmbedding({"target": 5, "north": 7, "south": 3}, 4)
    before = {name: embedding(name).clone() for name in embedding.cities}
    torch.manual_seed(0)
    cell, decoder = torch.nn.GRU(8, 8), torch.nn.GRU(8, 8)
    model = Forecaster(cell, 6, 3, decoder=decoder, city_embedding=embedding, day_of_week=True)
    result = fit(model, visible, sources, "pooled", steps=5, batch_size=8, evaluations=1)
    moved = {name: not torch.equal(model.city_embedding(name), before[name]) for name in before}
    assert moved == {"target": True, "north": True, "south": False}
    batch, forecast = next(forecast_windows(result.model, test.windows(6, 3), result.scaler))
    assert forecast.shape == batch.y.shape
    assert batch.city == "target"
