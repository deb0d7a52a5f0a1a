"""ctfoundry: the whole life of a computed-tomography foundation model."""

__version__ = "0.1.0.dev0"
