"""Mathematics without parameters, one operator a file."""
