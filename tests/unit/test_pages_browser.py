"""Pages in headless Chromium: nothing fails, sorting, filters, hover, dark, phone, print, and without JavaScript."""

import base64
import shutil
import time

import pytest
import torch
from made_pages import JSON_OF
from torch import nn

from spikebrain import AdaptiveThreshold, SpikeLinear, SpikeTrain, pages, record
from spikebrain.analysis import raster
from spikebrain.analysis.rasters import spikes_of

selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the extra test")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROME and shutil.which("chromedriver")), reason="needs chromium and chromedriver"),
]
KINDS = [*JSON_OF, "raster"]


@pytest.fixture(scope="module")
def chromium():
    options = selenium.ChromeOptions()
    options.binary_location = CHROME
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Browser:
    """A page in the browser, with what its tests ask."""

    def __init__(self, driver):
        self.driver = driver

    def command(self, name, **options):
        return self.driver.execute_cdp_cmd(name, options)

    def run(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def open(self, path, width=1200, theme="light", media="screen"):
        features = [{"name": "prefers-color-scheme", "value": theme}]
        features.append({"name": "prefers-reduced-motion", "value": "reduce"})  # no smooth scrolling
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.command("Emulation.setEmulatedMedia", media=media, features=features)
        for log in ("browser", "performance"):
            self.driver.get_log(log)  # of the page before
        self.driver.get(path.with_suffix(".html").as_uri())

    def wait(self, script):
        for _ in range(150):
            if self.run(script):
                return
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}")

    def drawn(self):
        self.wait("document.documentElement.dataset.state === 'drawn'")


@pytest.fixture
def browser(chromium):
    yield Browser(chromium)
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_drawn_without_an_error_or_a_request(browser, results, kind):
    browser.open(results[kind])
    browser.drawn()
    assert browser.driver.get_log("browser") == []
    sent = [line for line in browser.driver.get_log("performance") if "Network.requestWillBeSent" in line["message"]]
    assert len([line for line in sent if '"url":"data:' not in line["message"]]) == 1  # the page itself
    assert browser.run("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 2000
    for view in browser.all("figure.view"):
        assert view.find_elements(By.CSS_SELECTOR, "svg, canvas"), view.get_attribute("data-view")
    assert browser.run("window.hacked") is None
    # On a phone nothing is wider than the screen.
    browser.open(results[kind], width=360)
    browser.drawn()
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert browser.run("JSON.parse(document.getElementById('data').textContent).kind") == kind


def column(browser, sheet, i):
    script = "[...arguments[0].querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[arguments[1]])"
    return browser.run(f"{script}.map(c => c.dataset.value ?? c.textContent)", sheet, i)


def test_tables_sort_and_filter(browser, results):
    browser.open(results["report"])
    sheet = browser.one("#layers .sheet")
    heads = [head.text.split("\n")[0].split(" ?")[0] for head in sheet.find_elements(By.TAG_NAME, "th")]
    i = heads.index("mean spikes")
    button = sheet.find_elements(By.CSS_SELECTOR, "th")[i].find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)  # by the keyboard; numbers begin with the largest
    found = [float(value) for value in column(browser, sheet, i)]
    assert len(found) == 14
    assert found == sorted(found, reverse=True)
    button.send_keys(Keys.ENTER)
    assert [float(value) for value in column(browser, sheet, i)] == sorted(found)
    assert sheet.find_elements(By.TAG_NAME, "th")[i].get_attribute("aria-sort") == "ascending"
    sheet.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("layers.1. down")
    assert column(browser, sheet, 0) == ["model.layers.1.mlp.down_proj"]
    assert sheet.find_element(By.TAG_NAME, "output").text == "1 of 14 rows"


def test_definitions_are_one_click_away(browser, results):
    browser.open(results["report"])
    link = browser.one(".card a.term[href='#term-mean_spikes']")
    link.send_keys(Keys.ENTER)
    box = browser.one("#definition")
    assert box.is_displayed()
    assert "Spikes of either sign per channel and token." in box.text
    ActionChains(browser.driver).send_keys(Keys.ESCAPE).perform()
    assert not box.is_displayed()


class Panel:
    """A panel of a raster, all of whose places are in view at first."""

    def __init__(self, browser, figures, i=0):
        self.browser, self.figures = browser, figures
        self.canvas = browser.all("[data-view=raster] canvas")[i]
        self.readout = browser.all("[data-view=raster] .readout")[i]
        browser.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", self.canvas)
        left, right, *above = browser.run("[R.LEFT, R.RIGHT, R.LABELS, R.SUMS, R.GAP]".replace("R.", "RasterPicture."))
        self.left, self.top = left, sum(above)
        self.width = self.canvas.size["width"] - left - right

    def to(self, row, column, rows, columns):
        """Return the move to the middle of a place, where so many rows and columns are in view."""
        height = max(64, 11 * len(self.figures["neurons"]))
        x = self.left + (column + 0.5) * self.width / columns
        y = self.top + height - (row + 0.5) * height / rows
        size = self.canvas.size
        offset = (round(x - size["width"] / 2), round(y - size["height"] / 2))
        return ActionChains(self.browser.driver, 0).move_to_element_with_offset(self.canvas, *offset)

    def told(self, *place):
        self.to(*place).perform()
        return self.readout.text


def test_the_raster_of_a_report(browser, results):
    browser.open(results["report"])
    browser.drawn()
    (figures,) = pages.read_page(results["report"].with_suffix(".html"))["rasters"][0]["panels"]
    panel = Panel(browser, figures)
    spikes = spikes_of(figures).reshape(len(figures["neurons"]), -1)
    rows, columns = spikes.shape
    told = panel.told(0, 0, rows, columns)
    assert "q_proj, k_proj, v_proj · neuron 0 · token 1 “<” · timestep 1 of" in told
    panel.canvas.send_keys(Keys.ARROW_UP + 3 * Keys.ARROW_RIGHT)
    token, t = divmod(3, figures["num_timesteps"])
    spike = ["no spike", "spike +1", "spike −1"][spikes[1, 3]]
    told, count = panel.readout.text, str(figures["counts"][1][token]).replace("-", "−")
    assert f"neuron 1 · token {token + 1} " in told
    assert f"timestep {t + 1} of {figures['num_timesteps']} shown (weighs {figures['weights'][token][t]})" in told
    assert told.endswith(f"{spike} · count {count}")
    # The input of other layers is a choice away.
    browser.one("[data-view=raster] select").send_keys(Keys.END)
    assert [canvas.is_displayed() for canvas in browser.all("[data-view=raster] canvas")] == [False, True]
    assert browser.all("[data-view=raster] .readout")[1].text.startswith("40 of 40 neurons")


@pytest.fixture(scope="module")
def raster_page(tmp_path_factory):
    """Two calls in two codes: thresholds of 1, 1 and 2, counts [[2, -1, 4, -1], [1, 1, -6, 0]] and [[-2, 0, 5, -1]]."""
    calls = [[[2.2, -0.9, 4.0, -0.9], [0.9, 0.8, -6.3, 0.0]], [[-4.0, 0.2, 9.8, -2.0]]]
    layer = SpikeLinear.from_linear(nn.Linear(4, 3), neuron=AdaptiveThreshold(k=2.0))
    with torch.no_grad(), record(layer, keep_trains=True, keep_inputs=True) as recording:
        for x in calls:
            layer(torch.tensor(x))
    path = tmp_path_factory.mktemp("raster") / "r.html"
    pages.write_raster_page(
        raster(recording, encoders=["ternary", "bitwise-bidirectional"], tokens=["a", "b", "c"]), path
    )
    return path


@pytest.fixture
def panels(browser, raster_page):
    browser.open(raster_page)
    browser.drawn()
    (drawn,) = pages.read_page(raster_page)["rasters"]
    return [Panel(browser, figures, i) for i, figures in enumerate(drawn["panels"])]


def test_hover_over_a_raster(browser, panels):
    ternary, bitwise = panels
    told = ternary.told(2, 6, 4, 18)
    assert told == "neuron 2 · token 2 “b” (call 1) · timestep 1 of 6 shown (weighs 1) · spike −1 · count −6"
    assert "spike +1 · count 5" in ternary.told(2, 16, 4, 18)
    # The second call has counts of 5 at most.
    assert "token 3 “c” (call 2) · no timestep: this call's train is shorter" in ternary.told(0, 17, 4, 18)
    assert bitwise.readout.text == "4 of 4 neurons, 3 tokens of 3 timesteps."
    # 5 is 101 in binary.
    assert "neuron 2 · token 3 “c” (call 2) · timestep 2 of 3 shown (weighs 2) · no spike" in bitwise.told(2, 7, 4, 9)
    tops = [browser.run("arguments[0].getBoundingClientRect().top", panel.canvas) for panel in panels]
    assert tops[0] == tops[1]  # side by side


def test_zoom_into_a_raster(browser, panels):
    panel, _ = panels
    start = panel.to(1, 6, 4, 18).click_and_hold()
    start.perform()
    panel.to(2, 11, 4, 18).release().perform()
    assert "neuron 1 · token 2 “b”" in panel.told(0, 0, 2, 6)  # rows 1 and 2, the six timesteps of "b"
    assert "neuron 2 · token 2 “b” (call 1) · timestep 6" in panel.told(1, 5, 2, 6)
    # The wheel moves by a row, and at the end scrolls the page.
    by_a_row = ActionChains(browser.driver, 0).scroll_from_origin(ScrollOrigin.from_element(panel.canvas), 0, 32)
    by_a_row.perform()
    assert "neuron 0 · token 2" in panel.told(0, 0, 2, 6)
    ActionChains(browser.driver, 0).double_click(panel.canvas).perform()
    assert "neuron 0 · token 1" in panel.told(0, 0, 4, 18)
    # A stroke along time leaves the neurons as they are.
    panel.to(1, 12, 4, 18).click_and_hold().perform()
    panel.to(1, 17, 4, 18).release().perform()
    assert "neuron 0 · token 3 “c”" in panel.told(0, 0, 4, 6)
    # The buttons are for all panels.
    browser.one("[data-view=raster] button[aria-label='Show all']").click()
    assert "neuron 3 · token 1" in panel.told(3, 0, 4, 18)


def test_the_keys_of_a_raster(browser, panels):
    panel, _ = panels
    panel.canvas.send_keys(Keys.ARROW_RIGHT)  # to the first place
    assert panel.readout.text.startswith("neuron 0 · token 1 “a” (call 1) · timestep 1 ")
    panel.canvas.send_keys(2 * Keys.ARROW_UP + 6 * Keys.ARROW_RIGHT)
    told = "neuron 2 · token 2 “b” (call 1) · timestep 1 of 6 shown (weighs 1) · spike −1 · count −6"
    assert panel.readout.text == told
    panel.canvas.send_keys("+")
    # Around the place: half of 18 columns, and the 3 rows that half of 4 rows touch.
    assert "neuron 1 · token 1 “a” (call 1) · timestep 3 " in panel.told(0, 0, 3, 9)
    panel.canvas.send_keys(11 * Keys.ARROW_RIGHT)  # beyond what is in view, which follows
    assert "token 3 “c” (call 2) · timestep 2 " in panel.readout.text
    assert "neuron 1 · token 1 “a” (call 1) · timestep 6 " in panel.told(0, 0, 3, 9)
    panel.canvas.send_keys("0" + 30 * Keys.ARROW_LEFT + 9 * Keys.ARROW_DOWN)
    assert panel.readout.text.startswith("neuron 0 · token 1 “a” (call 1) · timestep 1 ")
    panel.canvas.send_keys("-")
    assert "neuron 3 · token 3" in panel.told(3, 17, 4, 18)


def test_where_boxes_would_be_too_small_one_map_shows_both_signs(browser, tmp_path):
    # Four neurons a pixel. Timesteps in which all fire +1, all -1, half of them each, and none.
    spikes = torch.tensor([1, -1, 0, 0], dtype=torch.int8).repeat(1840, 1)
    spikes[::2, 2], spikes[1::2, 2] = 1, -1
    train = SpikeTrain(spikes.t()[:, None].contiguous(), torch.ones(4, dtype=torch.int64))
    pages.write_raster_page(raster(train, num_neurons=1840, num_timesteps=4), tmp_path / "r.html")
    browser.open(tmp_path / "r.html")
    browser.drawn()
    panel = Panel(browser, pages.read_page(tmp_path / "r.html")["rasters"][0]["panels"][0])
    script = """(() => {
      const canvas = arguments[0], scale = canvas.width / canvas.clientWidth, context = canvas.getContext("2d");
      const { LEFT, RIGHT, SUMS, GAP } = RasterPicture, top = 2 * GAP + SUMS;
      const x = (i) => LEFT + (i + 0.5) * (canvas.clientWidth - LEFT - RIGHT) / 4;
      return [0, 1, 2, 3].map((i) => [...context.getImageData(x(i) * scale, (top + 100) * scale, 1, 1).data]);
    })()"""
    plus, minus, both, none = browser.run(script, panel.canvas)
    assert plus[3] == minus[3] == both[3] == 255
    assert none[3] == 0
    assert both[:3] == pytest.approx([(p + m) / 2 for p, m in zip(plus[:3], minus[:3], strict=True)], abs=2)
    assert plus[:3] != minus[:3]


def test_the_mesh_and_its_queues(browser, results):
    browser.open(results["simulation"])
    browser.drawn()
    canvas = browser.one("[data-view=mesh] canvas")
    canvas.send_keys(Keys.ARROW_RIGHT)
    told = browser.one("[data-view=mesh] .readout").text
    assert told.startswith("tile 0,0 · model.layers.0.self_attn.q_proj · busiest core: ")
    steps = pages.read_page(results["simulation"].with_suffix(".html"))["queue_steps"]
    slider = browser.one("[data-view=steps] input[type=range]")
    slider.send_keys(Keys.END)
    last = len(steps["waiting"]) - 1
    assert browser.one("[data-view=steps] output").text.endswith(f"µs, token {steps['token'][last] + 1}")
    browser.one("[data-view=steps] canvas").send_keys(Keys.ARROW_RIGHT)
    assert browser.one("[data-view=steps] .readout").text.endswith("packets wait")


def background(browser):
    return browser.run("getComputedStyle(document.body).backgroundColor")


def test_dark_and_light(browser, results):
    browser.open(results["energy"], theme="dark")
    dark = background(browser)
    browser.one("#theme").click()
    light = background(browser)
    assert (dark, light) == ("rgb(15, 18, 22)", "rgb(246, 247, 249)")
    browser.run("localStorage.clear()")
    browser.open(results["energy"], theme="light")
    assert background(browser) == light


def test_print(browser, results):
    browser.open(results["energy"], theme="dark")
    browser.drawn()
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.command("Emulation.setEmulatedMedia", media="print")
    assert not browser.one(".bar").is_displayed()
    assert background(browser) == "rgba(0, 0, 0, 0)"
    assert all(table.is_displayed() for table in browser.all("table"))  # also those that were folded
    assert base64.b64decode(browser.command("Page.printToPDF")["data"]).startswith(b"%PDF")
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert not browser.all("details[open]")


def test_without_javascript(browser, results):
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(results["report"])
    assert "JavaScript is off" in browser.one("main").text
    rows = browser.all("#layers tbody tr")
    assert len(rows) == 14
    assert all("model.layers." in row.text for row in rows)
    browser.one("#energy details summary").click()
    assert browser.one("#energy details table").is_displayed()
    assert not any(view.is_displayed() for view in browser.all("figure.view"))
    browser.one(".card a.term").send_keys(Keys.ENTER)  # to the definition at the end
    assert browser.driver.current_url.endswith("#term-accuracy")
