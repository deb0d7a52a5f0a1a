"""``ctfoundry export``: models for other tools."""
