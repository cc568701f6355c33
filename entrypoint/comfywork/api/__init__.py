"""The queue over HTTP: for programs, and for people a page."""
