"""The other side of each benchmark, written as well as its library allows."""
