"""Many processes and many machines: torch.distributed and Ray."""
