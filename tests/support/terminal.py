"""A program on a real terminal: pexpect runs it, pyte draws what it prints."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pexpect
import pyte

ENTER = "\r"
SPACE = " "
CLEAR_LINE = "\x15"
INTERRUPT = "\x03"
DOWN = "\x1b[B"


class _Screen(pyte.Screen):
    """Answers the program's questions about the terminal, such as where the cursor is."""

    child: pexpect.spawn

    def write_process_input(self, data: str) -> None:
        self.child.send(data)


class Terminal:
    """Keys in, text on the screen out."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        size: tuple[int, int] = (80, 40),
        deadline: float = 90,
    ) -> None:
        columns, lines = size
        self._deadline = deadline
        self._screen = _Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._child = pexpect.spawn(
            command[0],
            list(command[1:]),
            cwd=str(cwd),
            env={**env, "TERM": "xterm-256color"},
            dimensions=(lines, columns),
        )
        self._child.delaybeforesend = None
        self._screen.child = self._child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.close(force=True)

    @property
    def text(self) -> str:
        """What a person sees."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def press(self, *keys: str) -> None:
        for key in keys:
            self._child.send(key)

    def wait_for(self, *texts: str) -> str:
        """The screen, once all of the texts are on it."""
        end = time.monotonic() + self._deadline
        while missing := [text for text in texts if text not in self.text]:
            if not self._read(end):
                raise AssertionError(f"ended without {missing}:\n{self.text}")
        return self.text

    def wait_for_end(self) -> int:
        """The exit code."""
        end = time.monotonic() + self._deadline
        while self._read(end):
            pass
        return self._child.wait()

    def _read(self, end: float) -> bool:
        """Draws what the program has printed next; False once it has ended."""
        try:
            printed = self._child.read_nonblocking(65536, max(end - time.monotonic(), 0))
        except pexpect.EOF:
            return False
        except pexpect.TIMEOUT as error:
            raise AssertionError(f"nothing more happens:\n{self.text}") from error
        self._stream.feed(printed)
        return True
