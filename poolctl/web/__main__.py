"""The entry point of the process, which the supervisor starts."""

from .web_process import main

if __name__ == "__main__":
    main()
