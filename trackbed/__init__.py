"""Command for services made from a template, which finds, compares and updates them."""
