"""The fine-tuning study (Zoph et al. 2022, section 4): what helps a sparse model, and its dense twin, on tasks."""
