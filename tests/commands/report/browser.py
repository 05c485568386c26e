"""Headless Chromium, told what to do by its own protocol: opens a file, types, looks."""

import asyncio
import base64
import shutil
import subprocess
import time
from contextlib import contextmanager

import aiohttp
import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DEADLINE_S = 30


def find_browser():
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    pytest.skip("needs Chromium: apt-get install chromium")
    return None


class Page:
    """An open page. `problems`: errors and warnings of its console; `requests`: addresses that it asked for."""

    def __init__(self, runner, socket):
        self._runner, self._socket, self._last = runner, socket, 0
        self.problems, self.requests = [], []

    def send(self, method, **params):
        return self._runner.run(self._send(method, params))

    async def _send(self, method, params):
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=DEADLINE_S)
            self._note(message)
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message):
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(params["exceptionDetails"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                self.problems.append(params["args"])
            case "Log.entryAdded":
                self.problems.append(params["entry"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    def evaluate(self, code):
        result = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, code, again=lambda: None):
        """Wait until `code` is true; `again` is called before each look, for a page that may not be laid out yet."""
        deadline = time.monotonic() + DEADLINE_S
        while again() or not self.evaluate(code):
            assert time.monotonic() < deadline, f"never came true: {code}\n{self.problems}"
            time.sleep(0.1)

    def press(self, key):
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key])

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, x, y):
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def look(self, *, width, dark=False, touch=False, height=900):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file=None):
        """All of the page as PNG."""
        data = base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"])
        if file is not None:
            file.write_bytes(data)
        return data


@contextmanager
def opened(file, profile):
    """The HTML `file` in a browser with a fresh `profile` folder, without a network."""
    command = [find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-port=0"]
    command += ["--disable-dev-shm-usage"]  # which is small in a container
    with (profile.parent / f"{profile.name}.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--user-data-dir={profile}", "about:blank"], stdout=log, stderr=log)
    try:
        with asyncio.Runner() as runner:
            session, socket = runner.run(_connect(profile, process))
            try:
                page = Page(runner, socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    page.send(f"{domain}.enable")
                page.look(width=1280)
                page.send("Page.navigate", url=file.resolve().as_uri())
                page.wait_for("document.documentElement?.dataset.ready === 'true'")
                yield page
            finally:
                runner.run(socket.close())
                runner.run(session.close())
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


async def _connect(profile, process):
    deadline = time.monotonic() + DEADLINE_S
    told = profile / "DevToolsActivePort"
    while not (told.exists() and told.read_text()):
        assert process.poll() is None, "the browser ended"
        assert time.monotonic() < deadline, "the browser did not start"
        await asyncio.sleep(0.1)
    port = told.read_text().split()[0]
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        pages = [each for each in await answer.json(content_type=None) if each["type"] == "page"]
    socket = await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
    return session, socket
