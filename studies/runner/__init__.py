"""The runs of a study, each a call of ``train.py``: define, start, resume, judge and summarize them."""
