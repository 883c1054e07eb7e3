"""More of the catalogue's cities under names of their own: those of which no file was at hand.

Their ``**STATS**`` are what their cards say, from the releases; ``-``: not known before the files are read.
"""

from __future__ import annotations

from .named import NamedCityDataset


class METRLA(NamedCityDataset):
    r"""Speeds (mph) of loop detectors on highways of Los Angeles County, 1 March to 27 June 2012.

    As released with DCRNN (Li et al., ICLR 2018, arXiv:1707.01926).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

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
          - -
          - 34,272
          - 1
          - 5 min
    """

    city_name = "metr_la"


class PEMSBAY(NamedCityDataset):
    r"""Speeds (mph) of detectors on highways of the San Francisco Bay Area, January to June 2017.

    As released with DCRNN (Li et al., ICLR 2018, arXiv:1707.01926).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 325
          - -
          - 52,128
          - 1
          - 5 min
    """

    city_name = "pems_bay"


class PEMS03(NamedCityDataset):
    r"""Flow of detectors on highways of Caltrans district 3, September to November 2018.

    As released with STSGCN (Song et al., AAAI 2020).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 358
          - -
          - 26,208
          - 1
          - 5 min
    """

    city_name = "pems03"


class PEMS07(NamedCityDataset):
    r"""Flow of detectors on highways of Caltrans district 7, May to August 2017.

    As released with STSGCN (Song et al., AAAI 2020).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 883
          - -
          - 28,224
          - 1
          - 5 min
    """

    city_name = "pems07"


class SZTaxi(NamedCityDataset):
    r"""Speeds of taxis on major roads of the Luohu district in Shenzhen, January 2015.

    As released with T-GCN (Zhao et al., IEEE T-ITS 2020, arXiv:1811.05320).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 156
          - -
          - 2,976
          - 1
          - 15 min
    """

    city_name = "sz_taxi"


class ChengduM(NamedCityDataset):
    r"""Speeds of DiDi vehicles on roads of Chengdu, January to April 2018, every 10 minutes.

    As in the bundle of ST-GFSL (Lu et al., KDD 2022).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 524
          - -
          - 17,280
          - 1
          - 10 min
    """

    city_name = "chengdu_m"


class Shenzhen(NamedCityDataset):
    r"""Speeds of DiDi vehicles on roads of Shenzhen, January to April 2018, every 10 minutes.

    As in the bundle of ST-GFSL (Lu et al., KDD 2022).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 627
          - -
          - 17,280
          - 1
          - 10 min
    """

    city_name = "shenzhen"


class StGfslMETRLA(NamedCityDataset):
    r"""METR-LA as in the bundle of ST-GFSL (Lu et al., KDD 2022): no sensor ids.

    See :class:`METRLA` for the original.
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

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
          - -
          - 34,272
          - 1
          - 5 min
    """

    city_name = "stgfsl_metr_la"


class StGfslPEMSBAY(NamedCityDataset):
    r"""PEMS-BAY as in the bundle of ST-GFSL (Lu et al., KDD 2022): no sensor ids.

    See :class:`PEMSBAY` for the original.
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 325
          - -
          - 52,116
          - 1
          - 5 min
    """

    city_name = "stgfsl_pems_bay"


class LargeSTSD(NamedCityDataset):
    r"""Flow of detectors on highways of San Diego, 2019.

    A part of LargeST (Liu et al., NeurIPS 2023, arXiv:2306.08259).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 716
          - -
          - 105,120
          - 1
          - 5 min
    """

    city_name = "largest_sd"


class LargeSTGBA(NamedCityDataset):
    r"""Flow of detectors on highways of the Greater Bay Area, 2019.

    A part of LargeST (Liu et al., NeurIPS 2023, arXiv:2306.08259).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 2,352
          - -
          - 105,120
          - 1
          - 5 min
    """

    city_name = "largest_gba"


class LargeSTGLA(NamedCityDataset):
    r"""Flow of detectors on highways of Greater Los Angeles, 2019.

    A part of LargeST (Liu et al., NeurIPS 2023, arXiv:2306.08259).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 3,834
          - -
          - 105,120
          - 1
          - 5 min
    """

    city_name = "largest_gla"


class LargeSTCA(NamedCityDataset):
    r"""Flow of detectors on highways of California, 2019.

    LargeST as a whole (Liu et al., NeurIPS 2023, arXiv:2306.08259).
    For the arguments see :class:`~tsjt_pyg.datasets.named.NamedCityDataset`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #steps
          - #channels
          - interval
        * - 8,600
          - -
          - 105,120
          - 1
          - 5 min
    """

    city_name = "largest_ca"
