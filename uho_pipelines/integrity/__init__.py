"""Integrity: what the warehouse holds against what an RPC node says, read by another implementation.

What belongs here: the comparison with a source that is not ours. A job draws transactions (`sampling.py`), asks a node
for them (`rpc.py`), reads what the program said in them (`chain.py`), decodes that with anchorpy
(`independent_decoding.py`), and compares every field with the rows (`stored.py`, `comparison.py`); `check.py` does it
for one chunk. Nothing here uses `uho_native`, so that agreement means something.
"""
