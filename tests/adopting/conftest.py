"""The example is somebody else's repository: its tests are not ours."""

collect_ignore = ["example"]
