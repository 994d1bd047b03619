"""The texts of Python's `help()` on statements, operators and more, which are included in Python."""

from pathlib import Path
from pydoc_data import topics

from sage.data.fetch import sha256_of


def help_topics() -> dict[str, str]:
    """Return the texts of the splits `train`, `valid` and `test`.

    Of every ten topics in alphabetical order, eight are for training, one for validation and one for testing.
    """
    texts = {"train": "", "valid": "", "test": ""}
    for index, (_, text) in enumerate(sorted(topics.topics.items())):
        # Topics vary in length; these positions give thousands of words for evaluation.
        texts[{5: "test", 6: "valid"}.get(index % 10, "train")] += text
    return texts


def checksums() -> dict[str, str]:
    """Return the sha256 of the file with the topics, by its name."""
    return {"pydoc_data/topics.py": sha256_of(Path(topics.__file__))}
