"""The public entry to routing, ``model.router.route``; the sparse layer lives in ``model/moe``."""

from model.moe.router import route

__all__ = ["route"]
