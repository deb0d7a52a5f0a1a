"""A text tower: a transformer of the `transformers` library, pooled to one vector a text.

FlexiCT's is Qwen3-Embedding-0.6B, pooled at the last token (reference, 2.4). Any other encoder of the library does too, such as
a BERT pooled by the mean. Nothing is fetched: configuration, weights and tokenizer come from a local folder or from a card.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from ctfoundry.errors import ContractError, UsageError, WeightsError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor

Pooling = Literal["last", "mean"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""What a folder must (the first) and may hold beside its weights."""

QWEN3_EMBEDDING: Mapping[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151669,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
"""The published configuration of Qwen3-Embedding-0.6B: 595,776,512 parameters."""


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UsageError("the text side needs transformers", do="pip install 'ctfoundry[text]'") from error
    return transformers


class TextTower(nn.Module):
    """The transformer that `config` describes (a ``config.json`` of the library), with random weights, and a pooling.

    Its weights are named ``backbone.*``. A linear ``proj`` follows where `width` differs from the transformer's.

    Parameters
    ----------
    config : with ``model_type``; values that are missing are the library's defaults for that type.
    pooling : "last": the last attended token, wherever the padding is; "mean": the mean of all attended ones.
    width : of the result; None: the transformer's own.
    """

    def __init__(self, config: Mapping[str, Any], pooling: Pooling = "last", width: int | None = None) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ContractError(f"pooling is one of {get_args(Pooling)}, not {pooling!r}")
        library, data = _transformers(), dict(config)
        try:
            settings = library.AutoConfig.for_model(data.pop("model_type", ""), **data)
        except ValueError as error:
            raise ContractError(f"no text tower: {str(error).splitlines()[0]}") from error
        self.pooling = pooling
        self.backbone = library.AutoModel.from_config(settings, attn_implementation="sdpa", dtype=torch.float32)
        own = int(settings.hidden_size)
        self.width = own if width is None else width
        self.longest = int(settings.max_position_embeddings)
        self.proj = nn.Identity() if self.width == own else nn.Linear(own, self.width, bias=False)

    def forward(self, ids: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b k"]:
        """One vector a text, not normalised. Padding may stand on either side; it changes nothing."""
        if ids.shape != mask.shape or ids.ndim != 2 or not bool(mask.any(1).all()):
            raise ContractError(
                f"tokens {tuple(ids.shape)} and mask {tuple(mask.shape)} are no texts of one token or more"
            )
        # positions count attended tokens, so that a text's place in the padding does not matter
        places = (mask.long().cumsum(1) - 1).clamp_min(0)
        hidden = self.backbone(input_ids=ids, attention_mask=mask.long(), position_ids=places).last_hidden_state
        if self.pooling == "mean":
            weight = mask[..., None].to(hidden.dtype)
            return self.proj((hidden * weight).sum(1) / weight.sum(1))
        last = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).amax(1)
        return self.proj(hidden[torch.arange(len(hidden), device=hidden.device), last])

    def restore_buffers(self) -> None:
        """Set what no file holds (tables of positions) anew: it is lost where a network is made without memory and then loaded.

        The public trainer forgets this and computes with whatever the memory held (reference, 9.2).
        """
        library, small = _transformers(), copy.deepcopy(self.backbone.config)
        small.num_hidden_layers, small.vocab_size = 1, 2  # none of it depends on them
        kept = self.backbone.state_dict()
        with torch.device("cpu"):
            twin = dict(library.AutoModel.from_config(small, dtype=torch.float32).named_buffers())
        for name, old in list(self.backbone.named_buffers()):
            if name not in kept:
                place, _, leaf = name.rpartition(".")
                self.backbone.get_submodule(place).register_buffer(leaf, twin[name].to(old.device), persistent=False)

    @classmethod
    def of_folder(cls, folder: Path, pooling: Pooling = "last") -> TextTower:
        """A tower with the weights of a local folder (``config.json``, ``model.safetensors``), loaded strictly."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        tower = cls(read_config(folder), pooling)
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise WeightsError("no weights there", where=weights, do="only safetensors are read; pickles are not")
        try:
            state = load_file(weights)
        except SafetensorError as error:
            raise WeightsError(f"is no whole safetensors file: {error}", where=weights) from error
        # some files keep the library's prefix, buffers of positions, or a head that pooling replaces
        names = tower.backbone.state_dict()
        found = {name.removeprefix("model."): value for name, value in state.items()}
        missing, wrong = (
            sorted(names.keys() - found.keys()),
            sorted(found.keys() - names.keys() - {"embeddings.position_ids"}),
        )
        shapes = [n for n in names.keys() & found.keys() if names[n].shape != found[n].shape]
        if missing or wrong or shapes:
            raise WeightsError(
                f"the weights do not fit: {len(missing)} missing {missing[:3]}, {len(wrong)} unexpected {wrong[:3]}, "
                f"{len(shapes)} of another shape {sorted(shapes)[:3]}",
                where=weights,
            )
        tower.backbone.load_state_dict({name: found[name] for name in names})
        return tower.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder, as data."""
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"no readable configuration: {error}", where=path) from error
    if not isinstance(data, dict) or "model_type" not in data:
        raise WeightsError("is no configuration of a transformer: it names no model_type", where=path)
    return data


class Tokenizer:
    """Texts to tokens, by the ``tokenizer.json`` of a local folder; padded on the left, as Qwen3-Embedding wants it.

    Parameters
    ----------
    folder : with `TOKENIZER_FILES`.
    longest : tokens after which a text is cut; `cut` counts how many were.
    """

    def __init__(self, folder: Path, longest: int = 8192) -> None:
        try:
            from tokenizers import Tokenizer as Fast
        except ImportError as error:
            raise UsageError("the text side needs tokenizers", do="pip install 'ctfoundry[text]'") from error
        path = folder / TOKENIZER_FILES[0]
        if not path.is_file():
            raise WeightsError("no tokenizer there", where=path)
        try:
            self._fast = Fast.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception for what it cannot read
            raise WeightsError(f"is no tokenizer: {error}", where=path) from error
        pad = _pad_token(folder)
        place = None if pad is None else self._fast.token_to_id(pad)
        self._fast.no_padding()
        self._fast.no_truncation()
        self.pad, self.longest, self.cut = place or 0, longest, 0
        self._added = self._fast.num_special_tokens_to_add(is_pair=False)

    def __call__(self, texts: Sequence[str]) -> tuple[Int64[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """(ids, mask) of some texts; the tokens that the tokenizer adds at the end survive a cut."""
        if not texts:
            raise ContractError("no texts")
        rows = []
        for text in texts:
            row = self._fast.encode(text).ids
            if len(row) > self.longest:
                self.cut += 1
                self._fast.enable_truncation(self.longest)
                row = self._fast.encode(text).ids
                self._fast.no_truncation()
            rows.append(row or [self.pad])
        most = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (most - len(row)) + row for row in rows])
        return ids, torch.tensor([[False] * (most - len(row)) + [True] * len(row) for row in rows])


def _pad_token(folder: Path) -> str | None:
    for name in TOKENIZER_FILES[1:]:
        try:
            token = json.loads((folder / name).read_text()).get("pad_token")
        except (OSError, ValueError, AttributeError):
            continue
        if token is not None:
            return str(token["content"]) if isinstance(token, dict) else str(token)
    return None
