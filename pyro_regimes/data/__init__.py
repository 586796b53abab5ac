"""The embedded data: see README.md beside this file for what it is and where it comes from."""
