"""The collector: reads the three views of every container and reconciles them into one snapshot.

It finds containers in the state directory (`runtime.record` is all that it shares with the runtime), asks the host's
kernel, QEMU and the guest agent, and hands out immutable snapshots. It knows nothing of output formats.
"""
