"""What a configuration needs on a number of GPUs, before any is rented: pure functions that build no model.

Imports neither torch nor DeepSpeed: the largest model is planned in a second.
"""
