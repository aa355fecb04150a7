"""From a view to the words a model teacher reads: templates, fences, and cuts that show.

Every text that the agent, a tool or a page wrote stands between ``<<<NONCE`` and ``NONCE>>>``, each in fences of its
own, with all reserved markers escaped: nothing inside can close the fence, forge a tool result or give a verdict.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

import jinja2

from ovd_gym.records import Message, Record
from ovd_gym.sanitize import escape_markers
from ovd_gym.teachers.base import StepText, View

__all__ = ["PREFILL", "Prompt", "draw_nonce", "render", "shorten", "template_hash"]

PREFILL = "SCORE: "
"""What the teacher's reply starts with; the digit comes next."""

_FOLDER = Path(__file__).parent / "prompts"
_FENCE = re.compile(r"<{3,}|>{3,}")


class Prompt(Record):
    """A rendered view: what stands in the system turn and in the user turn."""

    system: str
    user: str

    @property
    def messages(self) -> tuple[Message, Message]:
        """The two turns of a chat; the reply starts with :data:`PREFILL`."""
        return Message(role="system", content=self.system), Message(role="user", content=self.user)

    @property
    def text(self) -> str:
        """One plain text for a model without a chat template; the digit comes right after it."""
        return f"{self.system}\n\n{self.user}\n\n{PREFILL}"


def draw_nonce(seed: int | None = None) -> str:
    """16 hex digits that nobody can foresee, or that only who knows ``seed`` can."""
    return secrets.token_hex(8) if seed is None else hashlib.sha256(f"nonce {seed}".encode()).hexdigest()[:16]


def render(view: View, *, nonce: str | None = None, reserved: Iterable[str] = ()) -> Prompt:
    """The prompt for ``view``.

    Args:
        view: what the teacher may see.
        nonce: names the fences; None draws a fresh one.
        reserved: further literals to escape, such as the special tokens of the teacher's tokenizer.
    """
    nonce = nonce or draw_nonce()
    first, last = f"<<<{nonce}", f"{nonce}>>>"
    literals = [nonce, *(literal for literal in reserved if literal.strip())]
    template = _templates().get_template(f"{view.kind}.j2")
    context = template.new_context(
        {
            "fence": lambda text: f"{first}\n{_inert(text, literals)}\n{last}",
            "open": first,
            "close": last,
            "question": view.question,
            "steps": view.steps,
            "answer": view.answer,
            "gold": view.gold,
        }
    )
    return Prompt(system=_block(template, "system", context), user=_block(template, "user", context))


def template_hash() -> str:
    """12 hex digits that change whenever a template does; part of a teacher's recorded name."""
    digest = hashlib.sha256()
    for path in sorted(_FOLDER.glob("*.j2")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


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


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # what comes out is no HTML; `fence` does the escaping
    )


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
