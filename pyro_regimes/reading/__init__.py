"""Reads tables of returns or of prices in the formats of common data vendors.

A file is read in five steps, one module each: its bytes (:mod:`.source`), a table of raw columns
(:mod:`.text`, :mod:`.frames`), which columns are dates and which are series (:mod:`.series`), the
dates (:mod:`.dates`), and the numbers (:mod:`.cells`). pandas is imported only when a file is read.
"""
