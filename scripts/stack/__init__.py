"""The stack on one host: a registry, hyperd, the exporter, the remediation, Alertmanager, Prometheus, VictoriaMetrics.

`python -m scripts.stack up|down|status`. What runs is known by files of process id and start time below the run
directory, so `down` ends what `up` started and nothing else.
"""
