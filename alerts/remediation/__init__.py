"""The remediation controller: Alertmanager's webhook in, a redeploy through hyperd out, every decision audited.

`webhook` reads what Alertmanager posts, `policy` decides (pure), `guards` holds back, `journal` remembers, `hyperd`
asks and acts, `controller` joins them, `app` is the HTTP face. Nothing here trusts an alert alone: hyperd must say the
same.
"""
