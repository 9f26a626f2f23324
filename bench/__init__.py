"""What a message costs the server, beside a C floor that does nothing else with it.

`python -m bench` runs it; README.md tells how the numbers are taken and what may be compared
with what. Only bench and tests use this package; it is not installed.
"""
