"""Joins by id: the order of files never matters, and the readings say which nodes there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsjt_pyg.data.graph import Edges
from tsjt_pyg.data.ids import id_text
from tsjt_pyg.datasets.join import edges_by_distance, edges_by_id, on_regular_grid, positions_by_id

PATH = Path("roads.csv")
NODES = [f"n{i}" for i in range(7)]


def named(edges: Edges, ids: list[str]) -> dict[tuple[str, str], float]:
    pairs = [(ids[i], ids[j]) for i, j in edges.edge_index.T.tolist()]
    assert len(set(pairs)) == len(pairs)
    return dict(zip(pairs, edges.edge_weight.tolist(), strict=True))


@given(
    there=st.permutations(NODES).flatmap(lambda order: st.integers(1, 7).map(lambda k: order[:k])),
    read=st.permutations(NODES).flatmap(lambda order: st.integers(1, 7).map(lambda k: order[:k])),
    seed=st.integers(0, 99),
)
def test_roads_are_those_between_nodes_on_both_sides(there, read, seed):
    rng = np.random.default_rng(seed)
    matrix = (rng.random((7, 7)) * (rng.random((7, 7)) < 0.5)).astype(np.float32)
    place = [NODES.index(node) for node in there]
    if not set(there) & set(read):
        with pytest.raises(ValueError, match=r"roads\.csv: it has none of the \d nodes with readings"):
            edges_by_id(matrix[np.ix_(place, place)], there, read, PATH)
        return
    found = edges_by_id(matrix[np.ix_(place, place)], there, read, PATH)
    both = set(there) & set(read)
    expected = {
        (a, b): float(matrix[i, j])
        for i, a in enumerate(NODES)
        for j, b in enumerate(NODES)
        if matrix[i, j] > 0 and {a, b} <= both
    }
    assert named(found, read) == expected


@given(order=st.permutations(range(12)), read=st.permutations(NODES))
def test_rows_of_distances_come_in_any_order(order, read):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"from": rng.choice(NODES, 12), "to": rng.choice(NODES, 12), "cost": rng.uniform(1, 900, 12)})
    one = named(edges_by_distance(table, NODES, PATH, sigma=500), NODES)
    assert named(edges_by_distance(table.iloc[list(order)], read, PATH, sigma=500), read) == pytest.approx(one)


@given(
    steps=st.lists(st.integers(0, 40), min_size=12, max_size=30, unique=True).filter(
        lambda steps: pd.Series(np.diff(sorted(steps))).mode()[0] == 1 and (np.diff(sorted(steps)) == 1).sum() > 5
    )
)
def test_rows_come_in_any_order_and_steps_may_be_left_out(steps):
    start = pd.Timestamp("2024-03-01")
    index = pd.DatetimeIndex([start + step * pd.Timedelta("5min") for step in steps])
    values, first, interval = on_regular_grid(np.array(steps, dtype=np.float32)[:, None], index, PATH)
    assert (first, interval) == (start + min(steps) * pd.Timedelta("5min"), pd.Timedelta("5min"))
    expected = [float(step) if step in steps else np.nan for step in range(min(steps), max(steps) + 1)]
    np.testing.assert_array_equal(values[:, 0], expected)


@pytest.mark.parametrize(
    ("spelled", "node"),
    [
        *((spelled, "773869") for spelled in (773869, b"773869", "773869.0", 773869.0, " 773869", np.int64(773869))),
        *((other, other) for other in ("1.5", "a.0", "007")),
    ],
)
def test_ids_are_the_same_however_they_are_spelled(spelled, node):
    assert id_text(spelled) == node


def test_positions_are_joined_by_id():
    table = pd.DataFrame({"sensor_id": [2, 1, 3], "latitude": [2.0, 1, 3], "longitude": [20.0, 10, 30]})
    pos = positions_by_id(table, ["1", "2"], PATH)
    assert pos is not None
    assert pos.tolist() == [[1, 10], [2, 20]]
    with pytest.raises(ValueError, match=r"roads\.csv: it has none of the 1 nodes with readings .*'9'; here '2'"):
        positions_by_id(table, ["9"], PATH)
