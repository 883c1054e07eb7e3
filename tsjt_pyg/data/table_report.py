"""What became of one's own tables on their way into a city."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from ..notebook import lines

_SHOWN = 5


@dataclass(frozen=True, eq=False, repr=False)
class TableReport:
    """What :func:`~tsjt_pyg.data.tables.read_tables` found and did; ``print`` shows it, :meth:`to_frame` lists sensors.

    Args:
        layout: ``"wide"`` or ``"long"``.
        rows: Rows of the readings' table.
        rows_out_of_order: Rows that are earlier than the one before (of the same sensor).
        duplicate_rows: Rows joined with an earlier one of the same time (and sensor).
        start: Time of the first step.
        interval: Time between two steps.
        steps: Steps of the city.
        steps_added: Those of which the table has no row: all missing.
        sensors_without_readings: Ids that only the sensors' table has.
        readings_without_sensor: Ids that only the readings have; they were dropped.
        kept: Whether sensors without readings were kept, as nodes never observed.
        columns_left_out: Columns of a long table that are no channel.
        edges: Edges of the city.
        edges_dropped: Number of rows of the edges' table that became none of them, by reason.
        coverage: Share of observed readings in [0, 1]: a row a node, a column a channel.
        converted: Number of sensors whose readings were converted, by unit and new unit.
        marked: Readings that were one of ``missing_values``.
        doubtful: Readings of the city outside what their unit allows, such as negative speeds; they were kept.
            :meth:`~tsjt_pyg.data.City.repair` takes them out.
    """

    layout: str
    rows: int
    rows_out_of_order: int
    duplicate_rows: int
    start: pd.Timestamp
    interval: pd.Timedelta
    steps: int
    steps_added: int
    sensors_without_readings: tuple[str, ...]
    readings_without_sensor: tuple[str, ...]
    kept: bool
    columns_left_out: tuple[str, ...]
    edges: int
    edges_dropped: Mapping[str, int]
    coverage: pd.DataFrame
    converted: Mapping[str, int] = field(default_factory=dict)
    marked: int = 0
    doubtful: int = 0

    @property
    def dropped(self) -> bool:
        """Whether a sensor, a reading or an edge is not in the city."""
        lost = self.readings_without_sensor or (self.sensors_without_readings and not self.kept)
        return bool(lost) or sum(self.edges_dropped.values()) > 0

    @property
    def never_observed(self) -> tuple[str, ...]:
        """Nodes without a single reading."""
        return tuple(self.coverage.index[(self.coverage == 0).all(axis="columns")])

    def to_frame(self) -> pd.DataFrame:
        """One row a sensor id of either table: ``status``, then the coverage of each channel (NaN: not in the city)."""
        alone = {"no readings": self.sensors_without_readings, "no sensor": self.readings_without_sensor}
        status = pd.Series(
            dict.fromkeys(self.coverage.index, "joined") | {node: why for why, ids in alone.items() for node in ids},
            name="status",
        )
        return status.to_frame().join(self.coverage).rename_axis(index="sensor")

    def __str__(self) -> str:
        mean = float(self.coverage.to_numpy().mean())
        last = self.start + (self.steps - 1) * self.interval
        said = [
            f"{self.layout} table of {self.rows} rows: {self.steps} steps every "
            f"{self.interval.total_seconds() / 60:g} min from {self.start} to {last}, {len(self.coverage)} nodes, "
            f"{self.edges} edges, {mean:.1%} observed"
        ]
        what = "kept" if self.kept else "dropped"
        said += [
            f"  {len(found)} {text}: {_some(found)}"
            for found, text in (
                (self.sensors_without_readings, f"sensors without readings ({what})"),
                (self.readings_without_sensor, "sensor ids of the readings without a sensor (dropped)"),
                (self.never_observed, "nodes never observed"),
                (self.columns_left_out, "columns that are no channel (left out)"),
            )
            if found
        ]
        said += [
            f"  {count} {text}"
            for count, text in (
                (self.steps_added, "steps without a row (added, missing)"),
                (self.rows_out_of_order, "rows out of order (sorted)"),
                (self.duplicate_rows, "duplicate rows (joined)"),
                (self.marked, "readings among missing_values (missing)"),
                (
                    self.doubtful,
                    "readings outside what their unit allows (kept): name numbers that mean 'missing' with "
                    "missing_values=, or mask the readings with City.repair",
                ),
                *((count, f"sensors converted from {units}") for units, count in self.converted.items()),
                *((count, f"edges dropped: {reason}") for reason, count in self.edges_dropped.items()),
            )
            if count
        ]
        return "\n".join(said)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return lines(str(self).splitlines())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
