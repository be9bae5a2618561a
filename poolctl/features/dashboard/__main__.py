"""The entry point of the dashboard's process, which the supervisor starts."""

from ._web_server import main

if __name__ == "__main__":
    main()
