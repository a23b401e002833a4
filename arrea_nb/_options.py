"""What `execute` takes besides commands, checked, and the settings of a Leader that are its defaults.

Guarantees: a complaint names the option, what was expected and what came, and nothing has started by then.
What a batch was given is kept as it was at that moment, the working directory and the environment among it: a
`BatchOptions` never changes, and `retry_failed` has no other source.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from arrea_nb._foreign import as_float, plain_number, short_repr
from arrea_nb._policy import Policy


class _Default:
    def __repr__(self) -> str:
        return "<from the Leader>"


DEFAULT: Final[Any] = _Default()
"""The value of an option that was not given: the Leader's setting of that name decides."""


@dataclass
class Settings:
    """What can be set for a Leader, as its engine reads it at the moment that it needs it.

    The Leader's traits write here, and have their defaults and their meaning from here.
    """

    workers: int = 4
    timeout: float | None = 30.0
    max_commands: int = 100
    max_workers: int = 100
    cleanup_interval: float = 60.0
    batch_retention: float = 300.0
    keep_batches: int = 20
    grace: float = 2.0
    shell: str = "/bin/sh"
    max_output_bytes: int = 1 << 30
    memory_output_bytes: int = 256 << 10


@dataclass(frozen=True)
class BatchOptions:
    """What `execute` was given, with what it took from the moment and from the Leader's settings.

    Attributes:
        workers: How many jobs run at once, at the most. The batch's own number can be changed later.
        timeout: Seconds for each attempt. None: no limit.
        log: Whether each attempt is written to the logger.
        policy: What happens after a failure.
        max_commands: How many commands it takes.
        name: Shown with the batch.
        shell: What was asked for as `shell=`, found. None: the Leader's setting.
        cwd: Where its commands run.
        env: The whole environment of its commands, but for the ids of each job.
    """

    workers: int = 4
    timeout: float | None = 30.0
    log: bool = False
    policy: Policy = field(default_factory=Policy)
    max_commands: int = 100
    name: str = ""
    shell: str | None = None
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def path(self) -> str:
        """Where its programs are looked up."""
        return self.env.get("PATH", os.defpath)


def read_options(
    settings: Settings, given: Mapping[str, Any], base: Mapping[str, str] | None = None
) -> BatchOptions:
    """The options of `execute`, checked; what is DEFAULT comes from the settings.

    Args:
        settings: The Leader's.
        given: What `execute` was given.
        base: The environment that `env=` adds to. None: the kernel's own.

    Raises:
        TypeError: For an option of the wrong type or name.
        ValueError: For an option out of its range.
    """
    __tracebackhide__ = True  # a user's mistake is shown without the way that it took through here

    def of(name: str) -> Any:
        value = given.get(name, DEFAULT)
        return getattr(settings, name) if value is DEFAULT else value

    for name in given:
        if name not in _NAMES:
            raise TypeError(unknown_option(name))
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise TypeError(f"log: expected True or False, got {log!r}")
    most = checked_count("max_commands", of("max_commands"), least=0)
    workers = checked_count("workers", of("workers"))
    timeout = checked_seconds("timeout", of("timeout"))
    policy = Policy.of(given.get("policy"))
    title = checked_text("name", given.get("name")) or ""
    cwd = checked_cwd(given.get("cwd")) or current_directory()
    env = environment(os.environ if base is None else base, checked_env(given.get("env")))
    shell = given.get("shell")
    found = None if shell is None else checked_shell(shell, env["PATH"])
    return BatchOptions(workers, timeout, log, policy, most, title, found, cwd, env)


_NAMES = ("workers", "timeout", "log", "policy", "max_commands", "name", "shell", "cwd", "env")


def unknown_option(name: str) -> str:
    """What to say of an option that `execute` does not have."""
    if name == "max_workers":
        return "max_workers: a batch has workers= (at once) and max_commands= (in all)"
    return f"{name}: no such option; expected one of {', '.join(_NAMES)}"


def current_directory() -> str:
    """The kernel's working directory.

    Raises:
        ValueError: If it is not there any more.
    """
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise ValueError(
            "cwd: the kernel's working directory is not there any more; "
            "os.chdir() to one that is, or pass cwd="
        ) from None


def environment(base: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """What commands find in theirs: `python` is the notebook's own, and its output unbuffered."""
    path = extra["PATH"] if "PATH" in extra else own_path(base.get("PATH", os.defpath))
    return {**base, **extra, "PATH": path, "PYTHONUNBUFFERED": "1"}


def own_path(path: str) -> str:
    """PATH with the directory of the kernel's own Python first, so that `python` is the notebook's."""
    own = os.path.dirname(sys.executable)
    if path == own or path.startswith(own + os.pathsep):
        return path
    return os.pathsep.join([own, path]) if path else own


def checked_count(name: str, value: object, *, least: int = 1) -> int:
    """A whole number of at least `least`, or TypeError/ValueError naming the option."""
    count = plain_number(value)
    if not isinstance(count, int):
        raise TypeError(f"{name}: expected a whole number of at least {least}, got {short_repr(value)}")
    if count < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {count}")
    return count


def checked_seconds(name: str, value: object) -> float | None:
    """Seconds, or None for no limit (None, 0), or TypeError/ValueError naming the option."""
    if value is None:
        return None
    seconds = plain_number(value)
    if seconds is None:
        hint = "; as a number: 600, not '10m'" if issubclass(type(value), str) else ""
        raise TypeError(f"{name}: expected seconds, or None for no limit, got {short_repr(value)}{hint}")
    if math.isnan(as_float(seconds)) or seconds < 0:
        raise ValueError(f"{name}: expected seconds of at least 0 (0: no limit), got {seconds}")
    seconds = as_float(seconds)
    return None if seconds == 0 or math.isinf(seconds) else seconds


def checked_text(name: str, value: object) -> str | None:
    """A str or None, or TypeError naming the option."""
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{name}: expected a str, got {short_repr(value)}")


def checked_cwd(value: object) -> str | None:
    """A directory that exists, or None for the current one; ValueError/TypeError naming the option."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"cwd: expected a path, got {short_repr(value)}")
    cwd = os.fsdecode(value)
    if "\0" in cwd or not Path(cwd).is_dir():
        raise ValueError(f"cwd: expected a directory, got {cwd!r}, which is not there; make it first")
    return str(Path(cwd).absolute())


def checked_env(value: object) -> dict[str, str]:
    """Variables to add to the environment; TypeError/ValueError naming the option."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"env: expected a mapping from name to value, got {type(value).__name__}")
    env = {}
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str | os.PathLike):
            raise TypeError(
                f"env: expected names and values of type str, got {short_repr(key)}: {type(text).__name__}"
            )
        plain = os.fsdecode(text)
        if not key or "=" in key or "\0" in key or "\0" in plain:
            raise ValueError(f"env: expected a name without '=' and no NUL byte, got {key!r}")
        env[key] = plain
    return env


def checked_shell(value: object, path: str | None) -> str:
    """The path of a shell that takes `-c LINE`; TypeError/ValueError naming the option."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise TypeError(f"shell: expected the name or path of a shell, got {short_repr(value)}")
    found = shutil.which(value, path=path) if value and "\0" not in value else None
    if found is None:
        raise ValueError(
            f"shell: expected a shell such as /bin/sh or bash, got {value!r}, which is not there"
        )
    return found
