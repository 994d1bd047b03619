"""A small vocabulary of word pieces, as a file."""

from pathlib import Path

PIECES = [
    *(
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "b",
        "ab",
        "##b",
        "##c",
        "##ab",
        "##d",
        "-",
        "e",
        "中",
    ),
    *("un", "##aff", "##able", "'"),
]


def pieces_file(folder: Path, pieces: list[str] = PIECES) -> Path:
    """Write the vocabulary to a folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n")
    return path
