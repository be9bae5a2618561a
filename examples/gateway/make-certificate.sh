#!/bin/sh
# make-certificate.sh DIRECTORY: a self-signed certificate for localhost with its key, unless there is a valid one.
set -eu
directory=$1
mkdir -p "$directory"
cd "$directory"
if [ -s key.pem ] && openssl x509 -in cert.pem -noout -checkend 86400 >/dev/null 2>&1; then
    exit 0
fi
umask 077
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
    -subj /CN=localhost -addext "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1" \
    -keyout key.pem.new -out cert.pem.new 2>openssl.log || { cat openssl.log >&2; exit 1; }
mv key.pem.new key.pem
mv cert.pem.new cert.pem
rm -f openssl.log
