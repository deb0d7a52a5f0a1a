"""Which public scans exist, and how to get them: rules to a cohort file, manifest, download.

>>> from ctfoundry.archive import Rules, load_rules
>>> load_rules("ct-fm").version
14
"""

from ctfoundry.archive.cohort import Cohort, build, read_cohort
from ctfoundry.archive.rules import Rules, load_rules, preset_names

__all__ = ["Cohort", "Rules", "build", "load_rules", "preset_names", "read_cohort"]
