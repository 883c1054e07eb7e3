"""The picture of shared prompts: who has which colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tsjt_pyg import City, NodePrompting
from tsjt_pyg.evaluation import mean_slot_share, plot_shared_prompts


def town(name: str, nodes: int) -> City:
    pos = np.stack([np.linspace(60, 60.1, nodes), np.linspace(4, 4.2, nodes)], axis=1)
    return City.from_adjacency(np.ones((30, nodes)), np.roll(np.eye(nodes), 1, axis=1), name=name, positions=pos)


def one_hot(*slots: int, num: int = 12) -> torch.Tensor:
    return torch.eye(num)[list(slots)]


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    return figures


def colours(figure: Figure, city: int) -> list[str]:
    return [to_hex(colour) for colour in figure.axes[city].collections[-1].get_facecolors()]


def test_nodes_that_lead_with_one_slot_have_one_colour_in_both_cities(tmp_path, figure):
    path = tmp_path / "shared.png"
    assert plot_shared_prompts([town("A", 4), town("B", 3)], [one_hot(5, 5, 2, 5), one_hot(2, 5, 7)], path) == path
    a, b = colours(figure[0], 0), colours(figure[0], 1)
    assert a[0] == a[1] == a[3] == b[1]
    assert a[2] == b[0]
    assert len({a[0], a[2], b[2]}) == 3
    labels = [text.get_text() for text in figure[0].legends[0].get_texts()]
    assert labels == ["slot 5: 75 / 33 %", "slot 2: 25 / 33 %", "slot 7: 0 / 33 %"]
    assert [axes.get_title() for axes in figure[0].axes] == ["A, 4 nodes", "B, 3 nodes"]


def test_slots_beyond_the_colours_are_grey(tmp_path, figure):
    plot_shared_prompts([town("A", 12), town("B", 12)], [one_hot(*range(12))] * 2, tmp_path / "shared.svg", title="T")
    assert len(set(colours(figure[0], 0))) == 11
    assert figure[0].legends[0].get_texts()[-1].get_text() == "2 other slots"
    assert figure[0].get_suptitle() == "T"


def test_nodes_of_one_place_lie_side_by_side(tmp_path, figure):
    city = City.from_adjacency(np.ones((30, 3)), np.eye(3), positions=[(60, 4), (60, 4), (60.1, 4.1)])
    plot_shared_prompts([city, city], [one_hot(1, 2, 3)] * 2, tmp_path / "shared.png")
    one, other, alone = figure[0].axes[0].collections[-1].get_offsets()
    assert np.linalg.norm(one - other) == pytest.approx(0.0022, rel=1e-3)
    np.testing.assert_allclose((one + other) / 2, [4, 60], rtol=1e-6)
    np.testing.assert_allclose(alone, [4.1, 60.1], rtol=1e-6)


def test_mean_slot_share_is_the_mean_over_whole_windows():
    torch.manual_seed(0)
    prompting, city = NodePrompting(1, 4, 6), town("A", 5)
    readings = torch.randn(30, 5, 1)
    share = mean_slot_share(prompting, city, readings, history=12)
    expected = [
        prompting.slot_share(part, city.edge_index, city.edge_weight) for part in (readings[:12], readings[12:24])
    ]
    torch.testing.assert_close(share, torch.cat(expected).mean(dim=0).detach())
    with pytest.raises(ValueError, match="readings must have at least history=31 steps, found 30"):
        mean_slot_share(prompting, city, readings, history=31)


def test_messages(make_city, tmp_path):
    a, b, nowhere = town("A", 4), town("B", 3), make_city(num_nodes=3)
    share = [one_hot(1, 1, 1, 1), one_hot(1, 1, 1)]
    for cities, shares, message in (
        ([a], share[:1], r"shares must be one \[N, S\] a city, of two cities or more, found 1 of 1 cities"),
        ([a, b], share[:1], "found 1 of 2 cities"),
        ([a, nowhere], share, "cities: city has no positions to draw it by; give its constructor positions="),
        ([a, b], [share[0], share[0]], r"shares of B must be \[3, 12\], found \[4, 12\]"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_shared_prompts(cities, shares, tmp_path / "shared.png")
    assert not list(tmp_path.iterdir())
