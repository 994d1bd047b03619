"""Which parameters get weight decay, and which of them Muon and Dion update."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from sage.validate import shown


def decays(parameter: Tensor, decay_norms: bool) -> bool:
    """Whether weight decay applies: not to one-dimensional parameters, unless `decay_norms`.

    These are biases, and scales and shifts of normalisation layers.
    """
    return decay_norms or parameter.dim() > 1


def embeddings(model: nn.Module) -> set[str]:
    """Return the names of the parameters of embedding layers, also if another layer shares them."""
    return _names_of(model, [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)])


def last_linear(model: nn.Module) -> set[str]:
    """Return the names of the parameters of the linear layer that was registered last: the model's head."""
    return _names_of(model, [m for m in model.modules() if isinstance(m, nn.Linear)][-1:])


def hidden_matrices(
    model: nn.Module, *, adamw_names: Sequence[str] | None, optimizer: str = "muon"
) -> set[str]:
    """Return the names of the parameters of Muon and Dion: matrices, but not embeddings and the head.

    Args:
        model: The model.
        adamw_names: Patterns such as `head.*`, of names of parameters that AdamW updates; they replace the
            rule that the head is the linear layer that was registered last.
        optimizer: The name of the optimiser, for messages.

    Raises:
        ValueError: A pattern matches no parameter, or no matrix is left.
    """
    named = dict(model.named_parameters())
    others = embeddings(model)
    if adamw_names is None:
        others |= last_linear(model)
    else:
        for pattern in adamw_names:
            matching = {name for name in named if fnmatchcase(name, pattern)}
            if not matching:
                raise ValueError(
                    f"adamw_names has {pattern!r}, which matches no parameter; the parameters are "
                    f"{shown(', '.join(named), 400)}"
                )
            others |= matching
    matrices = {name for name, p in named.items() if p.dim() == 2 and name not in others}
    if not matrices:
        raise ValueError(
            f"optimizer is {optimizer!r}, but the model has no matrix (2-D parameter) besides embeddings, "
            "the last linear layer and those of --adamw-names: use --optimizer adamw"
        )
    return matrices


def _names_of(model: nn.Module, modules: Sequence[nn.Module]) -> set[str]:
    """Return the names of the parameters that these modules hold themselves."""
    held = {id(p) for module in modules for p in module.parameters(recurse=False)}
    return {name for name, p in model.named_parameters() if id(p) in held}
