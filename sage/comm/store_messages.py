"""Texts that the ranks of one run leave for each other in the store where they meet."""

import hashlib
import hmac
from datetime import timedelta

import torch.distributed as dist


class Board:
    """Texts under names, in a torch store. Nothing that is read here is ever unpickled.

    Anyone who reaches the store's port can list its keys and write values: torch's stores know no passwords.
    So with a secret every key is an HMAC of its name, from which a stranger learns nothing, and every value
    carries an HMAC of itself. A value without the right one counts as absent.

    Args:
        store: A connection that nobody else uses at the same time, for it may block.
        secret: What only the ranks of the run know; "" where there is none, and keys are their names.
        name: What all names begin with.
    """

    def __init__(self, store: dist.Store, *, secret: str = "", name: str = "sage") -> None:
        self.store, self._secret, self._name = store, secret, name

    def within(self, name: str) -> "Board":
        """The board of texts whose names begin with this one's name and another."""
        return Board(self.store, secret=self._secret, name=f"{self._name}/{name}")

    def clone(self) -> "Board":
        """The same board over a connection of its own."""
        return Board(self.store.clone(), secret=self._secret, name=self._name)

    def key(self, name: str) -> str:
        """What a name is called in the store."""
        full = f"{self._name}/{name}"
        return self._mac(full) if self._secret else full

    def group_store(self) -> dist.Store:
        """A store for torch's own groups, whose keys begin with one of ours."""
        return dist.PrefixStore(self.key("group"), self.store)

    def post(self, name: str, text: str) -> None:
        """Leave a text."""
        self.store.set(self.key(name), self._sealed(name, text))

    def post_first(self, name: str, text: str) -> str:
        """Leave a text where there is none yet; returns the text that is there then."""
        held = self.store.compare_set(self.key(name), "", self._sealed(name, text))
        opened = self._opened(name, held)
        return text if opened is None else opened

    def has(self, name: str) -> bool:
        """Whether there is something under the name."""
        return bool(self.store.check([self.key(name)]))

    def read(self, name: str) -> str | None:
        """The text under the name; None where there is none, or one that another run or a stranger wrote."""
        return self._opened(name, self.store.get(self.key(name))) if self.has(name) else None

    def count(self, name: str, amount: int = 1) -> int:
        """Add to a number that begins with 0, and return it."""
        return int(self.store.add(self.key(name), amount))

    def await_one(self, name: str, seconds: float) -> bool:
        """Wait until there is something under the name; False where there is none in so many seconds."""
        try:
            self.store.wait([self.key(name)], timedelta(seconds=seconds))
        except dist.DistStoreError:
            return False
        return True

    def _mac(self, text: str) -> str:
        return hmac.new(self._secret.encode(), text.encode(errors="replace"), hashlib.sha256).hexdigest()[:32]

    def _sealed(self, name: str, text: str) -> str:
        text = text.encode(errors="replace").decode()
        return self._mac(f"{self._name}/{name}\n{text}") + text if self._secret else text

    def _opened(self, name: str, held: bytes) -> str | None:
        text = held.decode(errors="replace")
        if not self._secret:
            return text
        seal, text = text[:32], text[32:]
        return (
            text
            if hmac.compare_digest(seal.encode(), self._mac(f"{self._name}/{name}\n{text}").encode())
            else None
        )
