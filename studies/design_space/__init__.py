"""The design-space study (Zoph et al. 2022, section 5 and appendices): what each choice costs, and what it is worth."""
