"""Chromium, driven as a person drives it: pages of files, real keys, a real mouse."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def started(kind, profile):
    """A browser of this class with an empty tab; skips the test where there is no program."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"needs a browser on the PATH: none of {', '.join(PROGRAMS)} is there")
    browser = kind(program, profile)
    try:
        browser.open_tab()
        yield browser
    finally:
        browser.close()


class Browser:
    """Chromium without a window, driven over two pipes by its DevTools protocol."""

    def __init__(self, program, profile):
        (theirs_in, self.to), (self.back, theirs_out) = os.pipe(), os.pipe()
        # Chromium reads from descriptor 3 and writes to 4; first out of the way of both.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 100) for end in (theirs_in, theirs_out)]
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            [program, *flags, "--window-size=1200,1000", f"--user-data-dir={profile}"],
            preexec_fn=lambda: [os.dup2(end, number) for end, number in zip(ends, (3, 4))],
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self.number, self.session, self.received, self.events = 0, {}, b"", []

    def open_tab(self, **context):
        """Opens an empty tab, and talks to it from now on."""
        self.session = {}
        target = self("Target.createTarget", url="about:blank", **context)
        attached = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        """Sends one command and returns its result."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params} | self.session
        os.write(self.to, json.dumps(command).encode() + b"\0")
        while True:
            while b"\0" not in self.received:
                assert select.select([self.back], [], [], 60)[0], f"no answer to {method}"
                block = os.read(self.back, 1 << 16)
                assert block, "the browser has ended"
                self.received += block
            message, _, self.received = self.received.partition(b"\0")
            message = json.loads(message)
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def value(self, expression):
        """What JavaScript finds in the page."""
        done = self("Runtime.evaluate", expression=expression, returnByValue=True)
        return done["result"].get("value")

    def wait_for(self, expression, wanted):
        deadline = time.monotonic() + 20
        while (found := self.value(expression)) != wanted:
            assert time.monotonic() < deadline, f"{expression} is {found!r}, not {wanted!r}"
            time.sleep(0.02)

    def open(self, url, built):
        """Opens a page and waits until its script has made what this CSS selector finds."""
        self.events.clear()
        self("Page.navigate", url=url)
        there = f"document.readyState + !!document.querySelector({json.dumps(built)})"
        self.wait_for(there, "completetrue")

    def mouse(self, spot, *kinds):
        """Real events of the mouse at [x, y], which JavaScript finds."""
        x, y = self.value(spot)
        for kind in kinds:
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def key(self, key, repeats=0, **more):
        """Presses a key, which repeats as if held down, and lets it go."""
        text = {"text": "\r"} if key == "Enter" else {}
        more |= {"windowsVirtualKeyCode": {"Enter": 13, "Tab": 9}.get(key, 0)}
        for i in range(1 + repeats):
            again = {"autoRepeat": i > 0}
            self("Input.dispatchKeyEvent", type="keyDown", key=key, **again, **text, **more)
        self("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    def close(self):
        try:
            self.session = {}
            self("Browser.close")
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.to)
            os.close(self.back)
