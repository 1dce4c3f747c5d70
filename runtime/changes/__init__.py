"""What happens to a name when its image changes: rollouts, rollbacks, the history of the name, and what is known good.

A change of image makes a new container beside the old one and, if that proves itself, gives it the name and the ports.
Containers are started, stopped and removed by the engine; this room decides when, and writes each step down before it.
"""
