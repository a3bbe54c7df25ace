# SPDX-License-Identifier: Apache-2.0
"""A host's serial console: what it has said so far and, on a terminal, a conversation."""

import os
import select
import socket
import sys
import termios
import tty
from .errors import LabError

ESCAPE = b"\x1d"  # Ctrl-]


def last_words(state, host):
    """The end of what the console said, for an error message."""
    try:
        text = (state.directory / f"{host}.console.log").read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(f"  {host} console: {line}" for line in text.splitlines()[-12:])


def show_log(state, host, follow):
    """Prints the console's log; follow goes on until interrupted."""
    path = state.directory / f"{host}.console.log"
    try:
        with open(path, "rb") as f:
            while True:
                data = f.read(65536)
                if data:
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
                elif not follow:
                    return
                else:
                    select.select([], [], [], 0.1)
    except OSError as e:
        raise LabError(f"{host}: no console: {e.strerror}") from e


def converse(state, host):
    """Connects the terminal to the console until Ctrl-] is pressed."""
    show_log(state, host, follow=False)
    print(f"\r\n[{host}: Ctrl-] leaves]\r", file=sys.stderr)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        try:
            s.connect(str(state.directory / f"{host}.console"))
        except OSError as e:
            raise LabError(f"{host}: no console: {e.strerror}") from e
        saved = termios.tcgetattr(0)
        try:
            tty.setraw(0)
            _relay(s)
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _relay(s):
    while True:
        ready, _, _ = select.select([0, s], [], [])
        if s in ready:
            data = s.recv(65536)
            if not data:
                return
            os.write(1, data)
        if 0 in ready:
            data = os.read(0, 1024)
            if not data or ESCAPE in data:
                return
            s.sendall(data)
