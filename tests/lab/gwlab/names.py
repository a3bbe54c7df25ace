# SPDX-License-Identifier: Apache-2.0
"""Names, addresses and devices of a lab's members: the hosts h1, h2, ... and the driver."""

import re
from .errors import LabError

MAX_HOSTS = 16
DRIVER = "driver"
PREFIX = "10.77.0."
DRIVER_IP = PREFIX + "254"
BRIDGE = "data"


def host_name(text):
    """h3, or its alias C (also c), as h3."""
    match = re.fullmatch(r"h([1-9][0-9]?)", text)
    if match:
        return text
    if re.fullmatch(r"[A-Pa-p]", text):
        return f"h{ord(text.upper()) - ord('A') + 1}"
    raise LabError(f"no such host: {text} (hosts are h1, h2, ... or A, B, ...)")


def member_name(text):
    """A host, or the driver itself."""
    return DRIVER if text == DRIVER else host_name(text)


def number(host):
    return int(host[1:])


def ip(member):
    return DRIVER_IP if member == DRIVER else f"{PREFIX}{number(member)}"


def port(member):
    """The bridge port that a member's data traffic passes."""
    return "drv-port" if member == DRIVER else f"{member}-data"


def data_mac(host):
    return f"02:67:77:00:00:{number(host):02x}"


# The management network: one point-to-point tap a host, no bridge.
def management_tap(host):
    return f"{host}-mgmt"


def management_mac(host):
    return f"02:67:77:00:01:{number(host):02x}"


def management_ip(host):
    return f"10.78.{number(host)}.1"


def management_driver_ip(host):
    return f"10.78.{number(host)}.254"
