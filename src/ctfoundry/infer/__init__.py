"""One network over one whole scan in bounded memory."""
