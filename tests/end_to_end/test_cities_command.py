"""`tsjt cities`, as a user types it."""

from tsjt_pyg.datasets import load_city


def test_cities_lists_the_bundled_ones_as_present(tsjt, tmp_path):
    text = tsjt("cities", "--root", tmp_path)
    assert "demo/riverton demo yes" in text
    assert "los_loop speed no" in text


def test_cities_describes_one_and_draws_it(tsjt, tmp_path):
    text = tsjt("cities", "demo/riverton", "--describe", "--picture", tmp_path / "riverton.png")
    assert "demo/riverton: 4,032 steps x 68 nodes x 2 channels" in text
    assert "unit km/h veh/5min" in text
    assert (tmp_path / "riverton.png").stat().st_size > 10_000
    saved = load_city("demo/riverton").between(0, 50).save(tmp_path / "mine.npz")
    assert "50 steps x 68 nodes" in tsjt("cities", saved, "--describe")
    assert "error: city: there is no city 'demo/rivertn'" in tsjt("cities", "demo/rivertn", "--describe", code=2)
    assert "the folder" in tsjt("cities", saved, "--describe", "--picture", tmp_path / "absent" / "a.png", code=2)


def test_cities_lists_files_that_are_missing_and_what_is_there(tsjt, tmp_path):
    (tmp_path / "pems08").mkdir()
    (tmp_path / "pems08" / "distance.csv").write_bytes(b"x" * 2000)
    text = tsjt("cities", "--root", tmp_path)
    assert "pems08 speed without pems08.npz 2.0 kB 170 x 1,282 Caltrans district 8" in text
    assert "demo/riverton demo yes 541.0 kB 68 x 4,032 simulated" in text
    assert "los_loop speed no 207 x 2,016 Los Angeles" in text


def test_cities_shows_the_card_of_one(tsjt, tmp_path):
    text = tsjt("cities", "los_loop", "--root", tmp_path)
    assert "# los_loop: loop detectors of Los Angeles" in text
    assert "| `speed.csv` (or `los_speed.csv`) | a column a sensor id, a row a step | `7b732d86" in text
    assert "there is no city 'los-loop'; did you mean 'los_loop'" in tsjt("cities", "los-loop", code=2)


def test_cities_goes_by_every_name_that_is_read(tsjt, tmp_path):
    folder = tmp_path / "los_loop"
    folder.mkdir()
    (folder / "los_speed.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "los_adj.csv").write_text("0,1\n1,0\n")
    assert "los_loop speed yes" in tsjt("cities", "--root", tmp_path)
    text = tsjt("cities", "los_loop", "--verify", "--root", tmp_path)
    assert "los_loop los_speed.csv present, checksum not on the card" in text


def test_cities_shows_the_card_of_libcity_with_and_without_data(tsjt, tmp_path):
    assert "# libcity: " in tsjt("cities", "libcity", "--root", tmp_path)
    assert "None of these cities is present" in tsjt("cities", "libcity", "--verify", "--root", tmp_path, code=1)
    assert "`tsjt cities libcity` says" in tsjt("cities", "libcity/X", "--root", tmp_path, code=2)
    (tmp_path / "libcity" / "X").mkdir(parents=True)
    assert "# libcity: " in tsjt("cities", "libcity/X", "--root", tmp_path)
    assert "libcity/X X.geo missing" in tsjt("cities", "libcity", "--verify", "--root", tmp_path)
    assert "there is no city 'demo'" in tsjt("cities", "demo", code=2)


def test_cities_describes_a_mapped_one(tsjt, tmp_path):
    folder = load_city("demo/riverton").between(0, 50).save_mapped(tmp_path / "mapped")
    assert "50 steps x 68 nodes" in tsjt("cities", folder, "--describe")


def test_cities_verifies_what_is_present(tsjt, tmp_path):
    assert "demo/riverton riverton.npz as on the card" in tsjt("cities", "--verify", "--root", tmp_path)
    (tmp_path / "pems08").mkdir()
    (tmp_path / "pems08" / "distance.csv").write_text("from,to,cost")
    text = tsjt("cities", "--verify", "--root", tmp_path, code=1)
    assert "pems08 pems08.npz missing" in text
    assert "pems08 distance.csv differs from the card" in text
    assert "demo/riverton" not in tsjt("cities", "pems08", "--verify", "--root", tmp_path, code=1)
    assert "None of these cities is present" in tsjt("cities", "pems04", "--verify", "--root", tmp_path, code=1)
