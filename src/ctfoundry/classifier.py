"""`Classifier`: an encoder, a head, classes and a threshold. A scan in, probabilities out."""
