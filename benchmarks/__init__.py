"""What has to be fast, small and lossless, measured against something else: docs/performance.md."""
