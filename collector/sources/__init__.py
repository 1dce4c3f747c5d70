"""The sources, one file each: a pure `parse_*` (bytes in, samples out) beside a thin reader that holds descriptors.

A reader gives one immutable sample or raises `SourceError`; what a source cannot know is None in its sample.
"""
