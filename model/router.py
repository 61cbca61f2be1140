"""Public entry to routing: ``model.router.route``. The sparse layer itself is in ``model/moe``."""

from model.moe.router import route

__all__ = ["route"]
