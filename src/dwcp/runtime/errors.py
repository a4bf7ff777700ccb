"""Errors of the running system that an operator can act on, and the exit codes they end with.

The class docstring says what such an error means and what to do; the message
says where. The command line and the services print the message alone.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a process tells its caller; `UNKNOWN` is never a success."""

    OK = 0
    FINDINGS = 1
    FAILED = 2
    UNKNOWN = 3
    REFUSED = 4
    USAGE = 64
    INTERRUPTED = 75


class RuntimeFault(Exception):
    """Something outside the program is wrong; the message says what, where, and what to do."""

    exit_code = Exit.FAILED


class ConfigInvalid(RuntimeFault):
    """A configuration file cannot be used: correct the key that the message names."""


class KeyUnusable(RuntimeFault):
    """A key or certificate is missing, damaged or readable by others: restore it, or `chmod 600` it."""


class Contradiction(RuntimeFault):
    """A file disagrees with what this installation was made with: restore it, or start with a new state."""

    exit_code = Exit.REFUSED


class AddressTaken(RuntimeFault):
    """Another process listens there: stop it, or choose another network with `--net 127.x`."""


class NotRunning(RuntimeFault):
    """The platform does not run: start it with `dwcp up`."""

    exit_code = Exit.UNKNOWN


class Interrupted(RuntimeFault):
    """Stopped by the operator; the same command resumes."""

    exit_code = Exit.INTERRUPTED
