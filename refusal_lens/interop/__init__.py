"""Files of other tools: reading what they write, and writing what they read. A module for each kind of file.

Nothing is imported here, so that telling whose a folder is (`layout`) needs none of the libraries that reading does.
"""
