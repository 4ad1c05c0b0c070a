"""Evaluation metrics from graded samples."""
