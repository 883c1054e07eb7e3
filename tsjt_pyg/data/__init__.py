"""A city and its views: few-shot split, windows, scaler, PyG signals."""

from .city import City
from .pairs import CityPair, CityPairLoader
from .scaler import StandardScaler
from .split import FewShotSplit
from .table_report import TableReport
from .tables import TablesRead, read_tables
from .times import regular_time
from .windows import WindowBatch, Windows

__all__ = [
    "City",
    "CityPair",
    "CityPairLoader",
    "FewShotSplit",
    "StandardScaler",
    "TableReport",
    "TablesRead",
    "WindowBatch",
    "Windows",
    "read_tables",
    "regular_time",
]
