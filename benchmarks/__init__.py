"""Measurements of speed and quality beside peers; each writes its rows into benchmarks/results/*.json."""
