"""What the experts of a trained model learn: which tokens the routers send to which expert (Zoph et al. 2022, section 7)."""
