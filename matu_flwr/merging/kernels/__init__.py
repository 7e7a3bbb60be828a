"""How the mathematics of `merging` runs fast: compiled loops for a CPU, Triton programs for a GPU, blocks of torch."""
