"""The exporter: puts the collector's snapshots out, as Prometheus text, OpenMetrics, InfluxDB lines, and JSON.

It holds nothing that a restart would lose, but the spool of what InfluxDB has not taken yet.
"""
