"""A causal language model taken apart: the decoder gives hidden states, the head gives logits.

Both the sampler and the learner work this way, so that logits exist only where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ovd_gym.errors import ConfigError
from ovd_gym.llm.models import quiet

__all__ = ["Decoder", "Head"]


class Head(nn.Module):
    """Hidden states h to logits ``cap tanh(scale W h / cap)``: some families scale (Cohere, Granite) or cap (Gemma)."""

    def __init__(self, linear: nn.Module, config: Any) -> None:
        super().__init__()
        self.linear = linear
        self.scale = float(getattr(config, "logit_scale", None) or 1.0)
        self.scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., V] logits of hidden states [..., D]."""
        logits = cast(Tensor, self.linear(hidden))
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


class Decoder:
    """Views a transformers causal LM (plain or with peft adapters) as decoder plus head.

    Args:
        model: the language model; its parameters are shared, not copied.

    Raises:
        ConfigError: if the model's logits are not its head applied to its hidden states, scaled or capped as its
            configuration says; checked on a short probe.
    """

    def __init__(self, model: nn.Module) -> None:
        base = cast(Any, model)
        if hasattr(base, "get_base_model"):
            base = base.get_base_model()
        if not hasattr(base, "get_decoder") or not hasattr(base.config, "max_position_embeddings"):
            raise ConfigError(f"{type(base).__name__} is not a decoder-only transformer: it cannot be a student")
        self.model = model.eval()
        self._base: nn.Module = base
        self.config = base.config
        self.head = Head(base.get_output_embeddings(), base.config)
        self._decoder: nn.Module = base.get_decoder()
        self.agrees: Callable[[bool], bool] = bool
        """Whether all processes that hold a shard can do what this one could: they have to make the same passes."""
        self._check(base)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    @property
    def name(self) -> str:
        """Class of the language model."""
        return type(self._base).__name__

    @property
    def dtype(self) -> torch.dtype:
        """What the head computes in."""
        return next(self.head.parameters()).dtype

    @property
    def max_positions(self) -> int:
        """Longest sequence, in tokens, that position encoding and attention are exact for.

        Models with sliding-window or chunked attention are used within one window.
        """
        windows = [getattr(self.config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        return min([int(self.config.max_position_embeddings), *(int(size) for size in windows if size)])

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer blocks, first to last."""
        names = getattr(self._base, "_no_split_modules", None) or ()
        return [module for module in self._decoder.modules() if type(module).__name__ in names]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that require a gradient, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy ``weights`` into the trained parameters; those that are the very same tensors stay."""
        for name, parameter in self.trained.items():
            if weights[name] is not parameter:
                parameter.copy_(weights[name])

    def hidden(self, input_ids_BT: Tensor, **kwargs: Any) -> Tensor:
        """[B, T, D] last hidden states; ``kwargs`` are the transformers decoder's own."""
        output = self._decoder(input_ids=input_ids_BT, **kwargs)
        return cast(Tensor, output.last_hidden_state)

    def attention_mask(self, visible_BQK: Tensor) -> Tensor:
        """[B, 1, Q, K] what a decoder takes for "query q sees key k"."""
        if self.config._attn_implementation != "eager":
            return visible_BQK[:, None]
        lowest = torch.finfo(self.dtype).min  # eager attention adds the mask to the scores
        return torch.zeros_like(visible_BQK, dtype=self.dtype).masked_fill(~visible_BQK, lowest)[:, None]

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within it, LoRA adapters are folded into the weights: sampling costs what it costs without adapters.

        Takes a second copy of the adapted weights for as long; the weights themselves come back bit for bit
        (adding and subtracting the adapters would leave rounding errors behind). In less than float32 nothing is
        folded: rounding would swallow what the adapters have learned.
        """
        layers: list[Any] = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        bases: list[Any] = [layer.get_base_layer() for layer in layers]
        if any(base.weight.dtype != torch.float32 for base in bases):
            yield
            return
        originals = [base.weight.data for base in bases]
        try:
            with torch.no_grad():
                for layer, base in zip(layers, bases, strict=True):
                    delta = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
                    base.weight.data = base.weight.data + delta
            with cast(Any, self.model).disable_adapter() if layers else nullcontext():
                yield
        finally:
            for base, original in zip(bases, originals, strict=True):
                base.weight.data = original

    def twin(self) -> Decoder:
        """The same model with trained parameters of its own. The memory of the frozen ones is shared.

        The two can be used by two threads at a time.
        """
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        return Decoder(deepcopy(self.model, {id(p): nn.Parameter(p.data, requires_grad=False) for p in frozen}))

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Write the model as a transformers checkpoint, LoRA adapters folded into its weights (:meth:`merged`)."""
        with self.merged():
            state = {
                name.replace(".base_layer.", "."): weight
                for name, weight in self._base.state_dict().items()
                if "lora_" not in name
            }
            with quiet():
                cast(Any, self._base).save_pretrained(folder, state_dict=state)

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int]) -> Tensor:
        """[n - 1] log-probabilities of ``ids[1:]``, each after the ids before it."""
        ids_T = torch.tensor(ids, device=self.device)
        logits_TV = self.head(self.hidden(ids_T[None, :-1], use_cache=False)[0]).float()
        return torch.log_softmax(logits_TV, dim=-1).gather(-1, ids_T[1:, None])[:, 0]

    @torch.no_grad()
    def _check(self, base: Any) -> None:
        ids = torch.arange(4, device=self.device)[None]
        expected = base(input_ids=ids, use_cache=False).logits
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.1
        if not torch.allclose(self.head(self.hidden(ids, use_cache=False)), expected, atol=tolerance, rtol=tolerance):
            raise ConfigError(
                f"{type(base).__name__} transforms its logits in a way not known here: it cannot be a student"
            )
