# Belongs to the template: your own tests go into tests/, beside this directory.
"""Contract tests, which check the chassis's promises with this application's own code."""
