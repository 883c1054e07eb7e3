"""Forecasters that fit any city: node prompts, the recurrent cells of PyG-Temporal, and a head."""

from tsjt_pyg.nn.accelerate import accelerate
from tsjt_pyg.nn.city_embedding import CityEmbedding
from tsjt_pyg.nn.forecaster import Forecaster
from tsjt_pyg.nn.graph_wavenet import GraphWaveNet
from tsjt_pyg.nn.node_prompting import NodePrompting
from tsjt_pyg.nn.published_prompting import PublishedNodePrompting
from tsjt_pyg.nn.transferable import check_transferable

__all__ = [
    "CityEmbedding",
    "Forecaster",
    "GraphWaveNet",
    "NodePrompting",
    "PublishedNodePrompting",
    "accelerate",
    "check_transferable",
]
