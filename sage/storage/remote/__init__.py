"""Runs at URLs, through fsspec: staging folders, uploads with checksums, and copies for reading.

A run is always written to a folder on this machine, from which it is uploaded. Nothing that comes from a URL
is unpickled: only JSON is read, and the names of a listing cannot lead out of the folder of copies.
"""
