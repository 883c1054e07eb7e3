"""A city and its views: few-shot split, windows, scaler, PyG signals."""

from .city import City
from .city_roads import read_roads
from .mapped import write_mapped_city
from .node_blocks import NodeBlock, NodeBlocks
from .pairs import CityPair, CityPairLoader
from .profile import Profile, SupportProfile
from .road_network import Roads
from .scaler import StandardScaler
from .snap import Snapped, snap_sensors
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
    "NodeBlock",
    "NodeBlocks",
    "Profile",
    "Roads",
    "Snapped",
    "StandardScaler",
    "SupportProfile",
    "TableReport",
    "TablesRead",
    "WindowBatch",
    "Windows",
    "read_roads",
    "read_tables",
    "regular_time",
    "snap_sensors",
    "write_mapped_city",
]
