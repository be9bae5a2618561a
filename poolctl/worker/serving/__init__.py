"""One uvicorn server and its connections: accepting, limits, counts, access log, probes, drain and handover."""
