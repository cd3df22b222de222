"""What medjax takes, measured: each file is a command, see `bench/README.md`."""
