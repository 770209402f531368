"""Pages in headless Chromium: nothing fails, sorting, filters, hover, dark, phone, print, and without JavaScript."""

import base64
import shutil
import time

import pytest
from made_pages import JSON_OF

from spikebrain import pages

selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the extra test")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROME and shutil.which("chromedriver")), reason="needs chromium and chromedriver"),
]
KINDS = list(JSON_OF)


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


def test_a_raster_tells_what_is_under_the_pointer(browser, results):
    browser.open(results["report"])
    browser.drawn()
    view = browser.one("[data-view=raster]")
    canvas, readout = view.find_element(By.TAG_NAME, "canvas"), view.find_element(By.CLASS_NAME, "readout")
    browser.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    width, height = canvas.size["width"], canvas.size["height"]
    ActionChains(browser.driver).move_to_element_with_offset(canvas, 60 - width // 2, 50 - height // 2).perform()
    raster = pages.read_page(results["report"].with_suffix(".html"))["rasters"][0]
    assert "q_proj, k_proj, v_proj · neuron 0 · token 1 “<” · timestep 1 of" in readout.text
    canvas.send_keys(Keys.ARROW_DOWN + 3 * Keys.ARROW_RIGHT)
    t = 3 % raster["num_timesteps"]
    token = 3 // raster["num_timesteps"]
    spike = {"+": "spike +1", "-": "spike −1", ".": "no spike"}[raster["spikes"][token][t][1]]
    count = str(raster["counts"][token][1]).replace("-", "−")
    assert f"neuron 1 · token {token + 1} " in readout.text
    assert f"timestep {t + 1} of {raster['num_timesteps']}" in readout.text
    assert readout.text.endswith(f"{spike} · count {count}")


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
