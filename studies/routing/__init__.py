"""What the experts of a trained model learn: which token goes to which expert (Zoph et al. 2022, section 7)."""
