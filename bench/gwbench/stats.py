# SPDX-License-Identifier: Apache-2.0
"""Medians and spreads of repeated measurements, and ratios of paired ones."""

from statistics import median


def summary(values):
    """Median with the lowest and highest value: {"median", "min", "max", "n"}."""
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3), "n": len(values)}


def paired_ratio(ours, theirs):
    """Median of the ratios of pairs that were measured one right after the other."""
    return round(median(a / b for a, b in zip(ours, theirs) if b), 3)
