"""Headless Chromium, as Debian has it, in front of a page of a running service."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from support.service import DEADLINE

PROGRAMS: Final = {"chromium": "chromium", "chromedriver": "chromium-driver"}
"""What is needed, and Debian's package that has it."""

THREADS: Final = """
return Array.from(document.querySelectorAll("#threads a"), (link) => link.textContent);
"""

MESSAGES: Final = """
return Array.from(document.querySelectorAll("#messages > li"), (item) => [
  item.classList[0], item.classList[1], item.querySelector("p").textContent,
]);
"""

T = TypeVar("T")


def install() -> None:
    """Debian's packages, where they are missing."""
    missing = [package for name, package in PROGRAMS.items() if not shutil.which(name)]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip(f"needs {' and '.join(missing)}")
    # another test may be installing what it needs itself
    until(lambda: subprocess.run(["apt-get", "update", "-qq"]).returncode == 0)
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=600", "install", "--yes", "-qq"]
    subprocess.run(
        [*command, "--no-install-recommends", *missing],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=900,
    )


def until(condition: Callable[[], T], seconds: float = DEADLINE) -> T:
    """The first value that is not false; what the page has replaced is looked for again."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(StaleElementReferenceException):
            if value := condition():
                return value
        assert time.monotonic() < deadline
        time.sleep(0.02)


@dataclass(frozen=True)
class Message:
    role: str
    status: str
    text: str


class Browser:
    """A browser with a profile of its own, which knows no host but this one."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for argument in (
            "--headless=new",
            "--no-sandbox",  # which root cannot have
            "--disable-dev-shm-usage",  # containers have little of it
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options, driver)

    def open(self, url: str) -> None:
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def labelled(self, label: str) -> WebElement:
        """The button or link that says this, once it can be seen."""
        path = f"//*[self::button or self::a][normalize-space()={label!r}]"

        def seen() -> WebElement | None:
            found = self.driver.find_elements(By.XPATH, path)
            return next((element for element in found if element.is_displayed()), None)

        return until(seen)

    def press(self, label: str) -> None:
        def press() -> bool:
            self.labelled(label).click()
            return True

        until(press)

    def type(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def says(self, text: str) -> bool:
        return text in self.find("body").text

    def threads(self) -> list[str]:
        """The titles that are listed."""
        titles: list[str] = self.driver.execute_script(THREADS)
        return titles

    def messages(self) -> list[Message]:
        return [Message(*parts) for parts in self.driver.execute_script(MESSAGES)]

    def last(self) -> Message:
        """The last message; none counts as an empty one."""
        return next(iter(self.messages()[-1:]), Message("", "", ""))

    def run(self, script: str, *arguments: object) -> Any:
        """What the last argument of the script is called with."""
        return self.driver.execute_async_script(script, *arguments)

    def complaints(self) -> list[str]:
        """What the browser has refused the page, or found wrong with it."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE" and entry["source"] != "network"
        ]


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    install()
    browser = Browser(profile)
    try:
        yield browser
        assert browser.complaints() == []
    finally:
        browser.driver.quit()


class Line:
    """A network in front of a service: connections through it can be cut."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.open += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in self.open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open.clear()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.cut()
