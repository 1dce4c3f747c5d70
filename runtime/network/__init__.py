"""The host's side of container networking: one bridge, one tap a VM, two nftables tables.

All that is made here carries the names of the configuration (bridge) or begins with `hyp` (taps); nothing else on
the host is touched.
"""
