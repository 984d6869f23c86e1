"""The benchmarks of `python -m ames_jax.benchmark`, and the plain PyTorch implementation that they compare with."""
