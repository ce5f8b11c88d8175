# Belongs to the template: your own tests go into tests/, beside this directory.
"""The contract: this application keeps the chassis's promises, with its own settings and tables."""
