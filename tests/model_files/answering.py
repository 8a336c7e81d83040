"""A server on localhost that answers each request with the bytes that a test gives it."""

import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

FILE = bytes(range(256)) * 4


def answer(begin=100, end=200, *, status="206 Partial Content", content=None, **headers):
    """An answer with a range of FILE; headers of None are left out, `x_y` is `x-y`."""
    content = FILE[begin:end] if content is None else content
    stated = {
        "content-length": len(content),
        "content-range": f"bytes {begin}-{end - 1}/{len(FILE)}",
        "etag": '"e"',
        "connection": "close",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in stated.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + content


def plain(status, content=b"", **headers):
    """An answer that is no range."""
    return answer(status=status, content=content, content_range=None, **headers)


def redirect(to):
    return plain("302 Found", location=to)


class Server:
    """Answers in turn, the last one again and again.

    An answer is bytes, pieces of them, or a function of the range asked for that gives one.

    Attributes:
      answers: the answers.
      asked: the requests, as text.
      url: of a file there.
    """

    def __init__(self, tls=None):
        self.answers, self.asked, self._tls = [], [], tls
        self._socket = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._socket.getsockname()[1]}/f.safetensors"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self):
        self._socket.close()

    def headers(self, number=-1):
        """The headers of a request."""
        lines = self.asked[number].split("\r\n")[1:]
        return dict(line.split(": ", 1) for line in lines if line)

    def _serve(self):
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._one, args=[connection], daemon=True).start()

    def _one(self, connection):
        with suppress(OSError), ExitStack() as opened:
            opened.enter_context(connection)
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                opened.enter_context(connection)
            said = b""
            while b"\r\n\r\n" not in said:
                received = connection.recv(2**16)
                if not received:
                    return
                said += received
            found = self.answers[min(len(self.asked), len(self.answers) - 1)]
            self.asked.append(said.decode())
            if callable(found):
                begin, last = self.headers()["range"].removeprefix("bytes=").split("-")
                found = found(int(begin), int(last) + 1)
            for piece in [found] if isinstance(found, bytes) else found:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)


@contextmanager
def serving(*answers, tls=None):
    """A server until the end of the block."""
    server = Server(tls)
    server.answers = list(answers)
    try:
        yield server
    finally:
        server.close()


def endless():
    """Zeros for ever, in chunks."""
    yield answer(content=b"", content_length=None, transfer_encoding="chunked")
    while True:
        yield b"10000\r\n" + bytes(2**16) + b"\r\n"


class slow:
    """A byte every now and then."""

    def __iter__(self):
        yield answer(content=b"", content_length=100)
        for byte in FILE[100:200]:
            time.sleep(0.05)
            yield bytes([byte])
