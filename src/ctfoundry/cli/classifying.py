"""``ctfoundry classify``: findings of many scans."""
