"""What `python -m ames_jax.benchmark` measures, and the plain PyTorch implementation that it is compared with."""
