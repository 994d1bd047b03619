"""BERT: a bidirectional transformer that classifies texts, from Hugging Face's transformers.

Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", 2019, https://arxiv.org/abs/1810.04805. Install `sage-bench[text]` for it.

    config          layers    width    heads    parameters (vocabulary, classes)
    tiny                 2      128        2      4,386,436 (30,522, 4)
    mini                 4      256        4     11,171,588 (30,522, 4)
    small                4      512        8     28,765,700 (30,522, 4)
    minilm-l6            6      384       12     22,714,756 (30,522, 4)
    base                12      768       12    109,485,316 (30,522, 4), 102,272,262 (21,128, 6)
"""

import importlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

# B = texts in the batch, T = tokens of a text, K = classes

_PAD = 0
_CONFIGS = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8)}
_CONFIGS |= {"minilm-l6": (6, 384, 12), "base": (12, 768, 12), "base-chinese": (12, 768, 12)}

_CHINESE_VOCABULARY = 21_128


class Bert(nn.Module):
    """BERT with a pooler and a linear classifier, on ids of tokens; the id 0 is padding, which is masked.

    Args:
        config: Number of layers, width and number of attention heads; base-chinese is base with the
            vocabulary of BERT base Chinese, whatever smaller one the data set has.
        weights: Folder with `config.json` and `model.safetensors`, as `save_pretrained` of transformers
            writes it; it replaces `config`. If omitted, the weights are random. A classifier of another
            number of classes is initialised at random.
    """

    def __init__(
        self,
        *,
        config: Literal["tiny", "mini", "small", "minilm-l6", "base", "base-chinese"] = "tiny",
        weights: str = "",
        vocab_size: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        transformers = _transformers()
        if weights:
            self.bert = _loaded(transformers, Path(weights).expanduser(), vocab_size, num_classes)
        else:
            layers, width, heads = _CONFIGS[config]
            if config == "base-chinese":
                vocab_size = _chinese_vocabulary(vocab_size)
            self.bert = transformers.BertForSequenceClassification(
                transformers.BertConfig(
                    vocab_size=vocab_size,
                    num_hidden_layers=layers,
                    hidden_size=width,
                    intermediate_size=4 * width,
                    num_attention_heads=heads,
                    num_labels=num_classes,
                    pad_token_id=_PAD,
                )
            )
        self.provenance = f"weights from {Path(weights).name}" if weights else "random weights"
        """What the weights are at the start; the manifest and the report of a run show it."""

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return the logits of the classes, of shape (B, K).

        Raises:
            ValueError: A text has more tokens than the model has positions (512).
        """
        most = self.bert.config.max_position_embeddings
        if ids_BT.shape[1] > most:
            raise ValueError(
                f"the texts have {ids_BT.shape[1]} tokens, and the model has {most} positions: "
                f"set --data.length to at most {most}"
            )
        logits_BK: Tensor = self.bert(input_ids=ids_BT, attention_mask=(ids_BT != _PAD).long()).logits
        return logits_BK


def _chinese_vocabulary(vocab_size: int) -> int:
    """Return the size of the Chinese vocabulary.

    Raises:
        ValueError: That of the data set is larger.
    """
    if vocab_size > _CHINESE_VOCABULARY:
        raise ValueError(
            f"config base-chinese has a vocabulary of {_CHINESE_VOCABULARY:,}, but that of the data set has "
            f"{vocab_size:,} tokens: set --model.config base"
        )
    return _CHINESE_VOCABULARY


def _transformers() -> Any:
    """Import transformers, which takes seconds, only when a model is built."""
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the model bert needs the package {error.name}: pip install 'sage-bench[text]'"
        ) from error


def _loaded(transformers: Any, folder: Path, vocab_size: int, num_classes: int) -> Any:
    """Load the weights of a folder; nothing is fetched and nothing is unpickled.

    Raises:
        ValueError: A file is missing or damaged, or the vocabulary is not that of the data set.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"weights is {folder}, which has no {name}: give a folder that save_pretrained of "
                "transformers wrote; a TensorFlow checkpoint (.ckpt) is not read: convert it by "
                "convert_bert_original_tf_checkpoint_to_pytorch.py of transformers 4, then save_pretrained"
            )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        if torch.get_default_device().type == "meta":  # options are checked, without a data set and memory
            config = transformers.BertConfig.from_pretrained(str(folder), local_files_only=True)
            return transformers.BertForSequenceClassification(config)
        model = transformers.BertForSequenceClassification.from_pretrained(
            str(folder),
            num_labels=num_classes,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # transformers and safetensors raise errors of many kinds for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights is {folder}, which cannot be loaded: {reason}") from error
    if model.config.vocab_size != vocab_size:
        raise ValueError(
            f"weights is {folder}, with a vocabulary of {model.config.vocab_size:,}, but that of the data "
            f"set has {vocab_size:,} tokens: use weights and data of one vocabulary"
        )
    return model.train()


MODEL = Bert
