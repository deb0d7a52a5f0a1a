"""Pictures and maps of what an embedding sees."""
