"""The tables of files become values or findings, and the rules between servers, tables and routes."""
