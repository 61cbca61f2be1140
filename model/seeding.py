"""Seeds derived from a key, so that a draw depends on what it is for and not on what was drawn before it."""

import hashlib


def seed_of(*key: int | str) -> int:
    """Return the seed of ``key``, in [0, 2**63): the first 8 bytes of the SHA-256 of its parts, joined by ``/``."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
