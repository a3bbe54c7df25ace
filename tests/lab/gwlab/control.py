# SPDX-License-Identifier: Apache-2.0
"""Requests from lab commands to the supervisor: one JSON line each way over a UNIX socket, and a socket's descriptor with it
where the answer is one."""

import json
import socket
from .errors import LabError

REQUEST_MAX = 64 * 1024


def ask(state, request, timeout=60):
    """Sends one request; returns the answer, and the descriptor that came with it or None."""
    state.require()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(timeout)
        try:
            s.connect(str(state.control))
            s.sendall(json.dumps(request).encode() + b"\n")
            data, fds, _, _ = socket.recv_fds(s, REQUEST_MAX, 1)
            while not data.endswith(b"\n"):
                more = s.recv(REQUEST_MAX)
                if not more:
                    break
                data += more
        except OSError as e:
            raise LabError(f"lab {state.name} does not answer: {e}") from e
    if not data:
        raise LabError(f"lab {state.name} ended while it was asked")
    answer = json.loads(data)
    if "error" in answer:
        raise LabError(answer["error"])
    return answer, (fds[0] if fds else None)


def serve(connection, handle):
    """Reads one request from an accepted connection and answers it by handle(request) -> (answer, descriptor or None)."""
    with connection:
        connection.settimeout(5)
        try:
            data = b""
            while not data.endswith(b"\n") and len(data) < REQUEST_MAX:
                more = connection.recv(REQUEST_MAX)
                if not more:
                    return
                data += more
            try:
                answer, fd = handle(json.loads(data))
            except LabError as e:
                answer, fd = {"error": str(e)}, None
            except (OSError, KeyError, TypeError) as e:
                answer, fd = {"error": f"the supervisor failed: {e!r}"}, None
            line = json.dumps(answer).encode() + b"\n"
            if fd is None:
                connection.sendall(line)
            else:
                with socket.socket(fileno=fd):
                    socket.send_fds(connection, [line], [fd])
        except (OSError, ValueError):
            pass
