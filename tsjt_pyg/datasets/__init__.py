"""Named cities and file formats."""

from .catalogue import CityEntry, default_sources, list_cities, load_city
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
from .pyg import CityDataset
from .task import Task, load_task

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
]
