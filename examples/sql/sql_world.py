"""A world of one's own: a question, a table, and the answer is a query: right if it returns the right rows.

What the student writes is run, so it is taken to be hostile.

The connection reads one small database in memory. An authorizer allows ``SELECT`` and what it needs, and nothing else:
no second statement, no file, no extension, no writing. A statement that runs too long or returns too much is cut off
and says so. Every task has a table of its own.

Example: ovd-gym eval examples.sql.sql_world:look_up --env 'examples.sql.sql_world:Sql-v0 action_format=line'
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from ovd_gym import Message, Task, ToolEnv, ToolError, tool
from ovd_gym.agents.scripted import Policy

ITEMS = ("bolts", "nuts", "nails", "gears", "wires", "lamps")
QUESTIONS = {
    "How many {item}?": "SELECT count FROM stock WHERE item = '{item}'",
    "Price of {item}?": "SELECT price FROM stock WHERE item = '{item}'",
}
STEPS = 100_000
"""Instructions of SQLite's machine that a statement may take: a tenth of a second or so."""
ROWS = 20
LENGTH = 10_000
"""Bytes of the longest value or statement."""
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


class Sql(ToolEnv):
    """A table ``stock`` with columns ``item``, ``count`` and ``price``. An answer is worth what its execution gives."""

    def __init__(self, size: int = 64, seed: int = 0, tasks: Sequence[Task] | None = None, **options: Any) -> None:
        super().__init__(make_tasks(size, seed) if tasks is None else tasks, **options)

    def start_episode(self, task: Task) -> None:
        """A new database with the task's table."""
        self.close()
        # An episode's calls may come from any thread, one at a time.
        self._database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._database.execute("CREATE TABLE stock (item TEXT, count INTEGER, price INTEGER)")
        self._database.executemany("INSERT INTO stock VALUES (?, ?, ?)", task.metadata["stock"])  # type: ignore[arg-type]
        self._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LENGTH)
        self._database.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_OK if action in ALLOWED else sqlite3.SQLITE_DENY
        )

    @tool
    def sql(self, query: str) -> str:
        """Try a SELECT statement on the table stock(item, count, price). The answer is to be such a statement, too."""
        rows = self._run(query)
        shown = "\n".join(", ".join(map(str, row)) for row in rows[:ROWS])
        return f"{shown}\n[cut: more than {ROWS} rows]" if len(rows) > ROWS else shown or "no rows"

    def grade(self, task: Task, answer: str) -> float:
        """Whether the answer returns what the gold query does."""
        try:
            return float(self._run(answer) == self._run(task.answers[0]))
        except ToolError:
            return 0.0

    def _run(self, query: str) -> list[tuple[Any, ...]]:
        self._database.set_progress_handler(lambda: 1, STEPS)  # called once after so many instructions: stop
        try:
            return self._database.execute(query).fetchmany(ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise ToolError(f"SQL: {error}") from None

    def close(self) -> None:
        """Forget the database."""
        if database := getattr(self, "_database", None):
            database.close()
        super().close()


def make_tasks(size: int, seed: int) -> list[Task]:
    """``size`` questions, each about a table of its own."""
    rng = random.Random(seed)
    tasks = []
    for number in range(size):
        stock = [[item, rng.randint(1, 9), rng.randint(1, 9)] for item in ITEMS]
        (question, query), item = rng.choice(list(QUESTIONS.items())), rng.choice(ITEMS)
        task = Task(
            id=f"sql-{seed}-{number}",
            question=f"{question.format(item=item)} #{1_000_000 * seed + number}",  # which shop: no two are alike
            answers=(query.format(item=item),),
            metadata={"stock": stock},  # type: ignore[dict-item]
        )
        tasks.append(task)
    return tasks


def look_up(tasks: Sequence[Task]) -> Policy:
    """A demonstrator: tries the right query, then gives it as the answer. It speaks the format "line"."""
    pairs = [(question, query, item) for question, query in QUESTIONS.items() for item in ITEMS]
    queries = {question.format(item=item): query.format(item=item) for question, query, item in pairs}

    def policy(messages: Sequence[Message]) -> str:
        question = next(message.content for message in messages if message.role == "user")
        verb = "answer" if messages[-1].role == "tool" else "sql"
        return f"{verb}: {queries[question.partition(' #')[0]]}\n"

    return policy


if "Sql-v0" not in gym.registry:
    gym.register("Sql-v0", f"{__name__}:Sql")
