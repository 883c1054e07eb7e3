"""Readings where nothing was observed, made up on request; the mask goes on saying that they were not observed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from .city import City

Method = Literal["hour_mean", "knn", "iterative"]


def impute(city: City, method: Method = "hour_mean", *, learn_from: City | None = None, **options: Any) -> City:
    """The city with a made-up reading wherever nothing was observed. Observed readings and the mask stay as they are.

    So metrics, losses and scalers, which go by the mask, ignore what was made up; only what reads ``city.readings``
    without its mask sees it. (Forecasters here do not: what is masked enters them as the mean, see
    :meth:`StandardScaler.transform`.)

    Args:
        city: The city.
        method: Each works on one channel at a time:

            - ``"hour_mean"``: mean of the node's observed readings at that hour of the day; where there are none, its
              mean over all hours.
            - ``"knn"``: :class:`sklearn.impute.KNNImputer`: mean over the steps at which the other nodes showed most
              similar readings. Time grows with the square of the number of steps.
            - ``"iterative"``: :class:`sklearn.impute.IterativeImputer`: each node regressed on others, in rounds.
        learn_from: The city whose observed readings are learned from, for example the visible days: otherwise the test
            days' readings reach the visible days' gaps. Default: ``city`` itself.
        **options: For scikit-learn's imputer. Default for ``"iterative"``: ``n_nearest_features=10,
            random_state=0``.

    Raises:
        ValueError: If ``method`` is unknown, ``learn_from`` has other nodes, channels or units, or a node that has gaps
            has no observed reading to learn from.
    """
    if method not in ("hour_mean", "knn", "iterative"):
        raise ValueError(f"method: expected 'hour_mean', 'knn' or 'iterative', found {method!r}")
    if method == "hour_mean" and options:
        raise ValueError(f"method: 'hour_mean' takes no options, found {', '.join(options)}")
    teacher = city if learn_from is None else learn_from
    for what in ("node_ids", "channels", "units"):
        if getattr(teacher, what) != getattr(city, what):
            raise ValueError(f"learn_from: {teacher.name} has other {what} than {city.name}; both need the same")
    _check_learnable(city, teacher)
    filled = city.readings.cpu().numpy().copy()
    for channel in range(city.num_channels):
        known = _with_nan(teacher, channel)
        values = known if teacher is city else _with_nan(city, channel)
        if method == "hour_mean":
            made_up = _hour_mean(known, teacher.time.hour.to_numpy(), city.time.hour.to_numpy())
        else:
            made_up = _imputer(method, options).fit(known).transform(values)
        gaps = np.isnan(values)
        filled[..., channel][gaps] = made_up[gaps]
    return replace(city, readings=torch.from_numpy(filled).to(city.readings.device))


def _with_nan(city: City, channel: int) -> np.ndarray:
    values = city.readings[..., channel].cpu().numpy().astype(np.float64)
    return np.where(city.mask[..., channel].cpu().numpy(), values, np.nan)


def _check_learnable(city: City, teacher: City) -> None:
    hopeless = ~teacher.mask.any(dim=0).cpu() & ~city.mask.all(dim=0).cpu()
    if hopeless.any():
        node, channel = (int(i) for i in hopeless.nonzero()[0])
        raise ValueError(
            f"impute: node {city.node_ids[node]!r} of {teacher.name} has no observed reading in channel "
            f"{city.channels[channel]!r} to learn from ({int(hopeless.any(dim=1).sum())} such nodes); leave them out "
            "with city.drop_nodes([...])"
        )


def _hour_mean(known: np.ndarray, known_hours: np.ndarray, hours: np.ndarray) -> np.ndarray:
    def mean(values: np.ndarray, default: np.ndarray) -> np.ndarray:
        count = (~np.isnan(values)).sum(axis=0)
        return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), default)

    whole = mean(known, np.zeros(known.shape[1]))
    return np.stack([mean(known[known_hours == hour], whole) for hour in range(24)])[hours]


def _imputer(method: str, options: dict[str, Any]) -> Any:
    if method == "knn":
        from sklearn.impute import KNNImputer

        return KNNImputer(keep_empty_features=True, **options)
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    return IterativeImputer(keep_empty_features=True, **{"n_nearest_features": 10, "random_state": 0, **options})
