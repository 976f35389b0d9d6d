"""Images of a Debian guest with the agent in it, and guests booted from them.  `python -m tests.vm.harness --help`."""
