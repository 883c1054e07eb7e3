"""A city and its views: few-shot split, windows, scaler, PyG signals."""

from .city import City
from .mapped import write_mapped_city
from .pairs import CityPair, CityPairLoader
from .scaler import StandardScaler
from .split import FewShotSplit
from .windows import WindowBatch, Windows

__all__ = [
    "City",
    "CityPair",
    "CityPairLoader",
    "FewShotSplit",
    "StandardScaler",
    "WindowBatch",
    "Windows",
    "write_mapped_city",
]
