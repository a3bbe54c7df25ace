# SPDX-License-Identifier: Apache-2.0
"""The one exception that a command shows to its user as `lab: text`, without a traceback."""


class LabError(Exception):
    pass
