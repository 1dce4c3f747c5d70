"""The demo's stack on one host: a registry, hyperd, the exporter, what stands around them.

`python -m scripts.stack up|show|down|status`. What runs is known by files of process id and start time below the run
directory, so `down` ends what `up` started and nothing else.
"""
