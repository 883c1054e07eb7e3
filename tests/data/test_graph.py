"""Road networks, checked against references written here in float64."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from tsjt_pyg.data.graph import (
    Edges,
    edges_from_adjacency,
    edges_from_distances,
    edges_from_positions,
    gaussian_kernel,
)

IDS = ("a", "b", "c")


def as_dict(edges: Edges) -> dict[tuple[int, int], float]:
    return dict(zip(map(tuple, edges.edge_index.T.tolist()), edges.edge_weight.tolist(), strict=True))


def great_circle(a: np.ndarray, b: np.ndarray) -> float:
    """Haversine formula, in metres, for (latitude, longitude) in degrees."""
    (p, q), (s, t) = np.radians(a), np.radians(b)
    h = math.sin((s - p) / 2) ** 2 + math.cos(p) * math.cos(s) * math.sin((t - q) / 2) ** 2
    return 2 * 6_371_008.8 * math.asin(math.sqrt(h))


# --- adjacency


def test_adjacency_of_every_kind():
    matrix = np.array([[0.25, 0, 1], [0, 0, 0.5], [0, 0, 0]])
    expected = {(0, 0): 0.25, (0, 2): 1.0, (1, 2): 0.5}
    labelled = pd.DataFrame(matrix, index=list(IDS), columns=list(IDS))
    kinds = [
        matrix,
        matrix.tolist(),
        torch.tensor(matrix, requires_grad=True),
        torch.tensor(matrix).to_sparse(),
        scipy.sparse.csr_array(matrix),
        labelled,
        labelled.loc[["c", "a", "b"], ["b", "c", "a"]],
        labelled.reindex(index=[*IDS, "d"], columns=["d", *IDS], fill_value=9.0),
    ]
    for kind in kinds:
        edges = edges_from_adjacency(kind, IDS)
        assert as_dict(edges) == expected
        assert (edges.edge_index.dtype, edges.edge_weight.dtype) == (torch.int64, torch.float32)


def test_numbered_labels_match_default_ids():
    assert as_dict(edges_from_adjacency(pd.DataFrame(np.eye(2)), ("0", "1"))) == {(0, 0): 1.0, (1, 1): 1.0}


# --- distances and the kernel


def test_gaussian_kernel_against_math():
    metres = np.array([0.0, 120.0, 350.5, 4000.0])
    rms = math.sqrt(sum(d * d for d in metres) / 4)
    for sigma, used in [(None, rms), (200.0, 200.0)]:
        expected = [math.exp(-((d / used) ** 2)) for d in metres]
        assert gaussian_kernel(metres, sigma) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metres", [[352.6] * 3, [352.6] * 1000, [100.0, 101.0, 99.0], [0.0, 0.0], [5.0]])
def test_roads_of_like_length_do_not_vanish(metres):
    assert (gaussian_kernel(np.array(metres)) > 0.3).all()


def test_distance_matrix_and_table_give_the_same_edges():
    inf = np.inf
    matrix = np.array([[0, 100, inf], [400, 7, 250], [np.nan, inf, 0]])
    rms = math.sqrt((100**2 + 400**2 + 250**2) / 3)
    expected = {(0, 1): 100, (1, 0): 400, (1, 2): 250}
    expected = {pair: math.exp(-((d / rms) ** 2)) for pair, d in expected.items()}
    table = pd.DataFrame({"to": list("bacbb"), "cost": [100, 400, 250, 300, 1], "from": list("abbab")})
    for distances in (matrix, table, table.rename(columns={"cost": "distance"}), table.iloc[::-1]):
        assert as_dict(edges_from_distances(distances, IDS, threshold=0)) == pytest.approx(expected, rel=1e-6)


def test_weights_below_the_threshold_are_dropped():
    matrix = np.array([[0, 100, 200], [np.inf, 0, 300], [np.inf, np.inf, 0]])
    weight = {pair: math.exp(-((matrix[pair] / 200) ** 2)) for pair in [(0, 1), (0, 2), (1, 2)]}
    kept = edges_from_distances(matrix, IDS, sigma=200, threshold=0.2)
    assert as_dict(kept) == pytest.approx({pair: w for pair, w in weight.items() if w >= 0.2}, rel=1e-6)
    assert kept.edge_index.shape == (2, 2)


def test_a_table_of_numbers_is_joined_with_ids_of_text():
    table = pd.DataFrame({"from": [11, 12], "to": [12, 13], "cost": ["100", "100"]})
    assert set(as_dict(edges_from_distances(table, ("13", "12", "11")))) == {(2, 1), (1, 0)}


def test_no_distances_are_no_edges():
    assert edges_from_distances(np.full((3, 3), np.inf), IDS).edge_index.shape == (2, 0)
    empty = pd.DataFrame({"from": [], "to": [], "cost": []})
    assert edges_from_distances(empty, IDS).edge_weight.shape == (0,)


def table(**columns: list) -> pd.DataFrame:
    return pd.DataFrame({"from": ["a"], "to": ["b"], "cost": [100.0]} | columns)


MATRIX = np.array([[0.0, 100, 200], [100, 0, 300], [200, 300, 0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edges_from_adjacency(np.ones((2, 2)), IDS), r"adjacency: expected shape \[3, 3\], one row and column"),
        (lambda: edges_from_adjacency(np.ones(3), IDS), r"adjacency: expected shape \[3, 3\].*found \[3\]"),
        (
            lambda: edges_from_adjacency(-np.eye(3), IDS),
            "adjacency: found -1.0 from node 'a' to node 'a'.*0 where there",
        ),
        (lambda: edges_from_adjacency(np.full((3, 3), np.nan), IDS), "adjacency: found nan .*must be finite"),
        (lambda: edges_from_adjacency(np.full((3, 3), "x"), IDS), "adjacency: expected an array or table of numbers"),
        (
            lambda: edges_from_adjacency(pd.DataFrame(np.eye(3), IDS, ["a", "b", "d"]), IDS),
            r"adjacency: node 'c' of the readings is not among its columns \(1 of 3 are absent\); label rows",
        ),
        (
            lambda: edges_from_adjacency(pd.DataFrame(np.eye(3)), IDS),
            "node 'a' .*is not among its rows .*pass an array",
        ),
        (
            lambda: edges_from_adjacency(pd.DataFrame(np.eye(4), list("abca"), list("abcd")), IDS),
            "adjacency: node 'a' occurs more than once among its rows",
        ),
        (lambda: edges_from_distances(MATRIX[:2], IDS), r"distances: expected shape \[3, 3\]"),
        (lambda: edges_from_distances(-MATRIX, IDS), "distances: found -100.0 from node 'a' to node 'b'"),
        (lambda: edges_from_distances(np.zeros((3, 3)), IDS), "distances: found 0 from node 'a' to .*say inf or NaN"),
        (lambda: edges_from_distances(MATRIX, IDS, sigma=0.3), "sigma: all 6 weights are below .*100 metres apart"),
        (lambda: edges_from_distances(MATRIX, IDS, sigma=0), "sigma: expected a positive number of metres, found 0"),
        (lambda: edges_from_distances(MATRIX, IDS, sigma=np.nan), "sigma: expected a positive number"),
        (lambda: edges_from_distances(MATRIX, IDS, threshold=1), r"threshold: expected a weight in \[0, 1\), found 1"),
        (lambda: edges_from_distances(MATRIX, IDS, threshold=-0.1), "threshold: expected"),
        (
            lambda: edges_from_distances(table(to=["x"]), IDS),
            "row 0, column 'to': node 'x' is not a node .*'a'.*node_ids",
        ),
        (lambda: edges_from_distances(table(**{"from": [0]}), IDS), "row 0, column 'from': node '0' is not a node"),
        (lambda: edges_from_distances(table(cost=[-3.0]), IDS), "distances: found -3.0 from node 'a' to node 'b'"),
        (lambda: edges_from_distances(table(cost=[np.nan]), IDS), "row 0, column 'cost': found nan, expected metres"),
        (lambda: edges_from_distances(table(cost=[np.inf]), IDS), "row 0, column 'cost': found inf, expected metres"),
        (lambda: edges_from_distances(table(cost=["far"]), IDS), "row 0, column 'cost': found far, expected metres"),
        (
            lambda: edges_from_distances(table(to=["q"]), IDS),
            r"column 'to': node 'q' .* \(for example 'a'\); both need .*name a table .* by node id \(of an array, pass",
        ),
        (
            lambda: edges_from_distances(table().drop(columns="cost"), IDS),
            r"distances: expected a column 'cost' or 'distance', found \['from', 'to'\]",
        ),
        (lambda: edges_from_positions(torch.zeros(3, 2), k=0), "k: expected at least 1, found 0"),
    ],
)
def test_messages_name_the_node_and_the_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- positions


@pytest.mark.parametrize("k", [1, 3, 50])
def test_nearest_neighbours_against_brute_force(k):
    rng = np.random.default_rng(k)
    # Near the date line and far north, where degrees are no metres.
    place = np.column_stack([rng.uniform(60, 70, 30), rng.choice([-1, 1], 30) * rng.uniform(175, 180, 30)])
    expected = {}
    for i in range(30):
        metres = sorted((great_circle(place[i], place[j]), j) for j in range(30) if j != i)[:k]
        for d, j in metres:
            expected[i, j] = expected[j, i] = d
    sigma = 1e5
    weights = {pair: math.exp(-((d / sigma) ** 2)) for pair, d in expected.items()}
    found = as_dict(edges_from_positions(torch.tensor(place), k, sigma))
    assert found == pytest.approx(weights, rel=1e-5, abs=1e-30)
    rms = math.sqrt(sum(d * d for d in expected.values()) / len(expected))
    default = as_dict(edges_from_positions(torch.tensor(place), k))
    assert default == pytest.approx({p: math.exp(-((d / rms) ** 2)) for p, d in expected.items()}, rel=1e-5, abs=1e-30)


def test_one_node_has_no_neighbours_and_two_in_one_place_have():
    assert edges_from_positions(torch.zeros(1, 2, dtype=torch.float64)).edge_index.shape == (2, 0)
    assert as_dict(edges_from_positions(torch.zeros(2, 2, dtype=torch.float64))) == {(0, 1): 1.0, (1, 0): 1.0}
