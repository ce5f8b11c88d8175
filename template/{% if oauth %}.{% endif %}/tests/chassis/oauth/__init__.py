# Belongs to the template: your own tests go into tests/, beside this directory.
