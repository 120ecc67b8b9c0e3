"""Studies: many runs that answer one question, planned as data, resumed cell by cell, told in one table.

This room sits above all others but the command line: a cell is a call of :func:`longtail.train`.
"""
