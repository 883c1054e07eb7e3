"""The catalogue's cities under names of their own, as PyG's users expect them.

Another one takes three lines: a class, its docstring, and ``city_name`` as the catalogue calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch_geometric.data import Data

from .pyg import CityDataset


class NamedCityDataset(CityDataset):
    """A :class:`~tsjt_pyg.datasets.pyg.CityDataset` whose city is known; the base of the classes below.

    Args:
        root: Folder with one folder a data set; default: the environment variable ``TSJT_CITIES``.
        history: Steps in.
        horizon: Steps out.
        transform, pre_transform, pre_filter, force_reload, channels: See
            :class:`~tsjt_pyg.datasets.pyg.CityDataset`.
    """

    city_name: ClassVar[str]

    def __init__(
        self,
        root: str | Path | None = None,
        history: int = 12,
        horizon: int = 12,
        transform: Callable[[Data], Any] | None = None,
        pre_transform: Callable[[Data], Data] | None = None,
        pre_filter: Callable[[Data], bool] | None = None,
        force_reload: bool = False,
        channels: Sequence[str] | str | None = None,
    ) -> None:
        super().__init__(
            root, self.city_name, history, horizon, transform, pre_transform, pre_filter, force_reload, channels
        )


class LosLoop(NamedCityDataset):
    r"""Speeds (mph) of loop detectors in Los Angeles, 1 to 7 March 2012, every 5 minutes: the first week of METR-LA.

    As released with T-GCN (Zhao et al., IEEE T-ITS 2020, arXiv:1811.05320), interpolated. For the arguments see
    :class:`NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 207
          - 2,833
          - 2,016
          - 1
          - 5 min
    """

    city_name = "los_loop"


class PEMS04(NamedCityDataset):
    r"""Flow, occupancy and speed of detectors on highways of the San Francisco Bay Area, from 1 January 2018.

    As released with ASTGCN (Guo et al., AAAI 2019); a file with the first steps only is read as well. Users forecast
    the flow: ``channels="flow"``. For the arguments see :class:`NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 307
          - 680
          - 16,992
          - 3
          - 5 min
    """

    city_name = "pems04"


class PEMS08(NamedCityDataset):
    r"""Flow, occupancy and speed of detectors on highways of San Bernardino, from 1 July 2016.

    As released with ASTGCN (Guo et al., AAAI 2019); a file with the first steps only is read as well. Users forecast
    the flow: ``channels="flow"``. For the arguments see :class:`NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 170
          - 548
          - 17,856
          - 3
          - 5 min
    """

    city_name = "pems08"


class JonasNYC(NamedCityDataset):
    r"""Taxi and bike trips that begin and end in the zones of a 16 x 8 grid over New York, from 24 October 2015.

    As released with EAST-Net (Wang et al., AAAI 2022, arXiv:2112.08443). For the arguments see
    :class:`NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 113
          - 752
          - 4,800
          - 4
          - 30 min
    """

    city_name = "jonas_nyc"


class JonasDC(NamedCityDataset):
    r"""Taxi and bike trips that begin and end in the zones of a 9 x 12 grid over Washington, from 24 October 2015.

    As released with EAST-Net (Wang et al., AAAI 2022, arXiv:2112.08443). For the arguments see
    :class:`NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 108
          - 742
          - 2,400
          - 4
          - 60 min
    """

    city_name = "jonas_dc"
