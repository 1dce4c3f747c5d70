"""One micro-VM: its initramfs, its QEMU process, its boot from cold or from a template, its agent."""
