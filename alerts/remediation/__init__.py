"""The remediation controller: signals in, actions through hyperd out, every decision audited.

`webhook`, `registry`, `events` and `scanner` (with `feed`, `osv`, `debian`) read what is told, `signals` gives it one
form. `policy`, `ladder`, `policyfile`, `causes` and `guards` decide (pure), `journal` remembers, `hyperd` asks,
`actions`, `evidence` and `following` act, `controller` joins them, `app` is the HTTP face. Nothing here trusts a signal
alone: hyperd must bear it out.
"""
