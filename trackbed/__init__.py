"""Many services made from a template: where they are, and what an update would do to them."""
