"""From a view to the words a model teacher reads: templates, fences, and cuts that show.

Every text that the agent, a tool or a page wrote stands between ``<<<NONCE`` and ``NONCE>>>``, each in fences of its
own, with all reserved markers escaped: nothing inside can close the fence, forge a tool result or give a verdict.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import Prompt
from ovd_gym.sanitize import escape_markers
from ovd_gym.teachers.base import StepText, View

__all__ = ["PREFILL", "Prompts", "draw_nonce", "shorten"]

PREFILL = "SCORE: "
"""What the teacher's reply starts with; the digit comes next."""

_FOLDER = Path(__file__).parent / "prompts"
_FENCE = re.compile(r"<{3,}|>{3,}")


class Prompts:
    """The templates of a teacher: the built-in ones, or those of a folder of one's own laid over them.

    A template ``NAME.j2`` has the blocks ``system`` and ``user``. In it, ``fence(text)`` makes untrusted text inert;
    ``open`` and ``close`` are the fences; ``question``, ``steps``, ``answer``, ``gold`` and ``kind`` are those of the
    :class:`~ovd_gym.teachers.base.View`; ``explained`` says whether reasons are asked for.

    Args:
        folder: templates that replace built-in ones of the same name; None takes the built-in ones.

    Raises:
        ConfigError: no such folder, or a template in it that is not valid.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"prompts: {str(folder)!r} is not a folder with templates such as grade.j2")
        self._folders = [Path(folder), _FOLDER] if folder is not None else [_FOLDER]
        self._environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            loader=jinja2.FileSystemLoader(self._folders),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # what comes out is no HTML; `fence` does the escaping
        )
        for name in self._environment.list_templates(extensions=["j2"]):
            try:
                self._environment.get_template(name)
            except jinja2.TemplateError as error:
                raise ConfigError(f"prompts: template {name}: {error}") from None

    @property
    def hash(self) -> str:
        """12 hex digits that change whenever a template in use does; part of a teacher's recorded name."""
        digest = hashlib.sha256()
        for name in self._environment.list_templates(extensions=["j2"]):
            source, _, _ = self._environment.loader.get_source(self._environment, name)  # type: ignore[union-attr]
            digest.update(f"{name}\0{source}\0".encode())
        return digest.hexdigest()[:12]

    def render(
        self,
        view: View,
        template: str = "grade",
        *,
        prefill: str = PREFILL,
        explained: bool = False,
        nonce: str | None = None,
        reserved: Iterable[str] = (),
        **more: Any,
    ) -> Prompt:
        """The prompt for ``view``.

        Args:
            view: what the teacher may see.
            template: name of the template, without ``.j2``.
            prefill: what the line of the verdict starts with.
            explained: ask for reasons before the verdict.
            nonce: names the fences; None draws a fresh one.
            reserved: further literals to escape, such as the special tokens of the model.
            more: further variables of the template.
        """
        nonce = nonce or draw_nonce()
        first, last = f"<<<{nonce}", f"{nonce}>>>"
        literals = [nonce, *(literal for literal in reserved if literal.strip())]
        loaded = self._environment.get_template(f"{template}.j2")
        context = loaded.new_context(
            {
                "fence": lambda text: f"{first}\n{_inert(text, literals)}\n{last}",
                "open": first,
                "close": last,
                "kind": view.kind,
                "question": view.question,
                "steps": view.steps,
                "answer": view.answer,
                "gold": view.gold,
                "explained": explained,
                **more,
            }
        )
        system, user = (_block(loaded, name, context) for name in ("system", "user"))
        return Prompt(system=system, user=user, prefill=prefill, explained=explained)


def draw_nonce(seed: int | None = None) -> str:
    """16 hex digits that nobody can foresee, or that only who knows ``seed`` can."""
    return secrets.token_hex(8) if seed is None else hashlib.sha256(f"nonce {seed}".encode()).hexdigest()[:16]


def shorten(view: View, limit: int) -> tuple[View, int]:
    """``view`` with the middle of long observations cut out, and how many characters that took.

    Only tool results longer than ``limit`` characters are cut, and a marker says so in place. The question, the
    agent's own words and its answer stay as they are.
    """
    pairs = [_cut(step.observation, limit) for step in view.steps]
    steps = tuple(
        StepText(text=step.text, observation=text, tool=step.tool, arguments=step.arguments)
        for step, (text, _) in zip(view.steps, pairs, strict=True)
    )
    return view.model_copy(update={"steps": steps}), sum(cut for _, cut in pairs)


def _cut(text: str, limit: int) -> tuple[str, int]:
    if len(text) <= limit:
        return text, 0
    cut = len(text) - limit
    head = limit // 2
    return f"{text[:head]}\n[... {cut} characters cut ...]\n{text[head + cut :]}", cut


def _inert(text: str, literals: Iterable[str]) -> str:
    text = escape_markers(text)
    characters = set(text)  # some tokenizers reserve thousands of tokens, all of which begin with "<"
    for literal in literals:
        if literal[0] in characters:
            text = text.replace(literal, f"&#{ord(literal[0])};{literal[1:]}")
    return _FENCE.sub(lambda match: match[0].replace("<", "&lt;").replace(">", "&gt;"), text)


def _block(template: jinja2.Template, name: str, context: jinja2.runtime.Context) -> str:
    return "".join(template.blocks[name](context)).strip()
