"""The version of Hyperpulse."""

VERSION = "0.1.0"
