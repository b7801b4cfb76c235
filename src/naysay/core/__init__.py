"""Pure functions on tensors: torch and jaxtyping only."""
