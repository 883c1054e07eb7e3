"""A city: its road network, its readings and what was observed of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from typing_extensions import Unpack

from .city_check import check_city
from .city_roads import (
    Keep,
    OsmnxOptions,
    SensorOptions,
    WithoutReadings,
    networkx_parts,
    osmnx_parts,
    sensor_parts,
)
from .clean import ReadingsLike
from .graph import (
    Edges,
    MatrixLike,
    edges_from_adjacency,
    edges_from_distances,
    edges_from_index,
    edges_from_positions,
)
from .ids import check_ids
from .impute import Method, impute
from .nodes import drop_nodes, keep_nodes
from .parts import (
    DEFAULT_INTERVAL,
    DEFAULT_START,
    About,
    AboutReadings,
    CityParts,
    city_parts,
)
from .repair import Repair, Rules, repair
from .road_network import Nodes, Roads, Weight
from .rows import row_blocks
from .snap import Snapped
from .split import FewShotSplit, few_shot_steps
from .units import convert_units
from .views import Reduce, between, rename, resample, select, to_frame
from .windows import Windows

if TYPE_CHECKING:
    import networkx as nx
    from torch_geometric.data import Dataset

    from .describe import Description
    from .table_file import TableLike
    from .tables import TableArguments

_DAY = pd.Timedelta(days=1)


@dataclass(frozen=True, eq=False, repr=False)
class City:
    """A city's road network and readings; immutable: what changes it gives a new one.

    Use a constructor: :meth:`from_adjacency`, :meth:`from_edge_index`, :meth:`from_distances`, :meth:`from_positions`,
    :meth:`from_networkx`, :meth:`from_osmnx`, :meth:`from_road_network`, :meth:`from_tables`, or :meth:`load`. Every
    constructor turns NaN readings into ``mask == False`` and checks what it is given.

    Args:
        name: Name of the city.
        readings: float32 ``[T, N, C]`` in original units; 0 where nothing was observed.
        mask: bool ``[T, N, C]``, ``True`` = observed.
        edge_index: int64 ``[2, E]``, from and to.
        edge_weight: float32 ``[E]``, not negative.
        node_ids: One unique id a node.
        channels: One name a channel, for example ``("speed",)``.
        units: One unit a channel, for example ``("km/h",)``.
        start: Local time of the first step.
        interval: Time between two steps; a whole number of them makes a day.
        pos: float64 ``[N, 2]``, latitude and longitude in degrees, or ``None``.

    Raises:
        ValueError: If parts do not fit each other; the message names the argument.
    """

    name: str
    readings: Tensor
    mask: Tensor
    edge_index: Tensor
    edge_weight: Tensor
    node_ids: tuple[str, ...]
    channels: tuple[str, ...] = ("reading",)
    units: tuple[str, ...] = ("",)
    start: pd.Timestamp = DEFAULT_START
    interval: pd.Timedelta = DEFAULT_INTERVAL
    pos: Tensor | None = field(default=None)

    def __post_init__(self) -> None:
        check_city(self)
        object.__setattr__(self, "node_ids", check_ids(self.node_ids, self.num_nodes))

    # --- constructors -------------------------------------------------------------------------------------------

    @classmethod
    def from_adjacency(cls, readings: ReadingsLike, adjacency: MatrixLike, **about: Unpack[About]) -> City:
        """A city from a weighted adjacency matrix: an edge ``i -> j`` for each ``adjacency[i, j] > 0``.

        Args:
            readings: See :func:`~tsjt_pyg.data.clean.clean_readings`.
            adjacency: ``[N, N]``, dense or sparse; a :class:`~pandas.DataFrame` labelled by node id is joined by id
                (nodes without readings are left out).
            **about: ``name``, ``mask``, ``node_ids``, ``channels``, ``units``, ``start``, ``interval``, ``positions``:
                see :class:`~tsjt_pyg.data.parts.About`; all optional.
        """
        parts = city_parts(readings, about)
        return cls._assembled(parts, edges_from_adjacency(adjacency, parts["node_ids"]))

    @classmethod
    def from_edge_index(
        cls, readings: ReadingsLike, edge_index: Tensor, edge_weight: Tensor | None = None, **about: Unpack[About]
    ) -> City:
        """A city from the ``edge_index`` of PyG; the numbers in it are positions among the readings' nodes.

        Args:
            readings: See :func:`~tsjt_pyg.data.clean.clean_readings`.
            edge_index: int64 ``[2, E]``, from and to.
            edge_weight: ``[E]``, not negative; default: all 1.
            **about: As in :meth:`from_adjacency`.
        """
        return cls._assembled(city_parts(readings, about), edges_from_index(edge_index, edge_weight))

    @classmethod
    def from_distances(
        cls,
        readings: ReadingsLike,
        distances: MatrixLike,
        *,
        sigma: float | None = None,
        threshold: float = 0.1,
        **about: Unpack[About],
    ) -> City:
        """A city from road distances, weighted by a Gaussian kernel; weights below ``threshold`` are dropped.

        Args:
            readings: See :func:`~tsjt_pyg.data.clean.clean_readings`.
            distances: Metres, as a matrix ``[N, N]`` or a table with columns ``from, to, cost``; see
                :func:`~tsjt_pyg.data.graph.edges_from_distances`.
            sigma: Metres; default: their root mean square.
            threshold: In [0, 1).
            **about: As in :meth:`from_adjacency`.
        """
        parts = city_parts(readings, about)
        return cls._assembled(parts, edges_from_distances(distances, parts["node_ids"], sigma, threshold))

    @classmethod
    def from_positions(
        cls,
        readings: ReadingsLike,
        positions: MatrixLike,
        *,
        k: int = 8,
        sigma: float | None = None,
        **about: Unpack[AboutReadings],
    ) -> City:
        """A city whose nodes are joined with their ``k`` nearest by great-circle distance (Gaussian kernel).

        Args:
            readings: See :func:`~tsjt_pyg.data.clean.clean_readings`.
            positions: Latitude and longitude in degrees, ``[N, 2]`` or a table with a column for the node id or
                indexed by it; see :func:`~tsjt_pyg.data.places.check_positions`.
            k: Number of neighbours.
            sigma: Metres; default: the root mean square of the distances.
            **about: As in :meth:`from_adjacency`.
        """
        parts = city_parts(readings, about, positions=positions)
        assert parts["pos"] is not None
        return cls._assembled(parts, edges_from_positions(parts["pos"], k, sigma))

    @classmethod
    def from_networkx(
        cls,
        readings: ReadingsLike,
        graph: nx.Graph,
        *,
        nodes: Nodes = "junctions",
        length: str | None = None,
        sigma: float | None = None,
        without_readings: WithoutReadings = "error",
        **about: Unpack[About],
    ) -> City:
        """A city from a networkx graph of junctions joined by roads.

        Readings that carry node ids (a table's columns, or ``node_ids``) are joined by id; others are in the order of
        the graph's nodes (or edges). Edges from a node to itself are left out, which is logged.

        Args:
            readings: See :func:`~tsjt_pyg.data.clean.clean_readings`.
            graph: See :func:`~tsjt_pyg.data.road_network.road_network_from_networkx`.
            nodes: Whether ``"junctions"`` or road ``"segments"`` are the nodes.
            length: Edge attribute with metres. Default: ``"length"``, or weights of 1 where no edge has it, with a
                warning where edges have other numbers.
            sigma: Metres; default: the root mean square of the distances.
            without_readings: Nodes without readings: ``"error"``, ``"keep"`` them unobserved, or ``"drop"`` them with
                their edges. Logged.
            **about: As in :meth:`from_adjacency`. ``positions`` is a table of all nodes where some without readings
                are kept.

        Raises:
            ValueError: If readings belong to no node of the graph, nodes have none and ``without_readings`` does not
                say what becomes of them, or no edge or only some have the ``length`` that is asked for.
        """
        return cls._assembled(*networkx_parts(readings, graph, nodes, length, sigma, without_readings, about))

    @classmethod
    def from_osmnx(
        cls,
        readings: ReadingsLike,
        graph: nx.Graph | str | Path | Roads,
        *,
        nodes: Nodes = "junctions",
        weight: Weight = "length",
        **options: Unpack[OsmnxOptions],
    ) -> City:
        """A city from a raw OSMnx MultiDiGraph, a GraphML file or OpenStreetMap's XML.

        Readings that carry node ids are joined by id: ``"u"`` for a junction, ``"u-v-key"`` for a segment. Readings of
        nodes left out by ``component``, ``isolated`` or ``loops`` are left out too, which is logged.

        Args:
            readings: See :func:`~tsjt_pyg.data.clean.clean_readings`.
            graph: See :func:`~tsjt_pyg.data.city_roads.read_roads`.
            nodes: Whether ``"junctions"`` or road ``"segments"`` are the nodes.
            weight: What is measured: ``"length"`` (metres) or ``"travel_time"`` (seconds).
            **options: ``kernel``, ``sigma``, ``speeds``, ``u_turns``, ``component``, ``one_way``, ``isolated``,
                ``loops``, ``ways``, ``without_readings``: see :class:`~tsjt_pyg.data.city_roads.OsmnxOptions`; and as
                in :meth:`from_adjacency`. All optional.
        """
        return cls._assembled(*osmnx_parts(readings, graph, nodes=nodes, weight=weight, **options))

    @classmethod
    def from_road_network(
        cls,
        readings: ReadingsLike,
        sensors: pd.DataFrame | Snapped,
        graph: nx.Graph | str | Path | Roads,
        *,
        snap_limit: float = 50.0,
        keep: Keep = "sensors",
        **options: Unpack[SensorOptions],
    ) -> City:
        """A city from sensors beside roads: each belongs to its nearest segment, ways along the roads join them.

        This is how the sensor graphs of METR-LA and PEMS-BAY were made. Readings are joined by sensor id; sensors
        without readings, readings without a sensor and sensors too far from a road are left out, which is logged
        (:func:`~tsjt_pyg.data.snap.snap_sensors` gives the table of it).

        Args:
            readings: Their nodes are sensor ids; without ids they are in the order of ``sensors``.
            sensors: See :func:`~tsjt_pyg.data.snap.snap_sensors`; or its result, which ``graph`` must be the roads of.
            graph: See :func:`~tsjt_pyg.data.city_roads.read_roads`.
            snap_limit: Metres within which a sensor belongs to a segment.
            keep: Which nodes there are: ``"sensors"``, with their ids; ``"segments"`` that carry sensors, with ids
                ``"u-v-key"``; or ``"all"`` segments, unobserved where there is no sensor. The last are joined by
                turns, the others by shortest ways.
            **options: ``several``, ``path_limit``, ``weight``, ``kernel``, ``sigma``, ``speeds``, ``u_turns``,
                ``component``, ``one_way``, ``ways``: see :class:`~tsjt_pyg.data.city_roads.SensorOptions`; and as in
                :meth:`from_positions`. All optional.
        """
        return cls._assembled(*sensor_parts(readings, sensors, graph, snap_limit=snap_limit, keep=keep, **options))

    @classmethod
    def from_tables(
        cls, readings: TableLike, sensors: TableLike, edges: TableLike | None = None, **how: Unpack[TableArguments]
    ) -> City:
        """A city from one's own tables of readings, sensors and edges, joined by sensor id.

        Args:
            readings: A pandas table or a CSV or Parquet file, wide (a column a sensor id) or long (a row a time and
                sensor). See :func:`~tsjt_pyg.data.tables.read_tables`, which also returns a report of what was done.
            sensors: A table or file with id, latitude and longitude.
            edges: A table or file with from, to and a distance in metres or a weight; default: ``k`` nearest.
            **how: See :class:`~tsjt_pyg.data.tables.TableArguments`; all optional.
        """
        from .tables import read_tables

        return read_tables(readings, sensors, edges, **how).city

    @classmethod
    def _assembled(cls, parts: CityParts, edges: Edges) -> City:
        return cls(edge_index=edges.edge_index, edge_weight=edges.edge_weight, **parts)

    @classmethod
    def load(cls, path: str | Path, mmap: bool = True) -> City:
        """A city written by :meth:`save`, or, from its folder, by :meth:`save_mapped` (``mmap``: left on the disk)."""
        from .city_file import load_city_file
        from .mapped import load_mapped_city

        return load_mapped_city(Path(path), mmap) if Path(path).is_dir() else load_city_file(Path(path))

    def save(self, path: str | Path) -> Path:
        """Writes the city to one compressed ``.npz`` file (no pickle); an existing file is replaced as a whole."""
        from .city_file import save_city_file

        return save_city_file(self, Path(path))

    def save_mapped(self, folder: str | Path) -> Path:
        """Writes the city to a folder from which :meth:`load` maps it: its readings stay on the disk until needed.

        See :mod:`tsjt_pyg.data.mapped`, also for cities that are larger than the memory.
        """
        from .mapped import save_mapped_city

        return save_mapped_city(self, Path(folder))

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def num_steps(self) -> int:
        """Number of steps T."""
        return self.readings.shape[0]

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return self.readings.shape[1]

    @property
    def num_channels(self) -> int:
        """Number of channels C."""
        return self.readings.shape[2]

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return self.edge_index.shape[1]

    @property
    def steps_per_day(self) -> int:
        """Number of steps in a day."""
        return int(_DAY // self.interval)

    @property
    def time(self) -> pd.DatetimeIndex:
        """Time of each step."""
        return pd.date_range(self.start, periods=self.num_steps, freq=self.interval)

    @property
    def step_of_day(self) -> Tensor:
        """Which step of its day each step is, int64 ``[T]`` in ``0 .. steps_per_day - 1``."""
        first = int((self.start - self.start.normalize()) // self.interval)
        return (torch.arange(self.num_steps) + first) % self.steps_per_day

    @property
    def time_of_day(self) -> Tensor:
        """Fraction of the day of each step, float32 ``[T]`` in [0, 1)."""
        late = (self.start - self.start.normalize()) % self.interval / _DAY
        return self.step_of_day.to(torch.float32) / self.steps_per_day + late

    @property
    def day_of_week(self) -> Tensor:
        """Day of the week of each step, int64 ``[T]``, 0 = Monday."""
        first = int((self.start - self.start.normalize()) // self.interval)
        return ((torch.arange(self.num_steps) + first) // self.steps_per_day + self.start.day_of_week) % 7

    @cached_property
    def missing(self) -> float:
        """Share of entries that were not observed."""
        return 1.0 - sum(int(block.sum()) for (block,) in row_blocks(self.mask)) / self.mask.numel()

    def __repr__(self) -> str:
        channels = ", ".join(f"{c} ({u})" if u else c for c, u in zip(self.channels, self.units, strict=True))
        return (
            f"City({self.name!r}, {self.num_steps} steps x {self.num_nodes} nodes, {channels}, every "
            f"{self.interval.total_seconds() / 60:g} min from {self.start:%Y-%m-%d %H:%M}, {self.num_edges} edges, "
            f"{self.missing:.1%} missing)"
        )

    def _repr_html_(self) -> str:
        from .city_html import city_html

        return city_html(self)

    def describe(self) -> Description:
        """What is there: a table by channel and by node, what is missing and doubtful, and a picture (``.plot()``)."""
        from .describe import describe

        return describe(self)

    def fingerprint(self) -> str:
        """SHA-256 of readings, mask, road network, ids, channels and time: equal for equal cities only."""
        digest = hashlib.sha256()
        for tensor in (self.readings, self.mask, self.edge_index, self.edge_weight):
            digest.update(f"{tensor.dtype}{[*tensor.shape]}".encode())
            for (block,) in row_blocks(tensor.detach()):
                digest.update(block.cpu().contiguous().numpy().data)
        digest.update(repr((self.node_ids, self.channels, self.units, str(self.start), str(self.interval))).encode())
        return digest.hexdigest()

    # --- views --------------------------------------------------------------------------------------------------

    def between(self, first: int, last: int) -> City:
        """The steps ``first <= t < last``, as views."""
        return between(self, first, last)

    def select(self, channels: Sequence[str] | str) -> City:
        """The city with the given channels, in that order."""
        return select(self, channels)

    def rename(self, channels: Mapping[str, str]) -> City:
        """The city with other names of channels, as ``{"v_mittel": "speed"}``; the others keep theirs."""
        return rename(self, channels)

    def resample(self, interval: str | pd.Timedelta, reduce: Reduce = "mean") -> City:
        """The city at a longer interval: ``"mean"`` of speeds, ``"sum"`` of counts.

        An entry is observed where all its parts are; see :func:`tsjt_pyg.data.views.resample`.
        """
        return resample(self, interval, reduce)

    def to_units(self, units: str | Mapping[str, str]) -> City:
        """The city in other units, as ``"km/h"`` or ``{"speed": "km/h"}``; see :mod:`tsjt_pyg.data.units`."""
        return convert_units(self, units)

    def repair(self, **rules: Unpack[Rules]) -> Repair:
        """``(city, report)``: what cannot be true is masked, and told by node; see :mod:`tsjt_pyg.data.repair`."""
        return repair(self, **rules)

    def impute(self, method: Method = "hour_mean", *, learn_from: City | None = None, **options: Any) -> City:
        """The city with made-up readings under its (unchanged) mask; see :func:`tsjt_pyg.data.impute.impute`."""
        return impute(self, method, learn_from=learn_from, **options)

    def keep_nodes(self, node_ids: Sequence[object]) -> City:
        """The city with the given nodes, in that order, and the edges between them."""
        return keep_nodes(self, node_ids)

    def drop_nodes(self, node_ids: Sequence[object]) -> City:
        """The city without the given nodes and their edges; how many went is logged."""
        return drop_nodes(self, node_ids)

    def to_undirected(self) -> City:
        """The city with every road in both directions (of two weights the larger).

        Vehicles travel downstream, congestion upstream: a cell that passes messages along edges only needs both.
        """
        from torch_geometric.utils import to_undirected

        index, weight = to_undirected(self.edge_index, self.edge_weight, num_nodes=self.num_nodes, reduce="max")
        return replace(self, edge_index=index, edge_weight=weight)

    def to(self, device: torch.device | str) -> City:
        """The city with all its tensors on ``device``; windows and batches of it are made there."""
        tensors = ("readings", "mask", "edge_index", "edge_weight", "pos")
        moved = {name: getattr(self, name).to(device) for name in tensors if getattr(self, name) is not None}
        return replace(self, **moved)

    def few_shot(self, days: float) -> FewShotSplit:
        """``(visible, test)``: the first ``days`` days, from which one may learn, and the steps after them.

        Both are cities, so no window crosses the border.

        Raises:
            ValueError: If ``days`` is not positive or leaves no step to test on.
        """
        border = few_shot_steps(days, self.num_steps, self.steps_per_day, self.name)
        return FewShotSplit(self.between(0, border), self.between(border, self.num_steps))

    def windows(self, history: int = 12, horizon: int = 12, stride: int = 1) -> Windows:
        """All windows of ``history`` steps followed by ``horizon`` steps, without copying a reading.

        Args:
            history: Steps that a forecast sees.
            horizon: Steps that are forecast.
            stride: Steps from the start of one window to that of the next.

        Raises:
            ValueError: If one of them is not a positive whole number, or the city has fewer steps than a window.
        """
        return Windows(self, history, horizon, stride)

    def to_frame(self, channel: str | None = None) -> pd.DataFrame:
        """One channel (default: the only one) as a wide table of times and node ids, NaN where nothing was observed.

        See :func:`tsjt_pyg.data.views.to_frame`.
        """
        return to_frame(self, channel)

    def to_signal(self, history: int = 12, horizon: int = 12) -> Any:
        """The windows as a :class:`torch_geometric_temporal.signal.StaticGraphTemporalSignal`.

        See :func:`tsjt_pyg.data.signal.to_signal`.
        """
        from .signal import to_signal

        return to_signal(self, history, horizon)

    def to_dataset(self, history: int = 12, horizon: int = 12) -> Dataset:
        """The windows as a :class:`torch_geometric.data.Dataset`; see :class:`tsjt_pyg.data.signal.WindowDataset`."""
        from .signal import WindowDataset

        return WindowDataset(self, history, horizon)
