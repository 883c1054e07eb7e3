"""Files of roads: GraphML as networkx or OSMnx write it, and OpenStreetMap's XML."""

from __future__ import annotations

import bz2
import gzip
import logging
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

if TYPE_CHECKING:
    import networkx as nx

_log = logging.getLogger(__name__)

Ways = Literal["drive", "drive_service", "all"]

_CARS = ("motorway", "trunk", "primary", "secondary", "tertiary")
_DRIVE = {*_CARS, *(f"{road}_link" for road in _CARS), "unclassified", "residential", "living_street", "road"}
_NO_ROADS = {"abandoned", "construction", "no", "planned", "platform", "proposed", "raceway", "razed", "rest_area"}
_CLOSED = {"no", "private"}
_DAMAGED = (OSError, EOFError, zlib.error, UnicodeDecodeError, ElementTree.ParseError)


def read_road_graph(path: str | Path, ways: Ways = "drive", simplify: bool = True) -> nx.MultiDiGraph:
    """The graph of a file, as OSMnx would give it.

    Args:
        path: ``.graphml``, written by networkx or by OSMnx's ``save_graphml`` (its attributes may stay text); or
            OpenStreetMap XML, ``.osm`` or ``.xml``, also with ``.bz2`` or ``.gz`` behind it, for which osmnx is needed
            (nothing is downloaded).
        ways: Which ways of OpenStreetMap are roads: ``"drive"``, open to all cars; ``"drive_service"``, with service
            roads (alleys, car parks); ``"all"``, whatever has a ``highway`` tag, on foot too. Buildings, rivers and
            the like are left out. A file cut out of a larger one refers to nodes it lacks: such a way ends there, and
            how many do is logged.
        simplify: Whether OSMnx joins pieces of road between two junctions to one (of OpenStreetMap's XML only).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another kind, damaged, or has no roads.
        ImportError: If osmnx is needed and absent.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected .graphml, .osm, .osm.bz2 or .osm.gz")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] if suffixes[-1:] in ([".bz2"], [".gz"]) else []
    kind = suffixes[-2:-1] if packed else suffixes[-1:]
    if kind == [".graphml"] and not packed:
        return _read_graphml(path)
    if kind in ([".osm"], [".xml"]):
        return _read_osm(path, ways, simplify)
    raise ValueError(
        f"{path}: expected .graphml, .osm, .xml, .osm.bz2 or .osm.gz; other files of OpenStreetMap (.pbf) become .osm "
        "with osmium or osmconvert"
    )


def _read_graphml(path: Path) -> nx.MultiDiGraph:
    import networkx as nx

    try:
        # Always a multigraph: OSMnx's files otherwise come back as one only if they happen to have parallel edges.
        graph = nx.read_graphml(path, force_multigraph=True)
    except (*_DAMAGED, nx.NetworkXError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read as GraphML ({error})") from error
    if not len(graph):
        raise ValueError(f"{path}: this graph has no nodes")
    return graph


def _read_osm(path: Path, ways: Ways, simplify: bool) -> nx.MultiDiGraph:
    if ways not in ("drive", "drive_service", "all"):
        raise ValueError(f"ways: expected 'drive', 'drive_service' or 'all', found {ways!r}")
    try:
        import osmnx
    except ImportError as error:
        raise ImportError(
            f'{path}: OpenStreetMap XML needs osmnx: pip install "tsjt-pyg[osm]" (GraphML and networkx graphs do not)'
        ) from error
    opener: Callable[..., Any] = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            tree = ElementTree.parse(file)
    except _DAMAGED as error:
        raise ValueError(f"{path}: cannot be read as OpenStreetMap XML ({error})") from error
    if tree.getroot().tag != "osm":
        raise ValueError(
            f"{path}: expected OpenStreetMap XML with the root element 'osm', found {tree.getroot().tag!r}"
        )
    roads = _only_roads(tree.getroot(), path, ways)
    with tempfile.TemporaryDirectory() as folder:
        cleaned = Path(folder) / "roads.osm"
        ElementTree.ElementTree(roads).write(cleaned, encoding="utf-8", xml_declaration=True)
        return osmnx.graph_from_xml(cleaned, retain_all=True, simplify=simplify)


def _is_road(tags: dict[str, str], ways: Ways) -> bool:
    highway = tags.get("highway")
    if highway is None or tags.get("area") == "yes" or highway in _NO_ROADS:
        return False
    if ways == "all":
        return True
    if any(tags.get(key) in _CLOSED for key in ("access", "motor_vehicle", "motorcar")):
        return False
    return highway in _DRIVE or (ways == "drive_service" and highway == "service")


def _only_roads(root: ElementTree.Element, path: Path, ways: Ways) -> ElementTree.Element:
    """The roads and their nodes; OSMnx would take a building's outline for a road, and fail where a node is absent."""
    nodes = {node.get("id"): node for node in root.iter("node")}
    roads = ElementTree.Element("osm", {"version": "0.6"})
    used: dict[str | None, None] = {}
    kept: list[ElementTree.Element] = []
    clipped = found = 0
    for way in root.iter("way"):
        tags = {tag.get("k", ""): tag.get("v", "") for tag in way.iter("tag")}
        if not _is_road(tags, ways):
            continue
        found += 1
        pieces: list[list[str | None]] = [[]]
        for stop in way.iter("nd"):
            ref = stop.get("ref")
            if ref in nodes:
                pieces[-1].append(ref)
            elif pieces[-1]:
                pieces.append([])
        clipped += sum(1 for _ in way.iter("nd")) > sum(map(len, pieces))
        for i, piece in enumerate(sorted((piece for piece in pieces if len(piece) > 1), key=len, reverse=True)):
            # OSMnx keeps one way an id, so further pieces of a cut one get ids that OpenStreetMap does not give.
            number = way.get("id", "0") if i == 0 else f"-{way.get('id', '0')}{i:02d}"
            copy = ElementTree.Element("way", {"id": number})
            copy.extend(ElementTree.Element("nd", {"ref": str(ref)}) for ref in piece)
            copy.extend(way.iter("tag"))
            kept.append(copy)
            used.update(dict.fromkeys(piece))
    if not kept:
        what = f"{found} roads, of none of which the file has two nodes" if found else f"no road (ways={ways!r})"
        raise ValueError(f"{path}: found {what}; expected ways with a 'highway' tag and their nodes")
    if clipped:
        _log.info("%s: %d of %d roads leave the file's area and end at its edge", path.name, clipped, found)
    roads.extend(ElementTree.Element("node", {k: nodes[ref].get(k, "") for k in ("id", "lat", "lon")}) for ref in used)
    roads.extend(kept)
    return roads
