"""The page in a browser: headless Chromium of the distribution, where it is installed."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from typing import Any

import http_server
import pytest

from ames_jax.retrieval.calibration import Calibration

try:
    from selenium import webdriver
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    pytest.skip("no selenium: pip install -r requirements-dev.txt", allow_module_level=True)

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver", allow_module_level=True)

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900")
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const dataTransfer = new DataTransfer();
dataTransfer.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
"""


class Page:
    """A page in the browser, and what tests look at."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def wait(self, script: str) -> Any:
        return WebDriverWait(self.driver, 60).until(lambda driver: driver.execute_script(f"return {script}"))

    def drop(self, picture: bytes) -> None:
        self.driver.execute_script(DROP, base64.b64encode(picture).decode())
        self.wait_for_answer()

    def wait_for_answer(self) -> None:
        self.wait("asked.answer && !document.getElementById('status').textContent")

    def found(self) -> list[str]:
        return [tile.get_attribute("data-id") for tile in self.all("#lists .tile")]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield started
    started.quit()


@pytest.fixture
def page(driver, server) -> Iterator[Page]:
    driver.get(server.url)
    opened = Page(driver)
    opened.wait("document.querySelectorAll('#pictures .tile').length === 12")
    yield opened
    assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_dropped_photo_finds_the_right_picture_first(page, made):
    page.drop((made / "pictures" / "scene1" / "0.jpg").read_bytes() + b" ")  # not the very file
    assert page.found()[0] == "scene1/0.jpg"
    assert len(page.found()) == 12
    assert page.one("#lists .tile .id").text == "scene1/\n0.jpg"
    page.wait("[...document.querySelectorAll('#lists img')].slice(0, 4).every((image) => image.naturalWidth > 0)")
    assert {"read", "wait", "extract", "global", "score"} <= set(page.one("#times dl").text.split())
    hits = page.driver.execute_script("return asked.answer.hits")
    for place, (hit, tile) in enumerate(zip(hits, page.all("#lists .tile")), 1):
        assert (f" from {hit['old_place']}" in tile.text) == (hit["old_place"] != place)
    page.one("#scores").send_keys(Keys.SPACE)
    assert "global 1.000" in page.one("#lists .tile").text
    page.one("input[value=both]").send_keys(Keys.SPACE)
    assert [heading.text for heading in page.all("#lists h2")] == ["First stage", "Re-ranked"]
    assert len(page.found()) == 24


def test_a_box_searches_for_a_part(page, photo):
    page.drop(photo)
    frame = page.one("#frame")
    width, height = frame.size["width"], frame.size["height"]
    start = ActionChains(page.driver).move_to_element_with_offset(frame, -width // 4, -height // 4)
    start.click_and_hold().move_by_offset(width // 2, height // 2).release().perform()
    page.wait("!document.getElementById('box').hidden")
    page.wait_for_answer()
    left, top, right, bottom = page.driver.execute_script("return asked.box")
    assert [left / 200, top / 160, right / 200, bottom / 160] == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=0.02)
    frame.send_keys(Keys.ARROW_RIGHT, Keys.SHIFT, Keys.ARROW_DOWN, Keys.NULL, Keys.ENTER)
    moved = page.driver.execute_script("return asked.box")
    assert moved[0] > left
    assert moved[3] > bottom
    page.wait_for_answer()
    frame.send_keys(Keys.ESCAPE)
    page.wait("asked.box === null && document.getElementById('box').hidden")


def test_an_address_that_encodes_nothing_is_taken_as_it_stands(page):
    page.driver.execute_script("location.hash = '#50%off.jpg'")
    page.wait("asked.id === '50%off.jpg' && document.getElementById('status').textContent.includes('50%off.jpg')")
    told = [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert told
    assert not [message for message in told if "404" not in message]  # of the answer, and no error of the page's own


def test_a_picture_of_the_collection_is_searched_for_and_explained(page):
    page.one("#find").send_keys("scene2/")
    page.wait("document.querySelectorAll('#pictures .tile').length === 3")
    page.one("#pictures .tile").send_keys(Keys.ENTER)
    page.wait_for_answer()
    assert page.found()[0].startswith("scene2/")
    assert "scene2/0.jpg" not in page.found()
    page.one("#lists .tile").send_keys(Keys.ENTER)
    page.wait("document.querySelectorAll('#drawing line').length > 0")
    assert " + 0.4 · local 0." in page.one("#score").text
    page.one("#attention").send_keys(Keys.SPACE)
    page.wait("document.querySelectorAll('#drawing circle').length > 0")
    page.one("#close").send_keys(Keys.ARROW_RIGHT)
    second = page.found()[1]
    page.wait(f"document.querySelector('#score strong').textContent === '{second}' && explained.answer !== null")
    page.one("#again").send_keys(Keys.ENTER)
    page.wait(f"document.getElementById('name').textContent === '{second}' && !document.getElementById('why').open")
    page.wait_for_answer()


def test_pictures_are_added_and_removed_on_the_page(own, driver, photo):
    driver.get(own.url)
    page = Page(driver)
    page.wait("document.querySelectorAll('#pictures .tile').length === 12")
    page.drop(photo)
    page.one("#add").send_keys(Keys.ENTER)
    page.wait("document.getElementById('status').textContent === 'Added as dropped.jpg.'")
    page.wait("document.querySelectorAll('#pictures .tile').length === 13")
    page.one("#add").send_keys(Keys.ENTER)
    page.wait("document.getElementById('status').textContent.startsWith(\"The index holds 'dropped.jpg' already\")")
    page.drop(photo)
    assert "dropped.jpg" not in page.found()
    assert page.one("#itself").text.endswith("left out of its own results: dropped.jpg")
    assert not page.one("#add").is_displayed()
    page.one("#pictures [data-id='dropped.jpg']").send_keys(Keys.ENTER)
    page.wait("asked.id === 'dropped.jpg'")
    page.wait_for_answer()
    page.one("#remove").send_keys(Keys.ENTER)
    driver.switch_to.alert.accept()
    page.wait("document.getElementById('status').textContent === 'Removed dropped.jpg.'")
    page.wait("document.querySelectorAll('#pictures .tile').length === 12 && document.getElementById('query').hidden")
    driver.get_log("browser")  # which tells of the refusal, too


def test_an_address_and_the_history_lead_to_a_search(page, server, photo):
    page.driver.get(f"{server.url}#scene2%2F1.jpg")
    page.driver.refresh()
    page.wait("asked.answer !== null && asked.id === 'scene2/1.jpg'")
    page.drop(photo)
    page.one("#pictures [data-id='scene0/0.jpg']").send_keys(Keys.ENTER)
    assert page.driver.current_url.endswith("#scene0%2F0.jpg")
    page.driver.back()
    page.wait("asked.file?.name === 'dropped.jpg' && asked.id === null")
    page.driver.back()
    page.wait("asked.id === 'scene2/1.jpg'")
    page.wait_for_answer()


def test_what_fails_is_said_and_leaves_no_results_of_another_search(page, photo):
    page.drop(photo)
    page.driver.execute_script(DROP, base64.b64encode(b"no picture").decode())
    page.wait("document.getElementById('status').classList.contains('wrong')")
    assert page.one("#status").text == (
        "The picture: cannot be read as an image (of no format that is known); mend or remove it"
    )
    for hidden in ("#found", "#frame", "#add"):
        assert not page.one(hidden).is_displayed()
    page.driver.get_log("browser")  # which tells of the refusal, too
    page.one("#find").send_keys("nowhere")
    page.wait("!document.getElementById('nothing').hidden")


def test_labels_probabilities_and_no_match_are_shown(made, driver, photo):
    with http_server.served(made / "index", label_of=lambda name: f"<{name[:6]}>") as client:
        sure, unsure = Calibration(1e-3, 1.0, 0.5, 30), Calibration(1e-3, -1.0, 0.5, 30)
        client.service.searcher.calibration = sure
        driver.get(client.url)
        page = Page(driver)
        page.wait("document.querySelectorAll('#pictures .tile').length === 12")
        assert "<scene0>" in page.one("#pictures .tile").text
        page.drop(photo)
        assert "73 %" in page.one("#lists .tile").text
        assert re.search(r"<scene\d>\nscene", page.one("#lists .tile").text)
        assert not page.one("#nomatch").is_displayed()
        client.service.searcher.calibration = unsure
        page.drop(photo)
        page.wait("!document.getElementById('nomatch').hidden")
        assert page.one("#nomatch").text.startswith("No match: none of these is likely")
        assert "27 %" in page.one("#lists .tile").text


def test_the_page_of_the_api_is_drawn(page, server):
    page.driver.get(f"{server.url}docs")
    page.wait("document.querySelectorAll('.operation').length > 5")
    assert "POST /search" in page.one("#operations").text


def test_a_token_is_asked_for(made, driver):
    token = "letters and more letters"
    with http_server.served(made / "index", token=token) as client:
        driver.get(client.url)
        page = Page(driver)
        page.wait("document.getElementById('token').open")
        page.one("#secret").send_keys("letters and other letters", Keys.ENTER)
        page.wait("document.getElementById('wanted').textContent.startsWith('That was not') && $('token').open")
        page.one("#secret").clear()
        page.one("#secret").send_keys(token, Keys.ENTER)
        page.wait("document.querySelectorAll('#pictures .tile').length === 12")
        page.wait("[...document.querySelectorAll('#pictures img')].some((image) => image.naturalWidth > 0)")
    driver.delete_all_cookies()
    driver.get_log("browser")
