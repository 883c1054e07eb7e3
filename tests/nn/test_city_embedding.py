"""Parameters of one city: what they are, where a forecaster sees them, and that they stay out of the filter."""

import copy

import pytest
import torch

from tsjt_pyg import TargetSkewedOptimizer, check_transferable
from tsjt_pyg._compat import import_temporal
from tsjt_pyg.nn import CityEmbedding, Forecaster
from tsjt_pyg.nn.adapters import final_state

recurrent = import_temporal().nn.recurrent

HISTORY, HORIZON = 3, 2
CITIES = {"demo/riverton": 5, "St. Gallen": 7, "100%": 4}


def ring(nodes):
    at = torch.arange(nodes)
    return torch.stack([torch.cat([at, (at + 1) % nodes]), torch.cat([(at + 1) % nodes, at])])


def test_each_city_has_an_embedding_of_its_nodes():
    embedding = CityEmbedding(CITIES, 3)
    assert embedding.cities == tuple(CITIES)
    for name, nodes in CITIES.items():
        assert embedding(name).shape == (nodes, 3)
        assert isinstance(embedding(name), torch.nn.Parameter)
    assert len(list(embedding.parameters())) == 3
    assert repr(embedding) == "CityEmbedding({'demo/riverton': 5, 'St. Gallen': 7, '100%': 4}, channels=3)"


def test_names_that_differ_in_a_point_do_not_collide():
    embedding = CityEmbedding({"a.b": 2, "a%2Eb": 3, "a_b": 4}, 1)
    assert [embedding(name).size(0) for name in embedding.cities] == [2, 3, 4]


def test_state_dict_goes_by_name():
    one, other = CityEmbedding({"a": 3, "b": 3}, 2), CityEmbedding({"b": 3, "a": 3}, 2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other("a"), one("a"))
    assert torch.equal(copy.deepcopy(one)("b"), one("b"))
    with pytest.raises(RuntimeError, match="city b"):
        CityEmbedding({"a": 3}, 2).load_state_dict(one.state_dict())


def test_a_city_is_added_beside_the_others():
    embedding = CityEmbedding({"a": 3}, 2).double()
    before = embedding("a").clone()
    embedding.add_city("b", 4)
    assert embedding("b").shape == (4, 2)
    assert embedding("b").dtype == torch.float64
    assert torch.equal(embedding("a"), before)
    first = CityEmbedding({}, 2)
    first.add_city("c", 1)
    assert first.cities == ("c",)


def test_reset_draws_anew():
    torch.manual_seed(0)
    embedding = CityEmbedding({"a": 300, "b": 4}, 4)
    before = [value.clone() for value in embedding.parameters()]
    assert embedding("a").std().item() == pytest.approx(0.5, rel=0.1)
    embedding.reset_parameters()
    assert not any(torch.equal(*pair) for pair in zip(before, embedding.parameters(), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e("c"), r"city must be one of 'a', 'b', found 'c'; add it with add_city.*without a city embedding"),
        (lambda e: e(None), "city must be one of 'a', 'b', found None"),
        (lambda e: CityEmbedding({}, 2)("c"), "city must be one of none: no city was added, found 'c'"),
        (lambda e: e.add_city("a", 3), "the city 'a' is there already"),
        (lambda e: e.add_city("c", 0), "num_nodes of 'c' must be a positive integer, found 0"),
        (lambda e: CityEmbedding({"a": 3}, 0), "channels must be a positive integer, found 0"),
    ],
)
def test_wrong_uses(call, message):
    with pytest.raises(ValueError, match=message):
        call(CityEmbedding({"a": 3, "b": 4}, 2))


# --- in a forecaster


def test_it_is_seen_at_each_step_and_learns_in_its_own_city_only():
    torch.manual_seed(0)
    model = Forecaster(torch.nn.GRU(4, 6), HISTORY, HORIZON, city_embedding=CityEmbedding(CITIES, 3))
    assert model.embedding.in_features == 3 + 2 + 3
    torch.nn.init.normal_(model.head[-1].weight)
    x = torch.randn(2, HISTORY, 5, 1)
    out = model(x, ring(5), city="demo/riverton")
    out.sum().backward()
    grads = {name: model.city_embedding(name).grad for name in CITIES}
    assert (grads["demo/riverton"].abs().sum(dim=1) > 0).all()
    assert grads["St. Gallen"] is None
    with torch.no_grad():
        model.city_embedding("demo/riverton")[2] += 1.0
    changed = (model(x, ring(5), city="demo/riverton") != out).flatten(0, 1).any(dim=0).flatten()
    assert changed.tolist() == [False, False, True, False, False]


def test_agcrn_gets_it_as_its_node_embedding():
    torch.manual_seed(0)
    cell = recurrent.AGCRN(1, 4, 6, 2, 3)
    model = Forecaster(cell, HISTORY, HORIZON, city_embedding=CityEmbedding(CITIES, 3), time_of_day=False)
    assert model.embedding.in_features == 3  # and not as features
    torch.nn.init.normal_(model.head[-1].weight)
    for name, nodes in CITIES.items():
        x = torch.randn(2, HISTORY, nodes, 1)
        level = x[:, -1:].expand_as(x)
        embedded = model.embedding(torch.cat([x - level, level, torch.ones_like(x)], dim=-1))
        state = final_state(cell, embedded, ring(nodes), None, model.city_embedding(name))
        expected = model.head(torch.cat([state, x[:, -1]], dim=-1)).view(2, nodes, HORIZON, 1).transpose(1, 2)
        torch.testing.assert_close(model(x, ring(nodes), city=name), x[:, -1:] + expected)


def test_a_city_of_another_size_or_an_unknown_one_is_refused():
    model = Forecaster(torch.nn.GRU(4, 6), HISTORY, HORIZON, city_embedding=CityEmbedding({"a": 5}, 3))
    x = torch.randn(2, HISTORY, 6, 1)
    with pytest.raises(ValueError, match="x must have 5 nodes, as city_embedding was told of 'a', found 6"):
        model(x, ring(6), city="a")
    for city in (None, "b"):
        with pytest.raises(ValueError, match=f"city must be one of 'a', found {city!r}"):
            model(x, ring(6), city=city)


def test_without_one_the_name_does_not_matter():
    model = Forecaster(torch.nn.GRU(4, 6), HISTORY, HORIZON)
    x = torch.randn(2, HISTORY, 6, 1)
    assert torch.equal(model(x, ring(6), city="anywhere"), model(x, ring(6)))


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (None, r"city_embedding must be given to AGCRN.*CityEmbedding\(.*channels=3\)"),
        (
            CityEmbedding({"a": 5}, 4),
            r"city_embedding.channels must equal the embedding_dimensions of AGCRN.*3.*found 4",
        ),
    ],
)
def test_agcrn_requires_one_of_its_size(embedding, message):
    with pytest.raises(ValueError, match=message):
        Forecaster(recurrent.AGCRN(1, 4, 6, 2, 3), HISTORY, HORIZON, city_embedding=embedding)


def test_it_is_no_obstacle_to_transfer():
    class City:
        def __init__(self, nodes):
            self.num_nodes, self.edge_index = nodes, ring(nodes)

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = CityEmbedding(CITIES, 3)

    cities = [City(nodes) for nodes in CITIES.values()]
    check_transferable(Own(), *cities)
    check_transferable(Forecaster(torch.nn.GRU(4, 6), 3, 2, city_embedding=CityEmbedding(CITIES, 3)), *cities)


# --- under the optimizer


@pytest.mark.parametrize("conflict", [True, False])
def test_the_filter_sees_the_shared_parameters_alone(conflict):
    """Shared gradients are those of the filter without embeddings; each city's own is that of its own loss."""
    torch.manual_seed(0)
    gamma_source, gamma_target = 0.7, 0.4
    model = Forecaster(
        recurrent.GConvGRU(4, 6, 2), HISTORY, HORIZON, city_embedding=CityEmbedding({"rich": 7, "poor": 5}, 3)
    ).double()
    torch.nn.init.normal_(model.head[-1].weight)
    model.city_embedding.add_city("neither", 4)
    x = {"rich": torch.randn(4, HISTORY, 7, 1).double(), "poor": torch.randn(4, HISTORY, 5, 1).double()}

    def loss(city):
        forecast = model(x[city], ring(x[city].size(2)), city=city)
        sign = -1.0 if conflict and city == "rich" else 1.0
        return sign * (forecast - x[city][:, -1:]).square().mean()

    own = {f"city_embedding.city {city}": city for city in ("rich", "poor", "neither")}
    named = dict(model.named_parameters())
    shared = [key for key in named if key not in own]
    raw = {}
    for city in x:
        grads = torch.autograd.grad(loss(city), list(named.values()), allow_unused=True)
        raw[city] = dict(zip(named, grads, strict=True))
    source, target = (torch.cat([raw[city][key].flatten() for key in shared]) for city in ("rich", "poor"))
    assert (source @ target < 0) == conflict
    kappa = max(0.0, -float(source @ target) / float(target @ target))
    expected = gamma_source * source + (gamma_target + gamma_source * kappa) * target

    optimizer = TargetSkewedOptimizer(
        model.parameters(), base=torch.optim.SGD, lr=1.0, gamma_source=gamma_source, gamma_target=gamma_target
    )
    optimizer.zero_grad()
    optimizer.backward(loss("rich"), loss("poor"))
    torch.testing.assert_close(torch.cat([named[key].grad.flatten() for key in shared]), expected)
    torch.testing.assert_close(named["city_embedding.city rich"].grad, raw["rich"]["city_embedding.city rich"])
    torch.testing.assert_close(named["city_embedding.city poor"].grad, raw["poor"]["city_embedding.city poor"])
    assert named["city_embedding.city neither"].grad is None
    before = model.city_embedding("neither").clone()
    optimizer.step()
    assert torch.equal(model.city_embedding("neither"), before)
