"""The paper's experiments as commands. Every run is the real ``train.py``, started as a user starts it."""
