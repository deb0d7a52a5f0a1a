"""``ctfoundry segment``: label maps of many scans."""
