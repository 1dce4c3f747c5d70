"""Alert rules, Alertmanager routes, and the controller that acts on what they say.

`python -m alerts --write` turns the Python definitions into the files that Prometheus and Alertmanager read; every
expression names its metrics through the catalogue. `alerts.remediation` is the daemon behind the webhook.
"""
