"""Declarations of all metrics, one module per first word of their names."""
