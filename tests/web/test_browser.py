"""The page in a real browser: an upload, a click, an answer, the figures, and an error's message."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny_folder import write_tiny_folder

pytest.importorskip("gradio", reason="the page needs the extra `web`")
sync_api = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A page of a tiny model, served by the command."""
    folder = write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "gitllm_plugin", "demo", "--model", str(folder), "--port", str(port)]
    log = folder.parent / "log.txt"
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            if "the page is at" in log.read_text():
                break
            time.sleep(0.5)
        assert urllib.request.urlopen(address, timeout=30).status == 200
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)


@pytest.fixture
def page(url):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(url)
        page.wait_for_selector("#ask")
        yield page
        browser.close()


def test_upload_ask_and_see(page, url, tmp_path: Path):
    Image.linear_gradient("L").save(tmp_path / "picture.png")
    page.set_input_files("input[type=file]", tmp_path / "picture.png")
    page.wait_for_selector("[data-testid=image] img, .image-frame img")
    page.fill("#question textarea, #question input", "what color?")
    page.click("#ask")
    page.wait_for_selector("#chat [data-testid=bot]")
    page.wait_for_selector("#attention img")
    page.get_by_role("tab", name="Patches in words").click()
    page.wait_for_selector("#words img")
    page.screenshot(path=tmp_path / "page.png")
    colors = Image.open(tmp_path / "page.png").convert("RGB").getcolors(1 << 24)
    assert colors is not None and len(colors) > 200
    assert all(asked.startswith((url, "data:", "blob:")) for asked in page.asked)


def test_an_example_fills_the_question_and_can_be_asked(page):
    page.get_by_text("what shape is in the image?").first.click()
    page.wait_for_function(
        "document.querySelector('#question textarea, #question input').value == 'what shape is in the image?'"
    )
    page.wait_for_selector("[data-testid=image] img, .image-frame img")
    page.click("#ask")
    page.wait_for_selector("#attention img")


def test_an_error_is_a_message(page):
    page.click("#ask")
    page.get_by_text("There is no picture yet").wait_for()
    assert page.is_enabled("#ask")
