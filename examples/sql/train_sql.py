"""A model made from scratch learns to look things up with SQL: a minute on two cores, nothing is downloaded.

It imitates a demonstrator for a few steps, which teaches it the form, and then tries by itself: arm ``score-reward``,
with a teacher of this file that reads the query. Held-out questions are about tables that nobody has seen.

Example: python examples/sql/train_sql.py runs/sql
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovd_gym import Score, Teacher, View, train
from ovd_gym.llm.tiny import learned_tokenizer, save_model, tiny_llama

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that the world is found by the name it is registered under

from examples.sql.sql_world import ITEMS, QUESTIONS

WORLD = "examples.sql.sql_world"
CONFIG: dict[str, Any] = {
    "env": {"id": f"{WORLD}:Sql-v0", "options": {"size": 4096, "seed": 1, "action_format": "line", "max_turns": 2}},
    "student": {
        "chat": "plain",
        "plain": {"system": "", "user": "{content}\n", "tool": "{content}\n"},
        "max_turn_tokens": 24,
    },
    "learner": {"lora_rank": 0, "micro_batch_tokens": 8192},
    "evaluation": {"episodes": 64, "options": {"size": 64, "seed": 2}},
    "checkpoint_every": 1000,
}
IMITATE = {
    "credit.arm": "imitation",
    "teacher": None,
    "demonstrator.policy": f"{WORLD}:look_up",
    "rollout": {"tasks_per_step": 32, "group_size": 1},
    "learner.learning_rate": 3e-3,
}
TRY = {"rollout": {"tasks_per_step": 8, "group_size": 8}, "learner.learning_rate": 5e-4}


class RightColumn(Teacher):
    """Reads the query beside the question; it never sees the gold answer."""

    def score(self, view: View) -> Score:
        """A step by its query, an attempt by its last."""
        column = "count" if view.question.startswith("How") else "price"
        item = next(item for item in ITEMS if item in view.question)
        query = view.steps[-1].text
        return Score.of(1 + 4 * (f"SELECT {column} " in query) + 4 * (f"'{item}'" in query), query)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the model, let it imitate, then let it try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where model and runs go; must not exist yet")
    parser.add_argument("--imitate", type=int, default=20, help="steps of imitation")
    parser.add_argument("--try", type=int, default=60, dest="tries", help="steps of reinforcement")
    chosen = parser.parse_args(arguments)
    folder: Path = chosen.folder
    make_model(folder / "model")
    settings = {**IMITATE, "steps": chosen.imitate, "run_dir": str(folder / "imitate")}
    warm = train(CONFIG, student=str(folder / "model"), settings=settings)
    settings = {**TRY, "steps": chosen.tries, "run_dir": str(folder / "try")}
    run = train(CONFIG, student=str(warm.path / "model"), teacher=RightColumn(), settings=settings)
    for name, rows in (("imitation", warm.evaluations), ("reinforcement", run.evaluations)):
        for row in rows:
            print(
                f"after {row['step']:>3} steps of {name}: {row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            )


def make_model(folder: Path) -> None:
    """A Llama of two layers, 128 wide, that has learned nothing yet."""
    texts = [text.format(item=item) for pair in QUESTIONS.items() for text in pair for item in ITEMS]
    said = [f"{verb}: {text}\n" for verb in ("sql", "answer") for text in texts]
    tokenizer = learned_tokenizer(said * 4, vocab_size=400)
    save_model(tiny_llama(tokenizer, intermediate_size=384), tokenizer, folder)


if __name__ == "__main__":
    main()
