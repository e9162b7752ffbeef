"""What can be found wrong with a recipe before training, a function for each kind of fault.

A check takes what there is to look at, and returns a :class:`~kd.checks.findings.Finding` for each
thing that it found; `doctor` makes all of them, `fit` those that cost nothing.
"""
