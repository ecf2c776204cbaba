"""Uvicorn with what it lacks: answers in JSON to what is no HTTP, and a limit on how slowly a request may come."""

import asyncio
import errno
import json
import os
import socket

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxad.errors import UserError

_SPARE = 256  # connections beside those whose requests are worked on
_GRACE = 10  # seconds that requests may take to end when the server stops


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 stands for any that is free.

    Raises:
      UserError: There is no such address, or somebody else listens there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # a name may also be none that can be encoded
        number = getattr(error, "errno", None) or 0  # those of names are negative, or the system's
        reason = os.strerror(number) if number in errno.errorcode else getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"the server cannot listen on {host} port {port} ({reason}); choose another --port or --host",
            about="--port",
        ) from error


class _Taken(H11Protocol):
    """A connection that ends where a client takes no byte of an answer for `patience` seconds."""

    patience: float
    _flush: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Lets no part of an answer pile up unseen."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that whatever the client has not taken pauses the writing

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting for the client."""
        self._forget_flush()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begins to wait for the client."""
        super().pause_writing()
        self._flush = self.loop.call_later(self.patience, self._check, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Stops waiting: the client has taken what there was."""
        super().resume_writing()
        self._forget_flush()

    def _check(self, before: int) -> None:
        """Ends the connection where the client has taken nothing; closing it would wait for the client."""
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._flush = self.loop.call_later(self.patience, self._check, left)

    def _forget_flush(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None


def protocol(read: float, most: int) -> type[H11Protocol]:
    """A connection, of `most` at a time, that holds the server up for a limited time.

    Every request must have come `read` seconds after its first byte. Of an answer some bytes must be taken in each
    `read` seconds.
    """

    class Timed(_Taken):
        patience = read
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(read, self._end)
            if len(self.connections) > most:
                self._say(503, f"the server has {most} connections already; come again later")

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            theirs = self.conn.their_state
            if theirs is h11.SEND_BODY or (theirs is h11.IDLE and self.conn.trailing_data[0]):
                self._timer = self._timer or self.loop.call_later(read, self._end)
            else:
                self._forget()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _forget(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _end(self) -> None:
            """Ends what has not come in time; while the application reads a body, that is its own affair."""
            self._timer = None
            if self.transport.is_closing():
                return
            if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
                self._say(408, f"the request did not come within {read:g} seconds; send it faster")
            elif self.conn.our_state in (h11.IDLE, h11.DONE):
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # the request has its answer already
                self.transport.close()
                return
            self._say(400, "what came is no valid request of HTTP/1.1; check the client")

        def _say(self, status: int, sentence: str) -> None:
            body = json.dumps({"error": sentence}).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            for event in (
                h11.Response(status_code=status, headers=list(headers.items())),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
            self.transport.close()

    return Timed


def create(app, *, read: float, queue: int) -> uvicorn.Server:
    """A server of an ASGI application, which `run(sockets=[...])` starts; it works on `queue` requests at a time."""
    return uvicorn.Server(
        uvicorn.Config(
            app, http=protocol(read, queue + _SPARE), ws="none", lifespan="off", access_log=False, log_level="warning",
            server_header=False, timeout_graceful_shutdown=_GRACE,
        )
    )  # fmt: skip
