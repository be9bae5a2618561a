"""What servers refer to outside their files: interpreters, programs, users, certificates, importable apps."""
