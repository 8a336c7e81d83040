"""A proxy in front of a server on localhost that counts bytes at the socket."""

import socket
import threading
from contextlib import contextmanager, suppress


class Proxy:
    """Passes on what comes.

    Attributes:
      received: bytes that the client was sent, with headers.
    """

    def __init__(self, port):
        self.received, self._port, self._lock = 0, port, threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self):
        self._socket.close()

    def _serve(self):
        with suppress(OSError):  # closed
            while True:
                client, _ = self._socket.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, one, other, count):
        with suppress(OSError), one:
            while data := one.recv(2**16):
                if count:
                    with self._lock:
                        self.received += len(data)
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)


@contextmanager
def counting(port):
    """A proxy of a port until the end of the block."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
