"""Unit tests of app/chassis, which run inside a project: tests/test_chassis.py puts them there."""
