"""Drive a headless Chromium over its pipe, by the DevTools protocol, with no library.

For tests of the live page and for pictures of it::

    with chromium() as browser, browser.page(f"http://{address}/", width=1200, height=900) as page:
        page.until("document.title")
        print(page.value("document.title"))
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from shared.errors import NeucodexError

PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.05
BINARIES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # It would need user namespaces, or setuid; the pages are our own.
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-proxy-server",
)


class BrowserError(NeucodexError):
    """The browser cannot be had, or did not do as told."""


def find_chromium() -> str | None:
    """Return the path of the browser, if it is installed (Debian: ``chromium``)."""
    return next((path for name in BINARIES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser for the length of a block.

    Raises:
        BrowserError: there is none.
    """
    path = find_chromium()
    if path is None:
        raise BrowserError(f"expected one of {', '.join(BINARIES)} to be installed, none is")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        commands, to_browser = _high_pipe()
        from_browser, replies = _high_pipe()
        command = [path, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        # The browser reads commands from descriptor 3 and writes replies to 4.
        quiet = os.open(os.devnull, os.O_RDWR)
        moves = [(os.POSIX_SPAWN_DUP2, commands, 3), (os.POSIX_SPAWN_DUP2, replies, 4)]
        moves += [(os.POSIX_SPAWN_DUP2, quiet, number) for number in (0, 1, 2)]
        pid = os.posix_spawn(path, command, os.environ | {"HOME": folder}, file_actions=moves)
        for descriptor in (commands, replies, quiet):
            os.close(descriptor)
        try:
            yield Browser(from_browser, to_browser)
        finally:
            os.close(to_browser)
            os.close(from_browser)
            _end(pid)


def _high_pipe() -> tuple[int, int]:
    """Return a pipe's ends, out of the way of the descriptors that the browser expects."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


def _end(pid: int) -> None:
    """Wait for the browser, which ends with its pipe; kill it if it does not."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(POLL_SECONDS)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Browser:
    """A running browser.

    Args:
        read_from: descriptor of its replies.
        write_to: descriptor of our commands.
    """

    def __init__(self, read_from: int, write_to: int) -> None:
        self._read_from = read_from
        self._write_to = write_to
        self._ids = itertools.count(1)
        self._unread = b""

    @contextlib.contextmanager
    def page(self, url: str, *, width: int, height: int, dark: bool = False) -> Iterator[Page]:
        """Show a page of that size, in CSS pixels, for the length of a block."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        page.call("Page.navigate", url=url)
        try:
            yield page
        finally:
            self.call("Target.closeTarget", targetId=target)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Give a command and return its result; BrowserError if it fails."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write_to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (reply := self._receive(deadline)).get("id") != number:
            pass  # Events, which nobody asked for.
        if "error" in reply:
            raise BrowserError(f"{method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            wait_seconds = max(0.0, deadline - time.monotonic())
            if not select.select([self._read_from], [], [], wait_seconds)[0]:
                raise BrowserError(f"expected a reply within {PATIENCE_SECONDS} s")
            data = os.read(self._read_from, 1 << 16)
            if not data:
                raise BrowserError("the browser ended")
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


class Page:
    """An open page.

    Args:
        browser: that shows it.
        session: its name there.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give the page a command; see :meth:`Browser.call`."""
        return self._browser.call(method, self._session, **parameters)

    def value(self, script: str) -> Any:
        """Return what a JavaScript expression gives; BrowserError if it throws."""
        reply = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in reply:
            thrown = reply["exceptionDetails"]
            raise BrowserError(str(thrown.get("exception", thrown).get("description", thrown)))
        return reply["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression gives something true and return that."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (value := self.value(script)):
            if time.monotonic() > deadline:
                raise BrowserError(f"expected {script} within {PATIENCE_SECONDS} s")
            time.sleep(POLL_SECONDS)
        return value

    def screenshot(self) -> bytes:
        """Return the whole page as PNG, its size in CSS pixels."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        reply = self.call(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=True,
            clip=size | {"scale": 1},
        )
        return base64.b64decode(reply["data"])
