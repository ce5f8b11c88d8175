"""Unit tests of app/chassis, which tests/render/test_chassis.py runs inside projects."""
