"""The page in a browser, from the disk and without a network: a headless Chromium, as Debian packages it."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tsjt_pyg.evaluation import Comparison, compare, write_report
from tsjt_pyg.evaluation.details import CITY, load_details
from tsjt_pyg.training import ModelConfig, Strategy

pytest.importorskip("plotly", reason="the report needs plotly: pip install 'tsjt-pyg[viz]'")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is steered by playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
EVIL = "a</script><b>&1"


@pytest.fixture(scope="session")
def run(commuters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    target = commuters("target", days=9, seed=1)
    pos = torch.stack([48 + torch.arange(6) / 100, 11 + (torch.arange(6) - 3) ** 2 / 200], dim=1).double()
    target = replace(target, pos=pos, node_ids=(EVIL, *(f"s{node}" for node in range(1, 6))))
    model = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=4, num_prompts=4)
    settings = {"model": model, "steps": 8, "batch_size": 8, "seeds": 2, "naive": ["last value"], "verbose": False}
    sources = [commuters("north", num_nodes=8, seed=2), commuters("south", seed=3)]
    unguarded = Strategy("tsjt", skewed=True)  # the guard would leave out sources of so few days
    compare(target, sources, ["target_only", "pooled", "tsjt_paper", unguarded], output=folder, **settings)
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium or chromium-browser on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def open_page(browser, run):
    """Opens the page, which takes a while, and notes what it asks of a network and what the browser says of it."""
    file = (run / "report.html").as_uri()

    def opened(**options):
        said = []
        page = browser.new_context(offline=True, **options).new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: None if request.url == file else said.append(f"request: {request.url}"))
        page.goto(file)
        page.wait_for_selector("html[data-drawn=true]")
        return page, said

    return opened


@pytest.fixture(scope="session")
def on_a_desktop(open_page):
    return open_page(viewport=DESKTOP)


@pytest.fixture
def page(on_a_desktop):
    """One for all tests, which therefore choose what they look at; nothing may be asked and nobody complain."""
    page, said = on_a_desktop
    yield page
    page.emulate_media(color_scheme="light", media="screen")
    page.set_viewport_size(DESKTOP)
    assert said == []


def lines(page, name):
    """Names and values of a picture's traces."""
    return page.evaluate(f"document.getElementById('plot-{name}').data.map((one) => [one.name, Array.from(one.y)])")


def test_the_sensor_picker_works_by_mouse_and_by_keyboard(page, run):
    city = load_details(run, CITY)
    found = Comparison.load(run)
    forecasts = load_details(run, found.runs("tsjt")[0].key)["forecasts"]
    ids = city["node_ids"][city["nodes"]].tolist()

    def check(node):
        shown = dict(lines(page, "forecasts"))
        place = ids.index(node)
        reading = np.array([np.nan if value is None else value for value in shown["reading"]])
        np.testing.assert_allclose(reading, city["readings"][:, place], atol=1e-2)
        np.testing.assert_allclose(shown["tsjt"], forecasts[:, place], atol=1e-2)
        assert f"Node {node}" in page.text_content("#sensor-said")
        assert page.evaluate("document.getElementById('sensor').selectedOptions[0].textContent") == node

    order = page.evaluate("Array.from(document.getElementById('sensor').options, (one) => one.textContent)")
    assert order == [EVIL, "s1", "s2", "s3", "s4", "s5"]
    page.select_option("#sensor", label="s2")
    check("s2")
    page.click("#sensor-after")
    check("s3")
    page.click("#sensor-before")
    page.click("#sensor-before")
    check("s1")
    page.focus("#sensor")
    page.keyboard.press("ArrowDown")
    check("s2")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # previous
    check("s1")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # next
    check("s2")
    page.keyboard.press("Tab")
    page.keyboard.type("s5")
    page.keyboard.press("Enter")
    check("s5")
    page.click("#sensor-after")  # and round to the first
    check(EVIL)
    page.fill("#sensor-id", "nowhere")
    page.keyboard.press("Enter")
    assert "There are no forecasts of a node nowhere" in page.text_content("#sensor-said")
    assert page.locator("#sensor-said b").count() == 0


def test_forecasts_can_be_ticked_and_unticked(page):
    assert [name for name, _ in lines(page, "forecasts")] == ["reading", "target_only", "tsjt"]  # at first
    page.check("#legend-forecasts input[data-name=pooled]")
    page.uncheck("#legend-forecasts input[data-name=target_only]")
    assert [name for name, _ in lines(page, "forecasts")] == ["reading", "pooled", "tsjt"]
    before = len(lines(page, "horizon"))
    page.focus("#legend-horizon input[data-name=pooled]")
    page.keyboard.press("Space")
    assert len(lines(page, "horizon")) == before - 2  # the line and its band


def test_the_map_shows_error_and_gain_of_each_strategy(page, run):
    found = Comparison.load(run)

    def node_mae(name):
        total, count = sum(load_details(run, one.key)["node"] for one in found.runs(name))
        return total / count

    def colours():
        return page.evaluate("(({marker}) => [Array.from(marker.color), marker.cmin, marker.cmax])"
                             "(document.getElementById('plot-map').data[1])")  # fmt: skip

    np.testing.assert_allclose(colours()[0], node_mae("tsjt"), rtol=1e-2)  # at first
    page.select_option("#map-name", "pooled")
    np.testing.assert_allclose(colours()[0], node_mae("pooled"), rtol=1e-2)
    page.focus("input[name=map-what][value=mae]")
    page.keyboard.press("ArrowDown")
    values, low, high = colours()
    expected = 100 * (1 - node_mae("pooled") / node_mae("target_only"))
    np.testing.assert_allclose(values, expected, rtol=2e-2, atol=0.02)
    assert low == -high  # no gain is in the middle of the colours
    assert "target_only" not in page.locator("#map-name option").all_text_contents()
    assert "gain over target_only of pooled" in page.text_content("#map-printed")
    size = page.evaluate("(({xaxis, yaxis}) => [xaxis._length / (xaxis.range[1] - xaxis.range[0]), "
                         "yaxis._length / (yaxis.range[1] - yaxis.range[0])])"
                         "(document.getElementById('plot-map')._fullLayout)")  # fmt: skip
    assert size[0] / size[1] == pytest.approx(np.cos(np.radians(48)), rel=0.01)


def test_gradients_and_prompts_are_drawn(page):
    for name in page.locator("#conflict-name option").all_text_contents():
        page.select_option("#conflict-name", name)
        assert len(lines(page, "conflict")) % 3 == 0
        assert page.locator("#plot-conflict .scatterlayer .trace").count() >= 3
    page.select_option("#conflict-name", "tsjt_paper")
    cosine, conflict, kappa = (values for _, values in lines(page, "conflict")[:3])
    assert len(cosine) == 8
    assert all(-1 <= value <= 1 for value in cosine)
    assert all(0 <= value <= 100 for value in conflict)
    assert min(kappa) >= 0
    assert len(lines(page, "prompts")) >= 1


def test_it_can_be_used_with_the_keyboard_alone(page):
    assert page.locator(":is(a, button, select, input, summary)").first.get_attribute("class") == "skip"
    page.focus("a.skip")
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") > 0  # seen where it has the focus
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    controls = page.locator("main :is(select, button, input:not([type=hidden]), summary, .scroll)").count()
    reached = set()
    for _ in range(controls + 5):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            "(() => { const one = document.activeElement; const style = getComputedStyle(one);"
            "return [one.id || one.dataset.name || one.textContent.slice(0, 30), style.outlineStyle]; })()"
        )
        if page.evaluate("document.activeElement !== document.body"):
            reached.add(seen[0])
            assert seen[1] != "none", seen
    assert {"sensor", "sensor-before", "sensor-after", "sensor-id", "map-name", "conflict-name"} <= reached


def test_on_a_phone_the_page_is_no_wider_than_the_screen(open_page):
    page, said = open_page(viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    for name in ("horizon", "hour", "weekday", "map", "forecasts", "conflict", "prompts"):
        assert page.evaluate(f"document.querySelector('#plot-{name} svg').getBoundingClientRect().width") <= 390
    assert page.evaluate("document.querySelector('#table .scroll').scrollWidth") > 362  # the table scrolls by itself
    before = page.text_content("#sensor-said")
    page.locator("#sensor-after").tap()
    assert page.text_content("#sensor-said") != before
    assert said == []


def brightness(text):
    red, green, blue = (int(part) for part in re.findall(r"\d+", text)[:3])
    return 0.3 * red + 0.6 * green + 0.1 * blue


def test_dark_and_light_have_text_that_can_be_read_also_in_pictures(page):
    page.emulate_media(color_scheme="dark")

    def both():
        style = "getComputedStyle(document.body)"
        paper, ink = page.evaluate(f"[{style}.backgroundColor, {style}.color]")
        tick = page.evaluate("getComputedStyle(document.querySelector('#plot-horizon .xtick text')).fill")
        return brightness(paper), brightness(ink), brightness(tick)

    paper, ink, tick = both()
    assert paper < 40
    assert min(ink, tick) > 200
    page.emulate_media(color_scheme="light")
    paper, ink, tick = both()
    assert paper > 240
    assert max(ink, tick) < 60
    page.emulate_media(color_scheme="dark", media="print")
    paper, ink, tick = both()
    assert paper > 240 or "rgba(0, 0, 0, 0)" in page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(ink, tick) < 60


def test_on_paper_there_are_no_buttons_and_no_picture_is_cut(page):
    document = page.pdf(format="A4", prefer_css_page_size=True)
    assert document.startswith(b"%PDF")
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", document)) <= 12
    page.set_viewport_size({"width": 688, "height": 1000})
    page.emulate_media(media="print")
    assert page.locator("button:visible, select:visible, nav:visible, input:visible").count() == 0
    for name in ("horizon", "map", "forecasts", "conflict"):
        right, bottom, below = page.evaluate(
            f"(() => {{ const box = document.querySelector('#plot-{name} svg').getBoundingClientRect();"
            f"const next = document.querySelector('#plot-{name}').parentElement.getBoundingClientRect();"
            "return [box.right, box.bottom, next.bottom]; })()"
        )
        assert right <= 688
        assert bottom <= below + 1
    page.emulate_media(media="screen")
    page.set_viewport_size(DESKTOP)
    page.wait_for_function("document.querySelector('#plot-horizon svg').getBoundingClientRect().width > 900")


def test_the_same_run_gives_the_same_page(run, tmp_path):
    assert write_report(run, tmp_path / "again.html").read_bytes() == (run / "report.html").read_bytes()
