"""The process of a dashboard, as its supervisor starts it."""

from ._web_server import main

if __name__ == "__main__":
    main()
