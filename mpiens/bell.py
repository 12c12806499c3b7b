"""What wakes a sleeping rank of the same node the moment there is a message for it.

MPI knows no way to wait but to ask again and again, and who asks seldom answers late.
So whoever sends a message to a rank of its own node rings that rank's bell as well, a
datagram socket, on which a rank sleeps together with the files of its runner.  A ring
says nothing and may be lost: a rank looks for messages by itself too, if less often.
"""

from __future__ import annotations

import secrets
import select
import socket
from collections.abc import Mapping
from contextlib import suppress


class Bell:
    """This rank's bell, and where those of the node's other ranks hang."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._others: dict[int, bytes] = {}

    def hang(self) -> bytes:
        """Hang the bell up where others can ring it; return where that is."""
        if self._socket is None:
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            own = socket.socket(socket.AF_UNIX, kind)
            # a name of Linux's own, which needs no folder and goes with the process
            own.bind(b"\0mpiens-" + secrets.token_hex(16).encode())
            self._socket = own
        address: bytes = self._socket.getsockname()
        return address

    def close(self) -> None:
        """Take the bell down."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def know(self, others: Mapping[int, bytes]) -> None:
        """Learn where other ranks' bells hang, by rank; what was known is forgotten."""
        self._others = dict(others)

    def knows(self, rank: int) -> bool:
        """Whether it is known where a rank's bell hangs."""
        return rank in self._others

    def ring(self, rank: int) -> bool:
        """Wake a rank; whether its bell could be reached."""
        if self._socket is None or rank not in self._others:
            return False
        try:
            self._socket.sendto(b"!", self._others[rank])
        except BlockingIOError:  # it has been rung often enough
            return True
        except OSError:
            return False
        return True

    def wait(self, seconds: float, *files: int) -> bool:
        """Sleep until the bell rings or a file can be read, at most so long.

        Return whether it rang: the message may still take some looks to be seen.
        """
        rang = False
        with suppress(OSError, ValueError):
            own = [] if self._socket is None else [self._socket.fileno()]
            ready, _, _ = select.select([*own, *files], [], [], seconds)
            while self._socket is not None and own[0] in ready:
                self._socket.recv(1)  # until BlockingIOError
                rang = True
        return rang
