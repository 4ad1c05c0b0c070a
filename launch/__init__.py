"""Launchers: a file's name is the place, as in `posttrain launch local`."""
