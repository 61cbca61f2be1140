"""The stability study (Zoph et al. 2022, section 3, tables 2-4)."""
