"""From what `execute` was given to the record of a batch that is ready to be admitted.

Guarantees: nothing starts here. Every option is checked, and a complaint names it, what was expected and what
came. The commands are read to one past the limit; a bad one becomes a job that failed to start, and only if
none is left that could start is that an error.
"""

from __future__ import annotations

import contextvars
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from arrea_nb._commands import (
    BadCommand,
    Command,
    checked_count,
    checked_cwd,
    checked_env,
    checked_seconds,
    checked_shell,
    checked_text,
    read_commands,
)
from arrea_nb._policy import Policy
from arrea_nb._progress import running
from arrea_nb._records import BatchRecord, JobRecord
from arrea_nb.errors import AllWorkersFailedError, ArreaError
from arrea_nb.workers._shell import SUPPORTED, own_path


class _Default:
    def __repr__(self) -> str:
        return "<from the Leader>"


DEFAULT: Final[Any] = _Default()
"""The value of an option that was not given: the Leader's trait of that name decides."""


def read_batch(
    commands: object,
    *,
    limit: object,
    workers: object,
    timeout: object,
    policy: Policy | Mapping[str, Any] | None,
    name: object,
    shell: object,
    default_shell: str,
    cwd: object,
    env: object,
) -> BatchRecord:
    """Makes the record; the arguments are `execute`'s, with the Leader's defaults in their places.

    Raises:
        TypeError: For an option of the wrong type, or a lone command.
        ValueError: For an option out of its range.
        TooManyCommandsError: If there are more than `limit`.
        AllWorkersFailedError: If not one command could start.
        ArreaError: For a shell command where there are no process groups.
    """
    __tracebackhide__ = True
    most = checked_count("max_commands", limit, least=0)
    at_once = checked_count("workers", workers)
    seconds = checked_seconds("timeout", timeout)
    rules = Policy.of(policy)
    title = checked_text("name", name) or ""
    there = checked_cwd(cwd)
    extra = checked_env(env)
    path = extra["PATH"] if "PATH" in extra else own_path(os.environ.get("PATH", os.defpath))
    runner = None if shell is None else checked_shell(shell, path)
    made, names, written = read_commands(commands, most, cwd=there, path=path)
    _refuse_if_none_can_start(made)
    batch = BatchRecord(
        id=secrets.token_hex(8),
        name=title,
        policy=rules,
        workers=at_once,
        timeout=seconds,
        context=contextvars.copy_context(),
        names=names,
        cwd=there,
    )
    # A batch that a job executes does not print into that job.
    batch.context.run(running.set, None)
    batch.jobs = [JobRecord(batch, at, made[at], written[at]) for at in range(len(made))]
    if any(command.kind == "shell" for command in made):
        if not SUPPORTED:
            raise ArreaError("shell commands need Linux (pidfd_open); here only callables run")
        batch.shell = runner or checked_shell(default_shell, path)
        variables = {**os.environ, **extra, "PATH": path, "PYTHONUNBUFFERED": "1"}
        batch.env = {os.fsencode(key): os.fsencode(value) for key, value in variables.items()}
    return batch


def unknown_option(name: str) -> str:
    """What to say of an option that `execute` does not have."""
    if name == "max_workers":
        return "max_workers: a batch has workers= (at once) and max_commands= (in all)"
    known = "workers, timeout, log, policy, max_commands, name, shell, cwd, env"
    return f"{name}: no such option; expected one of {known}"


def _refuse_if_none_can_start(commands: Sequence[Command]) -> None:
    errors = [command.error for command in commands if isinstance(command, BadCommand)]
    if commands and len(errors) == len(commands):
        raise AllWorkersFailedError(
            f"none of {len(errors)} commands could start; the first: {errors[0]}", len(errors), errors
        )
