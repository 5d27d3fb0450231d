"""The page in a browser: what each form shows is what the server answers to a direct request."""

import base64
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from rest_client import Client, serve

from kerasdl.serving.access import Access, Keys
from kerasdl.serving.repository import ModelRepository

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
EXPORTS = Path(__file__).parents[3] / "saved_models"
SERVED = {
    "cifar10": "pictures",
    "captioner": "teller",
    "denoiser": "cleaner",
    "sentiment": 'it\'s <b>&amp; "odd"',
    "chargen": "writer",
    "vae": "digits",
    "dcgan": "painter",
}
"""No panel comes from the name of a model."""

pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()),
    reason="needs a browser; `apt-get install chromium chromium-driver` on Debian",
)


class Page:
    """A browser that shows the page of a server."""

    def __init__(self, driver: Any) -> None:
        self.driver, self.client = driver, Client(0)

    def open(self, client: Client, model: str = "") -> None:
        self.client = client
        self.driver.get("about:blank")
        self.driver.get(f"http://127.0.0.1:{client.port}/#{quote(model, safe='')}")
        if model:
            self.until(lambda: self.all("main form"))

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map(node => node.innerText)", selector)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, holds: Callable[[], Any], seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while not (value := holds()):
            assert time.monotonic() < end, self.driver.find_element("css selector", "body").text
            time.sleep(0.02)
        return value

    def field(self, label: str) -> Any:
        """The field with this label."""
        script = (
            "const labels = [...document.querySelectorAll('main label')];"
            "return labels.find(label => label.innerText === arguments[0])?.control"
        )
        return self.until(lambda: self.js(script, label))

    def set(self, label: str, value: str) -> None:
        field = self.field(label)
        field.clear()
        field.send_keys(value)

    def press(self, text: str) -> None:
        script = (
            "return [...document.querySelectorAll('main button')].find(button => button.innerText === arguments[0])"
        )
        self.until(lambda: self.js(script, text)).click()

    def answered(self) -> None:
        """Waits for the answer in the first panel."""
        self.until(lambda: self.texts("main form .status")[0].startswith("Answered"))

    def trouble(self) -> str:
        """Waits for an error."""
        return self.until(lambda: "".join(self.texts("main .error")))

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def size(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium; `make install`")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(DRIVER)))  # a given driver: selenium looks for no other
    yield driver
    driver.quit()


@pytest.fixture
def faults() -> list[str]:
    """Parts of the console's errors that a test expects, such as the status of a refused request."""
    return []


@pytest.fixture
def page(driver, faults) -> Iterator[Page]:
    page = Page(driver)
    page.size(1000)
    page.console()
    yield page
    assert [line for line in page.console() if not any(fault in line for fault in faults)] == []


@pytest.fixture(scope="module")
def client(tmp_path_factory, root) -> Iterator[Client]:
    """A server of all applications, and of models that no panel fits, in a process of its own, as people start it."""
    folder = tmp_path_factory.mktemp("shown")
    for export, name in SERVED.items():
        (folder / name).symlink_to(EXPORTS / export)
    for name in ("named", "echo"):
        (folder / name).symlink_to(root / name)
    monitoring, log = folder / "monitoring.config", folder / "log"
    monitoring.write_text('prometheus_config { enable: true path: "/metrics" }')
    command = [sys.executable, "-m", "kerasdl.serving", str(folder), "--rest-port", "0"]
    command += ["--monitoring-config-file", str(monitoring)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            deadline = time.monotonic() + 180
            while not (address := re.search(r"Page: http://127\.0\.0\.1:(\d+)/", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            client = Client(int(address[1]))
            while client("GET", "/readyz").status != 200:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield client
        finally:
            process.kill()


def _ask(client: Client, model: str, signature: str, **inputs: Any) -> Any:
    body = json.dumps({"signature_name": signature, "inputs": inputs})
    reply = client("POST", f"/v1/models/{quote(SERVED.get(model, model), safe='')}:predict", body)
    assert reply.status == 200, reply.body
    return reply.json["outputs"]


def _example(client: Client, model: str, signature: str) -> bytes:
    """The picture of a recorded example."""
    inputs = client("GET", f"/docs/{SERVED[model]}/{signature}.json").json["inputs"]
    return base64.b64decode(inputs["image_bytes"][0]["b64"])


def _file(tmp_path: Path, content: bytes) -> tuple[str, dict[str, str]]:
    """Path of a file, and its content as requests have it."""
    (tmp_path / "picture").write_bytes(content)
    return str(tmp_path / "picture"), {"b64": base64.b64encode(content).decode()}


def _sources(page: Page, selector: str) -> list[str]:
    sources = page.js("return [...document.querySelectorAll(arguments[0])].map(node => node.src)", selector)
    return [source.partition("base64,")[2] for source in sources]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def test_classes_of_a_picture(page, client, tmp_path):
    path, given = _file(tmp_path, _example(client, "cifar10", "classify"))
    page.open(client, SERVED["cifar10"])
    assert "Classes of a picture" in page.texts("h3")
    place = page.js(
        "const box = arguments[0].getBoundingClientRect(); return [box.x + 50, box.y + 20]", page.field("Picture")
    )
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [path], "dragOperationsMask": 1}
        page.driver.execute_cdp_cmd(
            "Input.dispatchDragEvent", {"type": kind, "x": place[0], "y": place[1], "data": data}
        )
    page.answered()  # it is asked at once
    shares = _ask(client, "cifar10", "classify", image_bytes=[given])["probabilities"][0]
    names = _ask(client, "cifar10", "class_name", index=list(range(10)))
    expected = [(names[index], _percent(shares[index])) for index in np.argsort(-np.array(shares), kind="stable")]
    rows = [tuple(row.text.split("\n")) for row in page.all(".bars li")]
    assert rows == expected
    assert page.texts(".answer") == [f"{expected[0][0]}, {expected[0][1]}"]


def test_caption_with_its_attention(page, client, tmp_path):
    path, given = _file(tmp_path, _example(client, "captioner", "caption"))
    page.open(client, SERVED["captioner"])
    page.field("Picture").send_keys(path)
    page.answered()
    [caption] = _ask(client, "captioner", "caption", image_bytes=[given])["caption"]
    assert " ".join(page.texts(".sentence button")) == caption
    looks = _ask(client, "captioner", "attention", image_bytes=[given], caption=[caption])
    veil = "const c = document.querySelector('.veil'); return [...c.getContext('2d').getImageData(0, 0, 7, 7).data]"
    words = page.all(".sentence button")
    for index, choose in ((2, words[2].click), (5, lambda: page.js("arguments[0].focus()", words[5]))):
        choose()
        assert (
            f"“{words[index].text}”, probability {_percent(math.exp(looks['log_probabilities'][0][index]))}"
            in (page.texts(".attention .status")[0])
        )
        assert [word.get_attribute("aria-pressed") == "true" for word in words].index(True) == index
        darkness = np.array(page.js(veil))[3::4]
        assert darkness[np.argmax(looks["weights"][0][index])] == 0 < darkness.max()
    page.set("Captions", "3")
    page.press("Caption")
    choices = page.until(lambda: page.all(".choices button"))
    found = _ask(client, "captioner", "search", image_bytes=[given], beam_width=[3], length_penalty=[0.7])["captions"][
        0
    ]
    assert [choice.text for choice in choices] == found
    choices[2].click()
    page.until(lambda: " ".join(page.texts(".sentence button")) == found[2])


def test_picture_beside_the_noisy_one(page, client, tmp_path):
    path, given = _file(tmp_path, _example(client, "denoiser", "denoise"))
    page.open(client, SERVED["denoiser"])
    page.field("Picture").send_keys(path)
    page.answered()
    assert page.texts(".pair figcaption") == ["Input", "Output"]
    assert _sources(page, ".pair img") == [
        given["b64"],
        _ask(client, "denoiser", "denoise", image_bytes=[given])[0]["b64"],
    ]
    page.set("Noise to add", "25")
    page.press("Send")
    page.until(lambda: _sources(page, ".pair img")[0] != given["b64"])
    noisy, clean = _sources(page, ".pair img")
    assert clean == _ask(client, "denoiser", "denoise", image_bytes=[{"b64": noisy}])[0]["b64"]


def test_class_of_a_text_by_keyboard_alone(page, client):
    from selenium.webdriver import ActionChains, Keys

    text = 'Clever <b>and</b> <img src=x onerror="throw 1"> moving, not dull.'
    page.open(client)

    def tab(there: Callable[[Any], bool]) -> Any:
        for _ in range(40):
            ActionChains(page.driver).send_keys(Keys.TAB).perform()
            element = page.driver.switch_to.active_element
            if there(element):
                assert page.js("return getComputedStyle(arguments[0]).outlineStyle", element) != "none"
                return element
        raise AssertionError("not reached")

    page.until(lambda: page.all("nav a"))
    tab(lambda element: element.text == SERVED["sentiment"]).send_keys(Keys.ENTER)
    assert page.until(lambda: "Class of a text" in page.texts("h3"))
    assert page.texts("h2") == [f"{SERVED['sentiment']} version 1"]
    page.field("Text")
    area = tab(lambda element: element.tag_name == "textarea")
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).send_keys(text).perform()
    assert area.get_attribute("value") == text
    tab(lambda element: element.text == "Classify").send_keys(Keys.ENTER)
    page.answered()
    shares = _ask(client, "sentiment", "classify", text=[text])["probabilities"][0]
    assert [row.split("\n")[1] for row in page.texts(".bars li")] == [_percent(s) for s in sorted(shares, reverse=True)]
    explained = _ask(client, "sentiment", "explain", text=[text])
    assert " ".join(page.texts(".words span")) == " ".join(explained["words"][0])
    weights = explained["weight"][0]
    heaviest = sorted(zip(explained["words"][0], weights, strict=True), key=lambda pair: -abs(pair[1]))[:10]
    shown = [f"{word} {'−' if weight < 0 else '+'}{abs(weight):.2f}" for word, weight in heaviest]
    assert [" ".join(row.split()) for row in page.texts(".heaviest li")] == shown
    signs = ["against" if weight < 0 else "for" for weight in weights]
    assert [span.get_attribute("class") for span in page.all(".words span")] == signs


def test_text_as_it_is_written(page, client):
    page.open(client, SERVED["chargen"])
    page.set("Text", "ROMEO:")
    settings = {"length": 90, "temperature": 0.7, "top_k": 20, "top_p": 0.95, "seed": 5}
    for name, value in settings.items():
        page.set(name.replace("top_", "top-").capitalize(), str(value))
    area = page.field("Text")
    written = ["ROMEO:"]
    for _ in range(2):  # it goes on from what stands there
        page.press("Write on")
        page.answered()
        page.until(lambda: len(area.get_attribute("value")) == len(written[-1]) + 90)
        given = {name: [value] for name, value in settings.items()}
        written.append(written[-1] + _ask(client, "chargen", "generate", prompt=[written[-1]], **given)[0])
        assert area.get_attribute("value") == written[-1]
    page.press("Undo")
    assert area.get_attribute("value") == written[1]


def test_stream_is_stopped(page, client):
    def cancelled() -> int:
        lines = client("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if 'model_name="writer",status="CANCELLED"' in line)

    page.open(client, SERVED["chargen"])
    area = page.field("Text")
    page.set("Length", "100000")
    before = cancelled()
    page.press("Write on")
    page.until(lambda: len(area.get_attribute("value")) > 300)
    page.press("Stop")
    page.until(lambda: page.texts("main form .status")[0] == "Stopped")
    text = area.get_attribute("value")
    page.until(lambda: cancelled() > before)  # the server's work has ended, too
    assert area.get_attribute("value") == text
    assert not [button for button in page.all("main button") if button.text == "Stop"]


def test_picture_follows_the_sliders(page, client):
    from selenium.webdriver import Keys

    page.open(client, SERVED["vae"])
    page.until(lambda: page.all(".decoded img"))
    values = (
        "return [...document.querySelectorAll('.slider')]"
        ".sort((a, b) => a.textContent.split(' ')[1] - b.textContent.split(' ')[1]).map(row => row.children[1].value)"
    )

    def equal() -> bool:
        latent = [float(value) for value in page.js(values.replace("textContent", "firstChild.textContent"))]
        return _sources(page, ".decoded img") == [
            _ask(client, "vae", "decode", latent=[latent])["image_bytes"][0]["b64"]
        ]

    page.until(equal)
    first = _sources(page, ".decoded img")
    page.js(
        "window.most = window.open_ = 0; const ask = window.fetch; window.fetch = async (...given) => {"
        "most = Math.max(most, ++open_); try { return await ask(...given) } finally { open_-- } }"
    )
    slider = page.all(".slider input")[0]
    slider.send_keys(Keys.HOME)
    for _ in range(30):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert slider.get_attribute("value") == "-2.5"
    page.until(equal)
    assert _sources(page, ".decoded img") != first
    assert page.js("return most") == 1
    page.press("Zero")
    page.until(lambda: set(page.js(values)) == {"0"})
    page.until(equal)


def test_grid_by_class_and_seed(page, client):
    page.open(client, SERVED["dcgan"])
    names = _ask(client, "dcgan", "class_name", index=list(range(10)))["label"]
    field = page.field("Class")
    assert [option.text for option in field.find_elements("tag name", "option")] == ["any", *names]
    field.send_keys("ship")
    page.set("Count", "5")
    page.set("Seed", "7")
    page.set("Truncation", "1.5")
    page.press("Generate")
    page.answered()
    ship = {"class_index": [names.index("ship")], "count": [5], "seed": [7], "truncation": [1.5]}
    drawn = _ask(client, "dcgan", "generate", **ship)["image_bytes"]
    assert _sources(page, ".grid img") == [file["b64"] for file in drawn]
    assert page.texts(".grid figcaption") == ["ship"] * 5
    assert len(page.all(".grid a[download]")) == 5
    assert [button for button in page.all("main button") if button.text == "Download all in one picture"]


def test_form_of_a_model_that_no_panel_fits(page, client, faults):
    page.open(client, "named")
    assert page.texts("h3") == ["Signatures"]
    page.set("image: float[?, 2]", "[[1, 2.5]]")
    page.set("caption: string[?]", "<i>boat</i>")
    page.press("Send")
    page.answered()
    assert json.loads(page.texts("main pre")[0]) == {"outputs": {"label": ["<i>boat</i>!"], "score": [3.5]}}
    page.set("image: float[?, 2]", "[[1, 2")
    page.press("Send")
    assert page.trouble() == "image is no JSON; expected numbers such as [[1, 2]]"
    page.set("image: float[?, 2]", "[[1, 2, 3]]")
    page.press("Send")
    page.until(lambda: page.trouble().endswith("(status 400)"))
    faults.append("400 (Bad Request)")


def test_forms_by_type(page, client):
    page.open(client, "echo")
    summaries = {element.text.split()[0]: element for element in page.all("summary")}
    summaries["int64"].click()
    form = page.until(lambda: page.all("details[open] form")[-1:] if len(page.all("details[open] form")) > 1 else None)[
        0
    ]
    form.find_element("css selector", "textarea").send_keys("[9007199254740993]")
    form.find_element("css selector", "button.primary").click()
    shown = page.until(lambda: form.find_elements("css selector", "pre"))[0]
    assert shown.text.split() == ["{", '"outputs":', "[9007199254740993]", "}"]  # each digit


def test_example_of_a_signature_that_has_a_panel(page, client):
    page.open(client, SERVED["sentiment"])
    [summary] = [element for element in page.all("summary") if element.text.startswith("explain")]
    summary.click()
    form = page.until(lambda: page.all("details[open] form"))[0]
    assert form.find_element("css selector", "textarea").get_attribute("value") == "A clever, moving film."
    form.find_element("css selector", "button.primary").click()
    shown = page.until(lambda: form.find_elements("css selector", "pre"))[0]
    assert json.loads(shown.text)["outputs"] == _ask(client, "sentiment", "explain", text=["A clever, moving film."])


@pytest.mark.parametrize("size", [30, 3_000_000])
def test_file_that_is_no_picture(page, client, tmp_path, faults, size):
    path, _ = _file(tmp_path, b"no picture" * (size // 10))
    page.open(client, SERVED["cifar10"])
    page.field("Picture").send_keys(path)
    trouble = page.trouble()
    assert trouble.endswith("(status 400)")
    assert "\n" not in trouble
    faults.append("400 (Bad Request)")


def test_server_that_is_out_of_reach(page, client, faults):
    page.open(client, SERVED["sentiment"])
    page.field("Text")
    page.driver.set_network_conditions(offline=True, latency=0, throughput=0)
    try:
        page.press("Classify")
        assert page.trouble() == "The server cannot be reached, or broke the connection"
    finally:
        page.driver.delete_network_conditions()
    page.press("Classify")
    page.answered()
    assert page.texts("main .error") == [""]
    faults.append("ERR_INTERNET_DISCONNECTED")


@pytest.mark.parametrize("name", [*SERVED.values(), "named"])
def test_width_of_a_phone(page, client, name):
    page.size(360)
    page.open(client, name)
    for button in page.all("main .panel .primary"):
        if button.text in ("Classify", "Generate"):
            page.js("arguments[0].click()", button)
    page.js("document.querySelectorAll('main details').forEach(details => details.open = true)")
    page.until(
        lambda: page.js("return [...document.querySelectorAll('.signature')].every(node => node.querySelector('form'))")
    )
    assert page.js("return document.scrollingElement.scrollWidth <= innerWidth")
    labels = (
        "return [...document.querySelectorAll('input, textarea, select')].every(input => input.labels.length === 1)"
    )
    assert page.js(labels)


def test_requests_in_the_same_look(page, client):
    page.open(client)
    page.until(lambda: page.all("#docs"))[0].click()
    page.until(lambda: page.texts("h1") == ["Requests"])
    page.size(360)
    assert page.js("return document.scrollingElement.scrollWidth <= innerWidth")
    assert page.js("return getComputedStyle(document.querySelector('.command')).position") == "relative"
    page.all(".command button")[0].click()
    page.until(lambda: page.texts(".command button")[0] == "Copied")
    page.all("header a")[0].click()
    page.until(lambda: page.texts("h1") == ["Models"])


def test_dark_and_light(page, client):
    page.open(client)
    found = set()
    for scheme in ("dark", "light"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        found.add(page.js("return getComputedStyle(document.body).backgroundColor"))
    assert len(found) == 2


def test_key(page, root, faults):
    repository = ModelRepository(root)
    repository.poll()
    with serve(repository, guard=lambda app: Access(app, keys=Keys([b"secret"]))) as keyed:
        page.open(keyed)
        field = page.until(lambda: [field for field in page.all("#key input") if field.is_displayed()])[0]
        for key in ("wrong", "secret"):
            field.clear()
            field.send_keys(key + "\n")
            if key == "wrong":
                assert "Expected a key" in page.until(lambda: "".join(page.texts("#trouble")))
        page.until(lambda: "pair" in page.texts("nav a"))
        assert not field.is_displayed()
        assert not page.all("#docs")[0].is_displayed()
        page.driver.get(f"http://127.0.0.1:{keyed.port}/#named")
        page.set("image: float[?, 2]", "[[1, 2]]")
        page.set("caption: string[?]", "a")
        page.press("Send")
        page.answered()
        assert page.js("return localStorage.length + sessionStorage.length + document.cookie.length") == 0
        page.driver.refresh()
        page.until(lambda: [field for field in page.all("#key input") if field.is_displayed()])
    faults.append("401 (Unauthorized)")


def test_model_that_comes_later(page, tmp_path, scales):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "1").symlink_to(scales[1])
    repository = ModelRepository(tmp_path)
    repository.poll()
    with serve(repository) as client:
        page.open(client)
        page.until(lambda: page.texts("nav a") == ["first"])
        page.set("x: float[?, 2]", "[[5, 6]]")
        (tmp_path / "second").mkdir()
        (tmp_path / "second" / "1").symlink_to(scales[2])
        repository.poll()
        page.all("#refresh")[0].click()
        page.until(lambda: page.texts("nav a") == ["first", "second"])
        assert page.field("x: float[?, 2]").get_attribute("value") == "[[5, 6]]"  # what was typed stays
