"""Losses: `loss(out, batch, *, hyper-parameters) -> (scalar, metrics)`, one file each.

A loss is a weighted sum over tokens, `sum(batch.weight_BT * per_token)`: the weights hold the
normalisation (losses/common.py, `aggregation_weights`), so that microbatches simply add up.
Metrics are weighted sums too, and add up; those named `max/...` are maxima.
"""
