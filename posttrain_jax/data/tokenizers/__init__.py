"""The kinds of vocabulary behind `posttrain_jax.data.tokenizer`, one file each."""
