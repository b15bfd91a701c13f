"""The benchmark's workloads against servers that run elsewhere; see README.md beside this file."""
