"""Named cities and file formats."""

from .catalogue import CityEntry, default_sources, list_cities, load_city
from .dcrnn import read_dcrnn
from .grid import read_grid
from .jonas import read_jonas
from .largest import map_largest, read_largest
from .libcity import read_libcity
from .named import PEMS04, PEMS08, JonasDC, JonasNYC, LosLoop
from .named_unseen import (
    METRLA,
    PEMS03,
    PEMS07,
    PEMSBAY,
    ChengduM,
    LargeSTCA,
    LargeSTGBA,
    LargeSTGLA,
    LargeSTSD,
    Shenzhen,
    StGfslMETRLA,
    StGfslPEMSBAY,
    SZTaxi,
)
from .pems import read_pems
from .pyg import CityDataset
from .stgfsl import read_stgfsl
from .task import Task, load_task
from .tgcn import read_tgcn

__all__ = [
    "METRLA",
    "PEMS03",
    "PEMS04",
    "PEMS07",
    "PEMS08",
    "PEMSBAY",
    "ChengduM",
    "CityDataset",
    "CityEntry",
    "JonasDC",
    "JonasNYC",
    "LargeSTCA",
    "LargeSTGBA",
    "LargeSTGLA",
    "LargeSTSD",
    "LosLoop",
    "SZTaxi",
    "Shenzhen",
    "StGfslMETRLA",
    "StGfslPEMSBAY",
    "Task",
    "default_sources",
    "list_cities",
    "load_city",
    "load_task",
    "map_largest",
    "read_dcrnn",
    "read_grid",
    "read_jonas",
    "read_largest",
    "read_libcity",
    "read_pems",
    "read_stgfsl",
    "read_tgcn",
]
