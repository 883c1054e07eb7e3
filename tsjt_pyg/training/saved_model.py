"""A trained model with everything a forecast needs: road network, scaler, units."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.export import Dim

from ..data import City, StandardScaler, SupportProfile
from ..data.clean import LARGEST
from ..data.parts import interval_text
from ..nn import Forecaster
from ..nn.export import export_program
from .checkpoint import load_checkpoint
from .city_forecaster import CityForecaster
from .guard import SourceVerdict
from .model_config import ModelConfig


@dataclass(frozen=True)
class SavedModel:
    """A checkpoint of ``tsjt train``, ready to forecast its target city.

    It holds the visible days too where the model takes a support profile (:attr:`support`), and what the guard found of
    each source (:attr:`verdicts`: who contributed, with which weight).

    Args:
        model: The model, with the chosen checkpoint's parameters.
        scaler: That of its training: the target's statistics.
        city_name: The target city.
        node_ids: Its nodes, in the order of the forecasts.
        unit: Of readings and forecasts.
        channel: What is forecast.
        interval: Time between two steps.
        edge_index: The target's road network, ``[2, E]``.
        edge_weight: Its weights, ``[E]``.
        support: The visible days, for a model that takes a support profile.
        verdicts: What the guard found of each source.

    Example:
        >>> saved = SavedModel.load("runs/a")
        >>> saved.forecast(pd.read_csv("latest.csv", index_col=0, parse_dates=True)).shape  # the next hour of 68 nodes
        (12, 68)
    """

    model: Forecaster
    scaler: StandardScaler
    city_name: str
    node_ids: list[str]
    unit: str
    channel: str
    interval: pd.Timedelta
    edge_index: torch.Tensor
    edge_weight: torch.Tensor
    support: SupportProfile | None = None
    verdicts: tuple[SourceVerdict, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> SavedModel:
        """From a run's folder (its ``best.pt``) or a ``.pt`` file.

        Raises:
            FileNotFoundError: If there is no checkpoint.
            ValueError: If it is damaged, holds no model settings, or forecasts more than one channel.
        """
        content = load_checkpoint(path)
        settings = content.get("config", {}).get("model")
        if not isinstance(settings, dict) or set(settings) != {f.name for f in fields(ModelConfig)}:
            raise ValueError(
                f"{path}: it does not hold the model's settings as this version writes them, so none can be built from "
                "it; `tsjt train` writes them, and `fit` does for a model that ModelConfig built"
            )
        config = ModelConfig(**settings)
        if config.channels != 1:
            raise ValueError(f"{path}: it forecasts {config.channels} channels; tables of readings have one")
        model = config.build()
        model.load_state_dict(content["model"])
        city = content["city"]
        saved = cls(
            model=model.eval(),
            scaler=StandardScaler.from_state_dict(content["scaler"]),
            city_name=city["name"],
            node_ids=city["node_ids"],
            unit=city["units"][0],
            interval=pd.Timedelta(seconds=city["interval_seconds"]),
            edge_index=city["edge_index"],
            edge_weight=city["edge_weight"],
            channel=city["channels"][0],
            verdicts=tuple(SourceVerdict(**verdict) for verdict in content["verdicts"]),
        )
        seen = content["support"]
        if not seen:
            return saved
        support = saved._city(seen["readings"], seen["mask"], pd.Timestamp(seen["start"]))
        return replace(saved, support=SupportProfile(support))

    def forecast(self, readings: pd.DataFrame) -> pd.DataFrame:
        """The next steps of every node, in original units.

        Args:
            readings: The last readings: one row a step (time as index, ascending), one column a node id in any order,
                NaN where nothing was observed. Rows before the model's history are ignored. A model with a support
                profile sees that of the nearest times at which the visible days were read.

        Returns:
            One row a step of the horizon, columns in the order of ``readings``.

        Raises:
            ValueError: If nodes are unknown, absent or there twice, nothing was observed, time is not the model's
                interval, or the history is too short.
        """
        history, horizon = self.model.history, self.model.horizon
        names, order = self._order(readings.columns)
        if len(readings) < history:
            raise ValueError(f"readings: the model reads {history} steps, found {len(readings)} rows")
        if not isinstance(readings.index, pd.DatetimeIndex):
            raise ValueError(f"readings: the first column must hold the time of each row, found {readings.index[0]!r}")
        if readings.index.tz is not None:
            raise ValueError(
                f"readings: the times are in {readings.index.tz}; the model knows local time, so convert them and drop "
                "the zone (index.tz_convert(zone).tz_localize(None))"
            )
        table = readings.iloc[-history:]
        gaps = table.index[1:] - table.index[:-1]
        wrong = np.flatnonzero(np.asarray(gaps != self.interval))
        if len(wrong):
            before = table.index[wrong[0]]
            raise ValueError(
                f"readings: {before} is followed by {table.index[wrong[0] + 1]}; the model's interval is "
                f"{interval_text(self.interval)}, without gaps (leave a row empty where nothing was observed)"
            )
        if any(dtype.kind not in "fiub" for dtype in table.dtypes.unique()):
            table = table.apply(pd.to_numeric)
        values = np.empty((history, len(order)), np.float32)
        values[:, order] = table.to_numpy(dtype=np.float32, na_value=np.nan)
        if np.isnan(values).all():
            raise ValueError(f"readings: nothing was observed in the last {history} rows, so there is nothing to go by")
        wrong_values = np.abs(values) > LARGEST
        if wrong_values.any():
            step, node = np.argwhere(wrong_values)[0]
            raise ValueError(
                f"readings: found {values[step, node]} at {table.index[step]}, node {self.node_ids[node]!r}; readings "
                f"must be finite, at most {LARGEST:g} in size, and empty where nothing was observed"
            )
        last = table.index[-1]
        device = next(self.model.parameters()).device
        with torch.no_grad():
            seconds = torch.tensor([(last - pd.Timestamp(0)) // pd.Timedelta(seconds=1)])
            forecast = self.city_forecaster(torch.from_numpy(values)[None].to(device), seconds)[0].cpu().numpy()
        time = pd.date_range(last + self.interval, periods=horizon, freq=self.interval, name="time")
        return pd.DataFrame(forecast[:, order], index=time, columns=names)

    def export(self, path: str | Path) -> None:
        """Writes model, scaler, road network and visible days as one program of :mod:`torch.export`.

        It is loaded and run where there is torch alone: ``torch.export.load(path).module()`` takes, by name,
        ``readings`` float32 ``[windows, history, nodes]`` in original units, NaN where nothing was observed, and
        ``time`` int64 ``[windows]``, the local time of each last reading in seconds since 1970-01-01 00:00, and gives
        the forecasts ``[windows, horizon, nodes]`` in original units: those of :meth:`forecast`. The file says the same
        as JSON under ``about.json``, one of the ``extra_files`` of :func:`torch.export.load`, with the nodes' ids in
        order, interval and unit. The program looks at no values: a window without a single reading is forecast, too.

        Args:
            path: The file to write, ``….pt2``.

        Raises:
            ValueError: If a module in the model cannot be exported; names it.
        """
        config, nodes = self.model, len(self.node_ids)
        windows = Dim("windows", min=1)
        inputs = {
            "readings": {
                "shape": ["windows", config.history, nodes],
                "dtype": "float32",
                "meaning": f"{self.channel} in {self.unit}, NaN where nothing was observed; nodes in order of node_ids",
            },
            "time": {
                "shape": ["windows"],
                "dtype": "int64",
                "meaning": "local time of each last reading, in seconds since 1970-01-01 00:00",
            },
        }
        about = {
            "format": "tsjt_pyg.city_forecaster/1",
            "torch": str(torch.__version__),
            "city": self.city_name,
            "channel": self.channel,
            "unit": self.unit,
            "interval_seconds": self.interval.total_seconds(),
            "history": config.history,
            "horizon": config.horizon,
            "node_ids": self.node_ids,
            "inputs": inputs,
            "output": {
                "shape": ["windows", config.horizon, nodes],
                "dtype": "float32",
                "meaning": f"forecast of {self.channel} in {self.unit}, one step of the interval after the other",
            },
        }
        shapes = {name: {0: windows} for name in inputs}
        export_program(self.city_forecaster, path, self._example(3), [self._example(1)], shapes, about)

    def _example(self, windows: int) -> dict[str, torch.Tensor]:
        """Any readings at any time, a few of them missing."""
        generator = torch.Generator().manual_seed(windows)
        drawn = torch.randn(windows, self.model.history, len(self.node_ids), generator=generator)
        readings = self.scaler.inverse_transform(drawn.unsqueeze(-1)).squeeze(-1)
        seconds = int((pd.Timestamp("2024-03-08") - pd.Timestamp(0)).total_seconds())
        time = seconds + 3600 * torch.randint(240, (windows,), generator=generator)
        return {"readings": readings.masked_fill(drawn > 2.0, torch.nan), "time": time}

    @cached_property
    def city_forecaster(self) -> CityForecaster:
        """The model for raw readings, as :meth:`forecast` and :meth:`export` use it."""
        roads = self.edge_index, self.edge_weight
        return CityForecaster(self.model, self.scaler, *roads, self.interval, self.support).eval()

    @cached_property
    def _nodes(self) -> pd.Index:
        return pd.Index(self.node_ids, dtype=object)

    @cached_property
    def _orders(self) -> list[tuple[pd.Index, pd.Index, np.ndarray]]:
        """The last columns that were forecast, and what was found of them: most feeds have the same every time."""
        return []

    def _order(self, columns: pd.Index) -> tuple[pd.Index, np.ndarray]:
        """The columns as text, and the node of each by its number."""
        for known, names, order in self._orders:
            if known.equals(columns):
                return names, order
        names = columns.map(str)
        order = self._nodes.get_indexer(names)
        unknown = np.flatnonzero(order < 0)
        if len(unknown):
            raise ValueError(
                f"readings: column {names[unknown[0]]!r} is no node of {self.city_name} ({len(unknown)} unknown "
                f"columns); its nodes are {', '.join(self.node_ids[:3])}, …"
            )
        times = np.bincount(order, minlength=len(self.node_ids))
        absent = np.flatnonzero(times == 0)
        if len(absent):
            raise ValueError(
                f"readings: there is no column for node {self.node_ids[absent[0]]!r} ({len(absent)} of "
                f"{len(self.node_ids)} absent); add it, empty where nothing was observed"
            )
        if len(names) > len(times):
            raise ValueError(
                f"readings: node {self.node_ids[times.argmax()]!r} has {times.max()} columns, expected one"
            )
        self._orders[:] = [(columns, names, order)]
        return names, order

    def _city(self, readings: torch.Tensor, mask: torch.Tensor, start: pd.Timestamp) -> City:
        """Readings of the target city."""
        return City(
            name=self.city_name,
            readings=readings,
            mask=mask,
            edge_index=self.edge_index,
            edge_weight=self.edge_weight,
            node_ids=tuple(self.node_ids),
            start=start,
            interval=self.interval,
            channels=(self.channel,),
            units=(self.unit,),
        )
