"""The calibration report, as report_probe writes it from invented figures: well-formed HTML without any reference to the outside,
hostile texts harmless, and in a real browser (Debian: chromium) no console message, no request and nothing wider than the screen,
from a phone to a desktop, light and dark. Seconds.

FIXPOINT_BIN: folder with report_probe, default build/release/bin. FIXPOINT_CHROMIUM: the browser, default the first of chromium,
chromium-browser, google-chrome in PATH. FIXPOINT_SCREENSHOTS: a folder that gets a PNG of each page, for looking at.
"""
import base64
import html.parser
import json
import os
import pathlib
import re
import select
import shutil
import subprocess
import time

import pytest

from conftest import BIN

KINDS = ["neutral", "adapted", "untrained", "hostile", "huge", "empty"]
TIMEOUT_SECONDS = 300  # a loaded machine is slow, not broken
VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}
# In SVG, what has no content may close itself.
SVG = {"svg", "path", "line", "rect", "circle", "text", "title"}
ELEMENTS = SVG | set("""html head meta style body header main footer nav section article div span p ul li dl dt dd a b h1 h2 h3 h4 mark
    figure figcaption table thead tbody tr th td details summary""".split())


def write(kind):
    probe = BIN / "report_probe"
    if not probe.exists():
        pytest.skip(f"{probe} is not built (set FIXPOINT_BIN)")
    done = subprocess.run([probe, kind], capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pages():
    return {kind: write(kind).decode("utf-8") for kind in KINDS}  # strict: the page must be UTF-8


class Checker(html.parser.HTMLParser):
    """Balanced tags; no element or attribute that loads or runs anything."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.wrong, self.counts, self.ids, self.links, self.titles = [], [], {}, [], [], []
        self.text = []

    def start(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ELEMENTS:
            self.wrong.append(f"{self.getpos()}: element {tag}")
        names = [name for name, _ in attributes]
        if len(names) != len(set(names)):
            self.wrong.append(f"{self.getpos()}: attribute twice in {tag}")
        for name, value in attributes:
            if name.startswith("on") or name in ("src", "srcset", "action", "data", "poster", "background", "xlink:href", "style"):
                self.wrong.append(f"{self.getpos()}: {tag} {name}={value}")
            if name == "href":
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
            if name == "http-equiv" and value != "Content-Security-Policy":
                self.wrong.append(f"{self.getpos()}: {tag} {name}={value}")

    def handle_starttag(self, tag, attrs):
        self.start(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.start(tag, attrs)
        if tag not in SVG or "svg" not in self.open:
            self.wrong.append(f"{self.getpos()}: <{tag}/> outside of SVG")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"{self.getpos()}: </{tag}> closes nothing that is open")

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def handle_comment(self, data):
        self.wrong.append(f"{self.getpos()}: comment")


def check(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    return checker


@pytest.mark.parametrize("kind", KINDS)
def test_well_formed_and_alone(pages, kind):
    page = check(pages[kind])
    assert not page.wrong, page.wrong[:5]
    assert not page.open
    assert pages[kind].startswith("<!DOCTYPE html>")
    assert len(page.ids) == len(set(page.ids))
    assert all(link[0] == "#" and link[1:] in page.ids for link in page.links), page.links
    assert "Content-Security-Policy" in pages[kind] and "default-src 'none'" in pages[kind]


@pytest.mark.parametrize("kind", ["neutral", "adapted", "untrained", "empty"])
def test_no_network_reference(pages, kind):
    """In the hostile pages such letters are text; there test_well_formed_and_alone looks at elements and attributes."""
    found = re.findall(r"https?:|ftp:|//[a-z]|\bsrc\s*=|@import|url\(|<script|<link|<iframe|<object|<embed|javascript:", pages[kind], re.I)
    assert not found


def test_checker_finds_mistakes():
    for wrong in ["<p>", "<p></div></p>", "<script></script>", "<p onclick=x></p>", "<img src=x>", "<p/>", "<p id=a id=b></p>", "<!-- -->"]:
        page = check(wrong)
        assert page.wrong or page.open, wrong


def test_content(pages):
    page = check(pages["neutral"])
    text = re.sub(r"\s+", " ", " ".join(page.text))
    for wanted in ["SmolLM2-135M-Instruct.Q4_1", "0.62 %", "0.0098", "94.1 %", "neutral track", "integer engine", "float + prefix",
                   "dynamic per token, rotated basis", "int8 weights alone", "kept: step 130", "held-out KL did not fall in two measurements",
                   "layers.11.down_in", "the target of KL is reached", "What is the capital of France?", "Identical, 111 characters.",
                   "12 min 11 s", "3.42 GiB", "27.3 %", "5a1395716f79", "within the budget of +1.0 %"]:
        assert wanted.replace(" ", " ") in text.replace(" ", " "), wanted
    for number in ("nan", "inf", "-0.00"):
        assert not re.search(rf"(?<![a-z]){number}(?![a-z0-9])", text, re.I), number
    assert page.counts["mark"] == 3 * 2
    # Five maps of all sites, two of those with gains, and a strip for each step in each panel of the curve.
    assert page.counts["rect"] > 5 * 211 + 2 * 60 + 3 * 151
    assert len(pages["neutral"]) < 1 << 20


def test_tracks(pages):
    assert "float control" in pages["adapted"] and "diverged" in pages["adapted"] and "below" in pages["adapted"]
    assert "not trained" in pages["untrained"]
    assert "Change of scale" in pages["neutral"] and "Change of scale" not in pages["untrained"]
    assert 'id="training"' not in pages["untrained"] and 'id="training"' in pages["adapted"]


def test_hostile_texts_stay_texts(pages):
    page = check(pages["hostile"])
    text = "".join(page.text)
    assert "<script>alert(1)</script>" in text and "script" not in page.counts and "img" not in page.counts
    assert "�" in text and "␛" in text and "\x1b" not in text
    assert "bytes more)" in text
    assert len(pages["hostile"]) < 2 << 20
    assert len(pages["huge"].encode()) < 16 << 20


def test_same_data_same_bytes():
    assert write("neutral") == write("neutral")


class Browser:
    """A headless Chromium, spoken to over a pipe (DevTools protocol, messages end in NUL)."""

    def __init__(self, program, folder):
        to_browser, self.output = os.pipe()
        self.input, from_browser = os.pipe()
        # The browser expects its pipes as descriptors 3 and 4.
        command = ["bash", "-c", f'exec 7<&{to_browser} 8>&{from_browser}; exec "$@" 3<&7 4>&8 7<&- 8>&-', "bash", program, "--headless=new",
                   "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-background-networking",
                   "--no-first-run", f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=[to_browser, from_browser], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE)
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.next_id, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def read(self, deadline):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.input], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self.input, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError("the browser is silent" if not ready else self.process.stderr.read().decode(errors="replace")[-2000:])
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            answer = self.read(deadline)
            if answer.get("id") == self.next_id:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def load(self, path, width, dark):
        self.events = []
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read(deadline))

    def evaluate(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def close(self):
        os.close(self.output)  # the browser ends when its pipe does
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.input)
        self.process.stderr.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = os.environ.get("FIXPOINT_CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        pytest.skip("no chromium in PATH (apt-get install chromium, or set FIXPOINT_CHROMIUM): the report was not looked at")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


# Elements that stick out of the screen and are in no box that scrolls.
OVERFLOW = """(() => {
  const wide = document.documentElement.clientWidth, found = [];
  for (const e of document.body.querySelectorAll('*')) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > wide + 1 && !e.closest('.scroll, .text, .panel')) found.push(e.tagName + '.' + e.getAttribute('class'));
  }
  return {wide, scroll: document.documentElement.scrollWidth, found: found.slice(0, 5)};
})()"""
# The lowest contrast of text with the first opaque background around it, over elements that hold text of their own.
CONTRAST = """(() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
                       return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  let lowest = [99, ''];
  for (const e of document.body.querySelectorAll('*')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || e.tagName === 'title') continue;
    let box = e, back = [0, 0, 0, 0];
    while (box && back[3] === 0) { back = parse(getComputedStyle(box).backgroundColor); box = box.parentElement; }
    const style = getComputedStyle(e), text = light(parse(e.namespaceURI.endsWith('svg') ? style.fill : style.color)), ground = light(back);
    const contrast = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, e.tagName + '.' + e.getAttribute('class')];
  }
  return lowest;
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 800, 1600])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "huge"])
def test_in_a_browser(pages, browser, tmp_path, kind, width, dark):
    path = tmp_path / "report.html"
    path.write_text(pages[kind], encoding="utf-8")
    browser.load(path, width, dark)
    folder = os.environ.get("FIXPOINT_SCREENSHOTS")
    if folder:
        browser.screenshot(pathlib.Path(folder) / f"{kind}-{width}-{'dark' if dark else 'light'}.png")
    overflow = browser.evaluate(OVERFLOW)
    assert overflow["scroll"] <= overflow["wide"] and not overflow["found"], overflow
    contrast, where = browser.evaluate(CONTRAST)
    assert contrast >= 4.5, (contrast, where)
    messages = [event["params"] for event in browser.events if event.get("method") in
                ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
    assert not messages, messages
    requests = [event["params"]["request"]["url"] for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
    assert requests == [path.as_uri()], requests


def test_fits_paper(pages, browser, tmp_path):
    """718 pixels: A4 less margins of a centimetre. On paper nothing scrolls, so that what sticks out is lost; colours are the light ones."""
    path = tmp_path / "report.html"
    path.write_text(pages["neutral"], encoding="utf-8")
    browser.load(path, 718, True)
    dark = browser.evaluate("getComputedStyle(document.body).color")
    browser.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.evaluate("document.documentElement.scrollWidth") <= 718
    assert browser.evaluate("getComputedStyle(document.body).color") != dark
    browser.call("Emulation.setEmulatedMedia", media="")


def test_browser_sees_what_is_too_wide(browser, tmp_path):
    """The checks above can fail."""
    path = tmp_path / "wrong.html"
    path.write_text("<!DOCTYPE html><body style='background: #fff'><p style='width: 900px; color: #aaa'>wide</p><script>console.error(1)</script>")
    browser.load(path, 360, False)
    assert browser.evaluate(OVERFLOW)["found"] and browser.evaluate(CONTRAST)[0] < 4.5
    assert any(event.get("method") == "Runtime.consoleAPICalled" for event in browser.events)
