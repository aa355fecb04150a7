"""Makes tiny-searcher: a language model of 0.8 million parameters with a tokenizer of its own, from scratch.

It learns to read before it learns to search. First it repeats lists of invented names, which teaches it to copy; then
it answers several questions about a piece of a page, and in the end one question from the result of a search that was
made for it. All are taken from fictional worlds that nobody else may use. It has never written a search of its own.

Needs no download; the same seed, machine and number of threads give the same model.

Example: python examples/search/tiny_searcher.py runs/tiny-searcher
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.envs.web_search.local import LocalIndex
from ovd_gym.envs.web_search.world import RELATIONS, Fact, World
from ovd_gym.llm.tiny import learned_tokenizer, save_model, tiny_llama

WORLDS = range(1000, 1016)
"""Seeds of the worlds it reads of; whoever trains or tests it takes others."""
IGNORED = -100
"""Target of a token that is read, but not learned to be written."""

Exercise = list[tuple[str, bool]]
"""Pieces of text in order, each with whether to learn to write it. Invented names cannot be foreseen where they stand
for the first time: to leave them out of the loss makes learning several times faster."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the model and save it as a transformers folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copying", type=int, default=400, help="optimiser steps of 64 lists each")
    parser.add_argument("--reading", type=int, default=600, help="optimiser steps of 16 pieces with questions each")
    parser.add_argument("--recall", type=int, default=600, help="optimiser steps of 32 search results each")
    parser.add_argument("--pages", type=int, default=1000, help="of each world it reads of")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    rng = random.Random(chosen.seed)
    worlds = [World.generate(seed, chosen.pages) for seed in WORLDS]
    reading = [text for world in worlds for text in reading_exercises(world, rng)]
    recall = [text for world in worlds for text in recall_exercises(world)]
    rng.shuffle(reading)
    # Words of the language become a token each, invented names two to four.
    tokenizer = learned_tokenizer(("".join(piece for piece, _ in text) for text in reading[:8000]), vocab_size=1024)
    shape = {"num_hidden_layers": 3, "intermediate_size": 384, "max_position_embeddings": 1024}
    model = tiny_llama(tokenizer, chosen.seed, **shape)
    names = [entity.title for world in worlds for entity in world.entities]
    lists = [copying_exercise(names, rng) for _ in range(64 * max(8, chosen.copying))]
    lessons = [
        *batches([encode(tokenizer, text) for text in lists], 64, chosen.copying, rng),
        *batches([encode(tokenizer, text) for text in reading], 16, chosen.reading, rng),
        *batches([encode(tokenizer, text) for text in recall], 32, chosen.recall, rng),
    ]
    learn(model, lessons)
    save_model(model, tokenizer, chosen.folder)


# What it learns from ------------------------------------------------------------------------------------


def copying_exercise(names: Sequence[str], rng: random.Random) -> Exercise:
    """Two to five names, twice."""
    line = "; ".join(rng.choices(names, k=rng.randint(2, 5))) + "\n"
    return [(line, False), (line, True)]


def reading_exercises(world: World, rng: random.Random) -> Iterator[Exercise]:
    """Of each page with answers: a question, a piece of the page, the answer, and up to four further questions."""
    for page in world.passages():
        piece = cut(page.text, rng)
        facts = [fact for fact in world.base.about(page.id) if RELATIONS[fact.relation].asks and fact.text in piece]
        if facts:
            asked = rng.sample(facts, min(5, len(facts)))
            questions = [question(world, fact, rng) for fact in asked]
            questions[0] += f"[1] {page.title}\n{piece}\n"
            yield [
                part
                for text, fact in zip(questions, asked, strict=True)
                for part in ((f"{text}answer:", False), (f" {fact.text}\n", True))
            ]


def recall_exercises(world: World) -> Iterator[Exercise]:
    """Episodes of one search for the right title, where its result shows the answer; only the answer is learned."""
    index = LocalIndex.in_memory(world.passages())
    tasks = world.tasks(hops=(1,), count=world.size)
    env = SearchEnv(tasks, backend=index, tools=["search"], action_format="line", max_observation_chars=360)
    for task in tasks:
        env.reset(options={"task": task})
        (title,) = cast("list[str]", task.metadata["gold_titles"])
        result = env.step(search := f"search: {title}\n")[0]
        if task.answers[0] in result:
            yield [(f"{task.question}\n{search}{result}\nanswer:", False), (f" {task.answers[0]}\n", True)]


def question(world: World, fact: Fact, rng: random.Random) -> str:
    """A line that asks for the object of ``fact``."""
    return rng.choice(RELATIONS[fact.relation].asks).format(x=world.base.entities[fact.subject].mention) + "\n"


def cut(text: str, rng: random.Random, chars: int = 300) -> str:
    """A piece of ``text`` on one line, from its beginning half of the time."""
    words = text.split()
    start = rng.choice([0, rng.randrange(len(words))])
    return " ".join(words[start:])[:chars].rpartition(" ")[0]


# Tokens -------------------------------------------------------------------------------------------------


def encode(tokenizer: PreTrainedTokenizerFast, exercise: Exercise) -> list[tuple[int, int]]:
    """Tokens, each with its target: itself, or IGNORED."""
    pieces = ((tokenizer(text).input_ids, learned) for text, learned in exercise)
    return [(token, token if learned else IGNORED) for ids, learned in pieces for token in ids]


def batches(
    rows: Sequence[list[tuple[int, int]]], size: int, count: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """``count`` times [B, T] tokens and targets of ``size`` rows of about one length, right-padded."""
    for _ in range(count):
        pool, first = sorted(rng.sample(rows, min(8 * size, len(rows))), key=len), 0
        first = rng.randrange(max(1, len(pool) - size))
        picked = pool[first : first + size]
        padded = [[*row, *[(0, IGNORED)] * (len(picked[-1]) - len(row))] for row in picked]
        tokens_BT, targets_BT = torch.tensor(padded).unbind(dim=-1)
        yield tokens_BT, targets_BT


# Learning -----------------------------------------------------------------------------------------------


def learn(model: LlamaForCausalLM, lessons: Sequence[tuple[Tensor, Tensor]], peak: float = 3e-3) -> None:
    """One optimiser step per lesson; the learning rate rises to ``peak`` for 50 steps, then falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    for step, (tokens_BT, targets_BT) in enumerate(lessons):
        for group in optimizer.param_groups:
            group["lr"] = peak * min((step + 1) / 50, 1 - step / len(lessons))
        logits_BTV = model(input_ids=tokens_BT).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets_BT[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {len(lessons)}: {loss:.3f} nats per token", flush=True)


if __name__ == "__main__":
    main()
