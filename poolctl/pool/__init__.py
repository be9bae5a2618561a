"""The Python API: pools of servers in this process, or in processes of their own."""
