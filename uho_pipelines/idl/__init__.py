"""What people do with IDLs by hand: compare two, fetch one from the chain, decode a single payload."""
