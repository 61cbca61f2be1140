"""How checkpoints keep the optimizer's state: one interface, an implementation per kind of state."""
