"""The `hyper` command: the habits of `docker` on micro-VMs.

A thin room: it turns arguments into calls of the daemon's API and answers into text. `main` imports only the module of
the subcommand that is run, and none of the runtime's inside but the client and the log format, so that `hyper ps`
starts quickly.
"""
