"""Files of roads: as networkx and OSMnx write them, and OpenStreetMap's XML as it really comes."""

from __future__ import annotations

import bz2
import gzip
import logging
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from tsjt_pyg.data.city_roads import read_roads
from tsjt_pyg.data.road_files import read_road_graph
from tsjt_pyg.data.road_network import Roads, roads_from_networkx

STREETS = Path(__file__).with_name("streets.osm")


@pytest.fixture(scope="module")
def streets() -> nx.MultiDiGraph:
    pytest.importorskip("osmnx")
    return read_road_graph(STREETS)


def same(found: Roads, expected: Roads) -> None:
    order = [found.segment_ids.index(name) for name in expected.segment_ids]
    assert len(order) == len(found.segment_ids)
    assert found.length[order] == pytest.approx(expected.length)
    assert found.cost("travel_time")[order] == pytest.approx(expected.cost("travel_time"))
    for i, name in zip(order, expected.segment_ids, strict=True):
        k = expected.segment_ids.index(name)
        assert found.junction_ids[found.start[i]] == expected.junction_ids[expected.start[k]]
        assert found.junction_ids[found.end[i]] == expected.junction_ids[expected.end[k]]
        np.testing.assert_allclose(found.shapes[i], expected.shapes[k])


def test_streets_of_xml_are_the_roads_and_nothing_else(streets, caplog):
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        roads = roads_from_networkx(read_road_graph(STREETS))
    assert "streets.osm: 1 of 12 roads leave the file's area and end at its edge" in caplog.text
    assert set(roads.junction_ids) == {
        "10",
        "11",
        "12",
        "13",
        "20",
        "21",
        "22",
        "23",
        "31",
        "32",
        "33",
    }  # 30: no junction
    ids = set(roads.segment_ids)
    assert {"10-20-0", "20-31-0", "33-23-0", "11-11-0"} <= ids
    assert not {"20-10-0", "31-20-0", "23-33-0"} & ids  # one-way streets, of which one goes against its way
    assert not any("70" in name.split("-") for name in ids)  # driveway, footway, building
    ring = roads.segment_ids.index("13-33-0")
    assert roads.shapes[ring].tolist() == [[52.0, 4.3045], [52.0005, 4.3062], [52.0015, 4.3064], [52.002, 4.3045]]
    assert sorted(roads.tags["maxspeed"][ring]) == ["50", "70"]  # two ways joined to one road


def test_more_ways_when_asked(streets):
    service = read_road_graph(STREETS, ways="drive_service")
    assert {22, 71} <= set(service)
    on_foot = read_road_graph(STREETS, ways="all", simplify=False)
    assert on_foot.has_edge(20, 70)
    assert not on_foot.has_edge(71, 72)  # a building
    assert len(read_road_graph(STREETS, simplify=False)) == 16


@pytest.mark.parametrize("suffix", [".osm.bz2", ".osm.gz", ".xml", ".OSM"])
def test_packed_files_are_the_same(streets, tmp_path, suffix):
    path = tmp_path / f"town{suffix}"
    pack = {"bz2": bz2.compress, "gz": gzip.compress}.get(suffix.rsplit(".", 1)[-1], bytes)
    path.write_bytes(pack(STREETS.read_bytes()))
    same(roads_from_networkx(read_road_graph(path)), roads_from_networkx(streets))


def test_graphml_of_osmnx_and_of_networkx(streets, tmp_path):
    osmnx = pytest.importorskip("osmnx")
    expected = roads_from_networkx(streets)
    osmnx.save_graphml(streets, tmp_path / "osmnx.graphml")
    same(read_roads(tmp_path / "osmnx.graphml"), expected)
    same(roads_from_networkx(osmnx.load_graphml(tmp_path / "osmnx.graphml")), expected)
    plain = nx.MultiDiGraph()
    plain.add_nodes_from((node, {"x": data["x"], "y": data["y"]}) for node, data in streets.nodes(data=True))
    for u, v, key, data in streets.edges(keys=True, data=True):
        kept = {"length": data["length"], "highway": str(data["highway"]), "maxspeed": str(data.get("maxspeed", ""))}
        plain.add_edge(u, v, key, **kept, **({"geometry": data["geometry"].wkt} if "geometry" in data else {}))
    nx.write_graphml(plain, tmp_path / "networkx.graphml")
    same(read_roads(str(tmp_path / "networkx.graphml")), expected)


def test_graphml_needs_no_osmnx(tmp_path, monkeypatch):
    graph = nx.DiGraph()
    graph.add_node("a", x=4.0, y=52.0)
    graph.add_node("b", x=4.01, y=52.0)
    graph.add_edge("a", "b", length=700.0, maxspeed="['30 mph', '35 mph']")
    nx.write_graphml(graph, tmp_path / "town.graphml")
    monkeypatch.setitem(sys.modules, "osmnx", None)
    roads = read_roads(tmp_path / "town.graphml")
    assert roads.segment_ids == ("a-b-0",)
    assert roads.cost("travel_time") == pytest.approx([700 / (32.5 * 1.60934) * 3.6])
    with pytest.raises(ImportError, match=r'OpenStreetMap XML needs osmnx: pip install "tsjt-pyg\[osm\]"'):
        read_roads(STREETS)


def osm(body: str) -> bytes:
    return f'<osm version="0.6">{body}</osm>'.encode()


NODES = "".join(f'<node id="{i}" lat="52.0" lon="4.{i}"/>' for i in range(6))


def test_a_way_with_a_hole_becomes_two(tmp_path):
    pytest.importorskip("osmnx")
    stops = "".join(f'<nd ref="{i}"/>' for i in (9, 0, 1, 8, 2, 3, 4, 7, 5))
    path = tmp_path / "hole.osm"
    path.write_bytes(osm(f'{NODES}<way id="77">{stops}<tag k="highway" v="primary"/></way>'))
    graph = read_road_graph(path, simplify=False)
    assert {tuple(sorted(edge)) for edge in graph.edges()} == {(0, 1), (2, 3), (3, 4)}


BOMB = b'<!DOCTYPE osm [<!ENTITY a "' + b"x" * 1000 + b'">' + b"".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 50}">'.encode() for i in range(8)
) + b"]><osm>&i;</osm>"  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.osm", b"<osm><node", r"a.osm: cannot be read as OpenStreetMap XML \("),
        ("a.osm", BOMB, "a.osm: cannot be read as OpenStreetMap XML .*amplification"),
        ("a.osm", b"<gpx/>", "a.osm: expected OpenStreetMap XML with the root element 'osm', found 'gpx'"),
        ("a.osm", osm(NODES), "a.osm: found no road .ways='drive'.; expected ways with a 'highway' tag"),
        (
            "a.osm",
            osm('<way id="1"><nd ref="1"/><nd ref="2"/><tag k="highway" v="primary"/></way>'),
            "a.osm: found 1 roads, of none of which the file has two nodes",
        ),
        ("a.osm.bz2", bz2.compress(STREETS.read_bytes())[:200], "a.osm.bz2: cannot be read as OpenStreetMap XML"),
        ("a.osm.bz2", STREETS.read_bytes(), "a.osm.bz2: cannot be read as OpenStreetMap XML"),
        ("a.osm.gz", gzip.compress(STREETS.read_bytes())[:200], "a.osm.gz: cannot be read as OpenStreetMap XML"),
        ("a.osm.pbf", b"", r"a.osm.pbf: expected .graphml, .osm, .xml, .osm.bz2 or .osm.gz; other files .*osmium"),
        ("a.graphml", b"<graphml", r"a.graphml: cannot be read as GraphML \("),
        ("a.graphml", b"<html/>", r"a.graphml: cannot be read as GraphML \("),
        (
            "a.graphml",
            b'<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="directed"/></graphml>',
            "a.graphml: this graph has no nodes",
        ),
        (
            "a.graphml",
            b'<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><key id="d" for="node" attr.name="x" '
            b'attr.type="double"/><graph edgedefault="directed"><node id="a"><data key="d">east</data></node></graph>'
            b"</graphml>",
            "a.graphml: cannot be read as GraphML .*east",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if ".osm" in name:
        pytest.importorskip("osmnx")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_road_graph(path)
    assert [*tmp_path.iterdir()] == [path]


def test_other_messages(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.osm: there is no such file; expected .graphml"):
        read_roads(tmp_path / "none.osm")
    with pytest.raises(ValueError, match="ways: expected 'drive', 'drive_service' or 'all', found 'walk'"):
        read_road_graph(STREETS, ways="walk")


@pytest.mark.parametrize(
    ("graph", "options", "error", "message"),
    [
        (
            nx.path_graph(2),
            {},
            ValueError,
            "graph: every node needs x and y, .*osmnx.project_graph.*City.from_networkx",
        ),
        (nx.Graph(), {}, ValueError, "graph: it has no junctions"),
        ([1, 2], {}, TypeError, "graph: expected a networkx graph, the path of a file, or Roads, found list"),
        (nx.Graph(), {"component": "big"}, ValueError, "component: expected 'all' or 'weak' or 'strong', found 'big'"),
        (nx.Graph(), {"one_way": True}, ValueError, "one_way: expected 'as_is' or 'both', found True"),
    ],
)
def test_messages_of_read_roads(graph, options, error, message):
    with pytest.raises(error, match=message):
        read_roads(graph, **options)


def test_a_projected_graph_is_not_taken_for_degrees(streets):
    osmnx = pytest.importorskip("osmnx")
    with pytest.raises(ValueError, match="longitude and latitude in degrees; a projected graph goes back"):
        read_roads(osmnx.project_graph(streets))
