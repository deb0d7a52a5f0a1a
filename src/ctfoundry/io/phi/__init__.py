"""What in a folder may tell whose scans these are: elements of headers, texts, dates, names of files, letters in pictures.

`survey` walks a tree and lists *findings*, each one element or one kind of place with the values that stand there. It says what it
saw, never that a folder is clean: nobody reads letters burned into pixels here, and a name that looks like a word is not known
for one. Values are private; `masked` shows the first letter and the length.
"""

from ctfoundry.io.phi.notes import GROUPS, Finding, masked
from ctfoundry.io.phi.survey import Survey, survey
from ctfoundry.io.phi.texts import tidy

__all__ = ["GROUPS", "Finding", "Survey", "masked", "survey", "tidy"]
