"""The round-off study (Zoph et al. 2022, section 3.4): what low precision makes of large router logits."""
