"""Text messages between the ranks of one run, in their rendezvous store."""

import hashlib
import hmac
from datetime import timedelta

import torch.distributed as dist


class StoreMessages:
    """Texts by name in a torch store. Values that are read are never unpickled.

    Any process that can connect to the store's port can list its keys and write values, since torch's stores
    have no authentication. Therefore, with a secret, every key is an HMAC of its name, and every value begins
    with an HMAC of itself. A value with a wrong HMAC counts as absent.

    Args:
        store: A connection without other concurrent users, since calls may block.
        secret: The secret that the ranks of the run share; "": none, and the keys are the plain names.
        name: Prefix of all names.
    """

    def __init__(self, store: dist.Store, *, secret: str = "", name: str = "sage") -> None:
        self.store, self._secret, self._name = store, secret, name

    def within(self, name: str) -> "StoreMessages":
        """Return messages whose names have the prefix of these, followed by `name`."""
        return StoreMessages(self.store, secret=self._secret, name=f"{self._name}/{name}")

    def clone(self) -> "StoreMessages":
        """Return access to the same messages over a new connection."""
        return StoreMessages(self.store.clone(), secret=self._secret, name=self._name)

    def key(self, name: str) -> str:
        """Return the store's key for a name."""
        full = f"{self._name}/{name}"
        return self._mac(full) if self._secret else full

    def group_store(self) -> dist.Store:
        """Return a store for torch's process groups, whose keys have the key of `group` as prefix."""
        return dist.PrefixStore(self.key("group"), self.store)

    def post(self, name: str, text: str) -> None:
        """Write a text."""
        self.store.set(self.key(name), self._sealed(name, text))

    def post_first(self, name: str, text: str) -> str:
        """Write a text if the name has none yet; return the text that is then stored."""
        stored = self.store.compare_set(self.key(name), "", self._sealed(name, text))
        opened = self._opened(name, stored)
        return text if opened is None else opened

    def has(self, name: str) -> bool:
        """Whether the name has a value."""
        return bool(self.store.check([self.key(name)]))

    def read(self, name: str) -> str | None:
        """Return the text of a name; None if there is none, or if its HMAC is wrong (written by others)."""
        return self._opened(name, self.store.get(self.key(name))) if self.has(name) else None

    def count(self, name: str, amount: int = 1) -> int:
        """Add to a counter that starts at 0, and return its value."""
        return int(self.store.add(self.key(name), amount))

    def await_one(self, name: str, seconds: float) -> bool:
        """Wait until the name has a value; return False if it has none after `seconds`."""
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

    def _opened(self, name: str, stored: bytes) -> str | None:
        text = stored.decode(errors="replace")
        if not self._secret:
            return text
        seal, text = text[:32], text[32:]
        return (
            text
            if hmac.compare_digest(seal.encode(), self._mac(f"{self._name}/{name}\n{text}").encode())
            else None
        )
