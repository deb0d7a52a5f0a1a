"""``ctfoundry serve``: the web app."""
