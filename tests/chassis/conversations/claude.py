"""A server that speaks as much of Anthropic's protocol as an answer takes.

https://platform.claude.com/docs/en/build-with-claude/streaming
"""

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

EVENT = "event: {name}\ndata: {data}\n\n"


@dataclass(frozen=True)
class Refuse:
    """Answer with an error instead of a stream."""

    status: int
    kind: str


@dataclass(frozen=True)
class Fail:
    """Send an error in the middle of the stream, as an overloaded server does."""

    kind: str


@dataclass(frozen=True)
class Stop:
    """End with another reason than `end_turn`."""

    reason: str


class Cut:
    """Close the connection in the middle of an answer."""


class End:
    """End the response as if that were all, but without saying so."""


Step = str | float | Refuse | Fail | Stop | Cut | End | threading.Event
"""A text is sent, a number is a pause in seconds, an event is waited for."""


class Claude:
    """The server, in a thread of its own.

    Args:
        plans: What to do for each request; the last one serves for all that follow.
    """

    def __init__(self, *plans: Sequence[Step]) -> None:
        self.plans = list(plans)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.sent: list[float] = []
        """When each text was sent, on the monotonic clock."""
        self.departures: list[float] = []
        """When clients left before the end, on the monotonic clock."""
        self.poll = 0.01
        """Seconds between two looks at an event that is waited for."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        )
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers["content-length"]))
            self.headers.append(headers)
            self.requests.append(json.loads(body))
            plan = self.plans[min(len(self.requests), len(self.plans)) - 1]
            if not is_acceptable(self.requests[-1]):
                plan = [Refuse(400, "invalid_request_error")]
            await self._answer(plan, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.departures.append(time.monotonic())
        finally:
            writer.close()

    async def _answer(
        self, plan: Sequence[Step], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        reason = "end_turn"
        steps = list(plan)
        if steps and isinstance(steps[0], Refuse):
            writer.write(refusal(steps[0]))
            await writer.drain()
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        usage = {"input_tokens": 1, "output_tokens": 1}
        message: dict[str, object] = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        send(writer, "message_start", message=message)
        block = {"type": "text", "text": ""}
        send(writer, "content_block_start", index=0, content_block=block)
        await writer.drain()
        for step in steps:
            match step:
                case str():
                    delta = {"type": "text_delta", "text": step}
                    self.sent.append(time.monotonic())
                    send(writer, "content_block_delta", index=0, delta=delta)
                    await writer.drain()
                case threading.Event():
                    while not step.is_set():
                        await pause(reader, self.poll)
                case float() | int():
                    await pause(reader, step)
                case Fail(kind):
                    send(writer, "error", error={"type": kind, "message": "internal words"})
                    return
                case Stop():
                    reason = step.reason
                case Cut():
                    await writer.drain()
                    writer.transport.abort()
                    return
                case End():
                    writer.write(b"0\r\n\r\n")
                    return
        send(writer, "content_block_stop", index=0)
        ending = {"stop_reason": reason, "stop_sequence": None}
        send(writer, "message_delta", delta=ending, usage=usage)
        send(writer, "message_stop")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def is_acceptable(request: dict[str, Any]) -> bool:
    """Return whether Anthropic takes the request (https://platform.claude.com/docs/en/api/errors).

    It refuses blank text and prompts, a conversation that a person does not begin, and an answer
    to go on with that ends in white space.
    """
    messages = request["messages"]
    texts = [message["content"] for message in messages] + [request.get("system", "prompt")]
    visible = [text.strip("\u200b\u2060\ufeff\x00 \t\r\n\u00a0\u3000") for text in texts]
    begins = bool(messages) and messages[0]["role"] == "user"
    return begins and all(visible) and messages[-1]["role"] == "user"


async def pause(reader: asyncio.StreamReader, seconds: float) -> None:
    """Wait, unless the client leaves meanwhile."""
    try:
        async with asyncio.timeout(seconds):
            if not await reader.read(1):
                raise ConnectionResetError
    except TimeoutError:
        pass


def send(writer: asyncio.StreamWriter, kind: str, **content: object) -> None:
    event = EVENT.format(name=kind, data=json.dumps({"type": kind, **content})).encode()
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))


def refusal(step: Refuse) -> bytes:
    error = {"type": step.kind, "message": "internal words"}
    body = json.dumps({"type": "error", "error": error}).encode()
    head = (
        f"HTTP/1.1 {step.status} Refused\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After-Ms: 10\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
