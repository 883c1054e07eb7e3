"""A trained model with everything a forecast needs: road network, scaler, units."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..data import City, StandardScaler, SupportProfile
from ..data.clean import clean_readings
from ..nn import Forecaster
from .checkpoint import load_checkpoint
from .forecasting import forecast_windows
from .guard import SourceVerdict
from .model_config import ModelConfig


@dataclass(frozen=True)
class SavedModel:
    """A checkpoint of ``tsjt train``, ready to forecast its target city.

    It holds the visible days too where the model takes a support profile (:attr:`support`), and what the guard found of
    each source (:attr:`verdicts`: who contributed, with which weight).

    Example:
        >>> saved = SavedModel.load("runs/a")
        >>> saved.forecast(pd.read_csv("latest.csv", index_col=0, parse_dates=True))
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
            raise ValueError(f"{path}: it does not hold the model's settings, so the model cannot be built from it")
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
                NaN where nothing was observed. Rows before the model's history are ignored.

        Returns:
            One row a step of the horizon, columns in the order of ``readings``.

        Raises:
            ValueError: If nodes are unknown or absent, time is not the model's interval, or the history is too short.
        """
        history, horizon = self.model.history, self.model.horizon
        table = readings.rename(columns=str)
        unknown = [node for node in table.columns if node not in set(self.node_ids)]
        absent = [node for node in self.node_ids if node not in set(table.columns)]
        if unknown:
            raise ValueError(
                f"readings: column {unknown[0]!r} is no node of {self.city_name} ({len(unknown)} unknown columns); its "
                f"nodes are {', '.join(self.node_ids[:3])}, …"
            )
        if absent:
            raise ValueError(
                f"readings: there is no column for node {absent[0]!r} ({len(absent)} of {len(self.node_ids)} absent); "
                "add it, empty where nothing was observed"
            )
        if len(table) < history:
            raise ValueError(f"readings: the model reads {history} steps, found {len(table)} rows")
        if not isinstance(table.index, pd.DatetimeIndex):
            raise ValueError(f"readings: the first column must hold the time of each row, found {table.index[0]!r}")
        if table.index.tz is not None:
            raise ValueError(
                f"readings: the times are in {table.index.tz}; the model knows local time, so convert them and drop "
                "the zone (index.tz_convert(zone).tz_localize(None))"
            )
        table = table.iloc[-history:]
        gaps = table.index[1:] - table.index[:-1]
        wrong = np.flatnonzero(np.asarray(gaps != self.interval))
        if len(wrong):
            before = table.index[wrong[0]]
            raise ValueError(
                f"readings: {before} is followed by {table.index[wrong[0] + 1]}; the model's interval is "
                f"{self.interval}, without gaps (leave a row empty where nothing was observed)"
            )
        values = table[self.node_ids].apply(pd.to_numeric).to_numpy(dtype=np.float32)
        # The horizon is unknown: empty rows stand for it, so that the city has exactly one window.
        if np.isnan(values).all():
            raise ValueError(f"readings: nothing was observed in the last {history} rows, so there is nothing to go by")
        clean = clean_readings(np.concatenate([values, np.full((horizon, values.shape[1]), np.nan, np.float32)]))
        windows = self._city(clean.readings, clean.mask, table.index[0]).windows(history, horizon)
        _, forecast = next(forecast_windows(self.model, windows, self.scaler, support=self.support))
        time = pd.date_range(table.index[-1] + self.interval, periods=horizon, freq=self.interval, name="time")
        return pd.DataFrame(forecast[0, :, :, 0].numpy(), index=time, columns=self.node_ids)[list(table.columns)]

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
