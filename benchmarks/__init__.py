"""Ratios measured side by side in one run: `python -m benchmarks`.

What belongs here: measuring what the project is judged by, against something that anybody can run in the same minute
on the same machine. An absolute number of one machine says nothing about another, so every figure has its neighbour.
"""
