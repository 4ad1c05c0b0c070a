"""Data: sources, tokenisers, chat rendering, packing, and the procedural tasks. No jax here."""
