"""Good manners on the live web: one request at a time and not too many of them, and what ``robots.txt`` asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.robotparser import RobotFileParser

from ovd_gym.envs.web_search.addresses import Address
from ovd_gym.envs.web_search.base import ReadOutage
from ovd_gym.errors import ConfigError, ToolError

__all__ = ["Manners", "Pace", "Robots"]

KEPT_HOSTS = 4096
ROBOTS_KEPT_S = 3600.0


@dataclass(frozen=True)
class Manners:
    """How a reader behaves towards servers. For a server of one's own: ``Manners(interval_s=0, robots=False)``.

    Raises :class:`~ovd_gym.errors.ConfigError` for negative times or a user agent that no header can hold.
    """

    interval_s: float = 0.5
    """Between two requests to the same host, whichever threads they come from."""
    max_wait_s: float = 30.0
    """Waiting longer than this for one's turn is an outage."""
    robots: bool = True
    """Read only what ``robots.txt`` allows."""
    user_agent: str = "ovd-gym/0.1 (research on language-model agents; reads single pages)"
    """Its first word up to the slash is the name that ``robots.txt`` may speak of."""

    def __post_init__(self) -> None:
        for name in ("interval_s", "max_wait_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not (self.user_agent.isascii() and self.user_agent.isprintable() and self.user_agent.strip()):
            raise ConfigError(f"user_agent must be a line of printable ASCII, got {self.user_agent!r}")


class Pace:
    """At most one request per host and interval. Thread-safe: turns are handed out in the order they are asked for."""

    def __init__(
        self,
        interval_s: float,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interval_s = interval_s
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._sleep = sleep
        self._free_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def wait(self, host: str) -> float:
        """Wait for a turn at ``host``; returns for how long, in seconds. Raises :class:`ReadOutage` when too long."""
        with self._lock:
            now = self._clock()
            starts = max(now, self._free_at.get(host, now))
            if starts - now > self._max_wait_s:
                raise ReadOutage(f"{host} is asked too often: the next turn is {starts - now:.0f} s away")
            if len(self._free_at) >= KEPT_HOSTS:
                self._free_at = {name: free for name, free in self._free_at.items() if free > now}
            self._free_at[host] = starts + self._interval_s
        if starts > now:
            self._sleep(starts - now)
        return starts - now


class Robots:
    """What ``robots.txt`` files allow, kept for an hour. Thread-safe.

    As RFC 9309 has it: no file, no rules; a file that cannot be had for now, no reading for now.
    """

    def __init__(self, agent: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._agent = agent
        self._clock = clock
        self._rules: dict[str, tuple[float, RobotFileParser]] = {}
        self._lock = threading.Lock()

    def check(self, address: Address, get: Callable[[str], str]) -> None:
        """Raises :class:`~ovd_gym.errors.ToolError` when the site asks not to read ``address``.

        ``get(url)`` is the text of a file, empty if there is none; it raises :class:`ReadOutage` when that is unknown.
        """
        with self._lock:
            expires, rules = self._rules.get(address.origin, (0.0, RobotFileParser()))
        if expires <= self._clock():
            rules = RobotFileParser()
            rules.parse(get(address.origin + "/robots.txt").splitlines())
            with self._lock:
                if len(self._rules) >= KEPT_HOSTS:
                    self._rules.clear()
                self._rules[address.origin] = self._clock() + ROBOTS_KEPT_S, rules
        if not rules.can_fetch(self._agent, address.url):
            raise ToolError(f"{address.url} is refused: the site's robots.txt asks programs not to read it")
