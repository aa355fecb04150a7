"""Token sequences that begin alike, computed together: what they share is read once.

The prompts for all steps of one attempt repeat its history. Here they become the paths of a tree, and the tree's
tokens one row: each stands at the position its path gives it and attends to its ancestors and itself alone, so that
every path is computed as if it were alone. Three prompts of 3, 3 and 2 tokens cost 5::

    a b c        node      0 1 2 3 4        visible   0 1 2 3 4
    a b d   ->   token     a b c d e           c (2)  x x x . .
    a e          position  0 1 2 2 1           d (3)  x x . x .
                                               e (4)  x . . . x

Shapes: ``B`` sequences, ``N`` nodes of a pack, ``M`` nodes whose output is wanted, ``V`` vocabulary, ``D`` hidden size.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Pack", "PackedModel", "pack"]

FAMILIES = {
    "llama": "full", "gemma": "full", "granite": "full", "olmo2": "full",
    "mistral": "window", "phi3": "window",
    "qwen2": "layers", "qwen3": "layers", "gemma2": "layers", "gemma3_text": "layers", "smollm3": "layers",
    "olmo3": "layers",
}  # fmt: skip
"""Kinds of models known to take a mask of one's own, and where they use a sliding window: in no layer, in all of them,
or in those that ``layer_types`` names. Models of other kinds read every sequence by itself."""
_MAX_OUTPUTS = 512
"""Nodes of a pack whose logits are held at once; a sequence that wants more gets a pack to itself."""
_LENGTH_DEPENDENT = {"dynamic", "longrope"}
"""Rotary embeddings that depend on the longest sequence of a pass."""


@dataclass
class Pack:
    """Sequences that are computed together."""

    rows: list[int] = field(default_factory=list)
    """[B] which of the given sequences these are."""
    paths: list[list[int]] = field(default_factory=list)
    """[B] nodes of each sequence, in order; they increase."""
    ids: list[int] = field(default_factory=list)
    """[N] token of each node."""
    positions: list[int] = field(default_factory=list)
    """[N] place of each node in the sequences that go through it, from 0."""

    def add(self, row: int, sequence: Sequence[int], shared: int) -> None:
        """Append a sequence whose first ``shared`` tokens are those of the one added before it."""
        fresh = range(len(self.ids), len(self.ids) + len(sequence) - shared)
        self.rows.append(row)
        self.paths.append([*(self.paths[-1][:shared] if self.paths else ()), *fresh])
        self.ids += sequence[shared:]
        self.positions += range(shared, len(sequence))

    @property
    def is_chain(self) -> bool:
        """Whether every sequence is a prefix of the last one: then there is nothing to keep apart."""
        return len(self.paths[-1]) == len(self.ids)

    def visible(self) -> Tensor:
        """[N, N] bool: row ``i`` marks the nodes that node ``i`` attends to."""
        visible = torch.zeros(len(self.ids), len(self.ids), dtype=torch.bool)
        end = 0
        for path in self.paths:
            shared, start = bisect_left(path, end), end
            end += len(path) - shared
            visible[start:end, path[:shared]] = True
            visible[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril_()
        return visible


def pack(sequences: Sequence[Sequence[int]], budget: int, outputs: Sequence[int] | None = None) -> list[Pack]:
    """``sequences`` in packs of at most ``budget`` tokens, what neighbours share counted once.

    Args:
        sequences: [B] non-empty token sequences; equal ones, and ones that begin others, are welcome.
        budget: tokens of a pack. A longer sequence is a pack of its own, and with 0 every distinct one is.
        outputs: [B] how many nodes of each sequence logits are wanted of; None stands for one.

    Raises:
        ValueError: an empty sequence.
    """
    if not all(len(sequence) for sequence in sequences):
        raise ValueError("an empty token sequence: there is nothing to predict from")
    packs: list[Pack] = []
    wanted = 0
    before: Sequence[int] = ()
    for row in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        sequence, count = sequences[row], outputs[row] if outputs else 1
        shared = _shared(before, sequence)
        grown = len(packs[-1].ids) + len(sequence) - shared if packs else 0
        same = shared == len(sequence) == len(before)
        if not packs or (not same and grown > budget) or wanted + count > _MAX_OUTPUTS:
            packs.append(Pack())
            shared, wanted = 0, 0
        packs[-1].add(row, sequence, shared)
        wanted += count
        before = sequence
    return packs


class PackedModel:
    """A transformers causal language model that reads shared prefixes once.

    Packed results equal those of separate passes up to rounding. Where that is not known of a kind of model
    (:data:`FAMILIES`), cannot be (flash attention, rotary embeddings that depend on length), or fails on a small
    example tried here, every sequence is read by itself; :attr:`separate` then says why.

    Args:
        model: the language model, plain or with peft adapters; it is put into eval mode, its parameters are shared.
        batch_tokens: tokens of one forward pass. Attention costs the square of it.
    """

    def __init__(self, model: nn.Module, batch_tokens: int = 4096) -> None:
        base: Any = model.eval()
        self._model: Any = base.get_base_model() if hasattr(base, "get_base_model") else base
        self._batch_tokens = batch_tokens
        accepted = inspect.signature(self._model.forward).parameters
        self._takes = {name for name in ("use_cache", "logits_to_keep") if name in accepted}
        self.tokens = 0
        """Tokens processed so far, shared ones once a pack."""
        self.separate: str | None = _obstacle(self._model.config) or self._difference()
        """Why every sequence is read by itself; None when they are packed."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return torch.device(self._model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(iter(self._model.parameters()), torch.zeros(0)).dtype

    def last_hidden(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[B, D] float32 on the CPU: the hidden state, after the final norm, of each sequence's last token."""
        rows: dict[int, Tensor] = {}
        for each in self._packs(sequences):
            rows |= zip(each.rows, self._hidden(each, [path[-1] for path in each.paths]).cpu(), strict=True)
        return _stacked(rows, self._model.config.hidden_size)

    def next_token_logprobs(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> Tensor:
        """[B, len(tokens)] float32 on the CPU, nats: log-probabilities of ``tokens`` as each sequence's next one."""
        rows: dict[int, Tensor] = {}
        for each in self._packs(sequences):
            logprobs_MV = self._logits(each, [path[-1] for path in each.paths]).log_softmax(-1)
            rows |= zip(each.rows, logprobs_MV[:, list(tokens)].cpu(), strict=True)
        return _stacked(rows, len(tokens))

    def token_logprobs(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Tensor]:
        """[B] tensors, float32 on the CPU, nats: the log-probability of each token of ``sequence[start:]``.

        Raises:
            ValueError: a start of 0 (nothing comes before the first token), or beyond the end.
        """
        if any(not 0 < start <= len(each) for start, each in zip(starts, sequences, strict=True)):
            raise ValueError("a start has to lie in [1, length of its sequence]")
        rows: dict[int, Tensor] = {}
        for each in self._packs(sequences, [len(s) - start for start, s in zip(starts, sequences, strict=True)]):
            spans = [path[starts[row] - 1 :] for row, path in zip(each.rows, each.paths, strict=True)]
            sources = [node for span in spans for node in span[:-1]]
            targets = torch.tensor([each.ids[node] for span in spans for node in span[1:]], dtype=torch.long)
            logprobs_MV = self._logits(each, sources).log_softmax(-1)
            chosen = logprobs_MV.gather(1, targets.to(self.device)[:, None])[:, 0].cpu()
            rows |= zip(each.rows, torch.split(chosen, [len(span) - 1 for span in spans]), strict=True)
        return [rows[i] for i in range(len(sequences))]

    # One forward pass -----------------------------------------------------------------------------------

    def _packs(self, sequences: Sequence[Sequence[int]], outputs: Sequence[int] | None = None) -> Iterator[Pack]:
        for each in pack(sequences, 0 if self.separate else self._batch_tokens, outputs):
            self.tokens += len(each.ids)
            yield each

    @torch.no_grad()
    def _logits(self, each: Pack, nodes: Sequence[int]) -> Tensor:
        """[M, V] float32."""
        kept = torch.tensor(nodes, dtype=torch.long, device=self.device)
        options: dict[str, Any] = {"use_cache": False, "logits_to_keep": kept}
        inputs = self._inputs(each) | {name: options[name] for name in self._takes}
        logits: Tensor = self._model(**inputs).logits[0]
        return (logits if "logits_to_keep" in self._takes else logits[kept]).float()

    @torch.no_grad()
    def _hidden(self, each: Pack, nodes: Sequence[int]) -> Tensor:
        """[M, D] float32."""
        output = self._model.get_decoder()(**self._inputs(each), use_cache=False)
        states: Tensor = output.last_hidden_state[0, list(nodes)]
        return states.float()

    def _inputs(self, each: Pack) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": torch.tensor([each.ids], device=self.device)}
        if each.is_chain:  # plain causal attention, which has faster kernels
            return inputs
        positions = torch.tensor(each.positions, device=self.device)
        return inputs | {"position_ids": positions[None], "attention_mask": self._mask(each, positions)}

    def _mask(self, each: Pack, positions: Tensor) -> Tensor | Mapping[str, Tensor]:
        """[1, 1, N, N], or one such mask for each kind of layer."""
        config = self._model.config
        full = each.visible().to(self.device)
        kind, window = FAMILIES[config.model_type], getattr(config, "sliding_window", None)
        near = full & (positions[:, None] - positions < window) if window else full
        if kind == "layers":
            return {"full_attention": self._as_taken(full), "sliding_attention": self._as_taken(near)}
        return self._as_taken(near if kind == "window" else full)

    def _as_taken(self, visible: Tensor) -> Tensor:
        """Eager attention adds the mask to its scores; the fused kernels take it as a boolean."""
        if self._model.config._attn_implementation == "eager":
            lowest = torch.finfo(self.dtype).min
            visible = torch.zeros_like(visible, dtype=self.dtype).masked_fill(~visible, lowest)
        return visible[None, None]

    # Does it hold for this model? -----------------------------------------------------------------------

    def _difference(self) -> str | None:
        """How packed logits differ from separate ones on a small example; None if they do not."""
        sequences = [[3, 1, 4, 1, 5], [3, 1, 4, 2], [3, 1, 9, 2, 6, 5], [2, 7], [3, 1]]
        (together,) = pack(sequences, budget=100)
        logits = self._logits(together, [path[-1] for path in together.paths])
        alone = torch.cat([self._logits(each, [len(each.ids) - 1]) for each in pack(sequences, budget=0)])
        error = float((logits - alone).norm() / alone.norm())
        if error <= (1e-4 if self.dtype == torch.float32 else 0.05):
            return None
        return f"packed logits of this {self._model.config.model_type} model differ from separate ones by {error:.2g}"


def _obstacle(config: Any) -> str | None:
    """Why models with this configuration cannot be packed; None if they can."""
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        return f"packing is not known to hold for models of kind {kind!r}"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attention {config._attn_implementation!r} takes no mask of one's own: load the model with 'sdpa'"
    if found := _LENGTH_DEPENDENT & set(_rope_types(getattr(config, "rope_parameters", None))):
        return f"rotary embeddings of type {found.pop()!r} depend on the longest sequence of a pass"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    return None


def _rope_types(parameters: Any) -> Iterator[str]:
    if isinstance(parameters, Mapping):
        for name, value in parameters.items():
            yield from [value] if name == "rope_type" else _rope_types(value)


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading tokens that both have."""
    ends = min(len(left), len(right))
    return next((i for i in range(ends) if left[i] != right[i]), ends)


def _stacked(rows: Mapping[int, Tensor], width: int) -> Tensor:
    return torch.stack([rows[i] for i in range(len(rows))]) if rows else torch.zeros(0, width)
