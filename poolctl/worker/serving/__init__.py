"""One uvicorn server and its connections: counted, watched, handed on; what it is made of and when it leaves."""
