"""The `hyper` command: the habits of `docker` on micro-VMs.

A thin room: it turns arguments into calls of the daemon's API and answers into text. `main` imports only the module of
the subcommand that is run, and none of the runtime's inside but the client and the log format, so that `hyper ps`
starts quickly. For the same reason none imports `typing` when it runs (`TYPE_CHECKING` is a constant of the module's
own, which type checkers take for true), patterns are compiled when one is needed, and what few calls need is imported
by them. `program` is the process around it.
"""
