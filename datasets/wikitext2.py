"""WikiText-2: 2,088,628 tokens of good and featured Wikipedia articles."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from sage.data.fetch import download, preparing, unpack
from sage.data.text import Positive, Split, Tokens, encode, read


class WikiText2(Tokens):
    """WikiText-2, from "Pointer Sentinel Mixture Models" (Merity et al., 2017).

    https://arxiv.org/abs/1609.07843. Split at white space and with `<eos>`, it has 2,088,628 tokens for
    training, 217,646 for validation and 245,569 for testing, and a lower-case vocabulary of 28,913 tokens.
    Tokenized by spaCy 3.8, the vocabulary has 28,869 tokens, as in SAGE's published LSTM with 28,949,319
    parameters. Both vocabularies include torchtext's `<pad>`.
    """

    urls: ClassVar[Sequence[str]] = (
        "https://wikitext.smerity.com/wikitext-2-v1.zip",
        "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
    )
    archive_sum: ClassVar[str] = "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c"
    sums: ClassVar[Mapping[str, str]] = {
        "wiki.train.tokens": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
        "wiki.valid.tokens": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        "wiki.test.tokens": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    }

    def __init__(
        self,
        root: Path,
        *,
        tokenizer: Literal["split", "spacy"] = "spacy",
        bptt: Positive = 30,
        eval_batch_size: Positive = 10,
        evaluate_on: Split = "test",
        limit_train: Positive | None = None,
        limit_test: Positive | None = None,
    ) -> None:
        """Read the text under `root`, at `wikitext-2/wiki.train.tokens` or `wiki.train.tokens`.

        Args:
            tokenizer: The tokenizer; `split` keeps the tokens of the files, SAGE's authors used `spacy`.
            bptt: Tokens per row of a batch: the length of truncated backpropagation through time.
            eval_batch_size: Number of rows that the evaluated split is cut into, over all ranks.
            evaluate_on: The split to evaluate.
            limit_train: Train only on this number of tokens, the first ones.
            limit_test: Evaluate only on this number of tokens, the first ones.
        """
        super().__init__(
            encode(self._texts(root), root, tokenizer=tokenizer, pad=True),
            checksums=dict(self.sums),
            bptt=bptt,
            eval_batch_size=eval_batch_size,
            evaluate_on=evaluate_on,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Download, unpack and verify the files, unless they exist, and numericalise their text."""
        with preparing(root, "wikitext-2", is_there=partial(cls._texts, root)) as is_missing:
            if is_missing:
                archive = root / "wikitext-2" / "wikitext-2-v1.zip"
                # The archive contains the folder wikitext-2.
                unpack(download(cls.urls, archive, sha256=cls.archive_sum), root)
        cls(root)

    @classmethod
    def _texts(cls, root: Path) -> dict[str, str]:
        return read(root, "wikitext-2", cls.sums, dataset="wikitext2")


DATASET = WikiText2
