"""The settings, of which the environment says what differs between a laptop and a cluster."""

import os

SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = os.environ["HOSTS"].split(",")
MEDIA_ROOT = os.environ["UPLOADS"]
MAY_UPLOAD = os.environ.get("EDITORS") == "yes"
ROOT_URLCONF = "project.urls"
# Files that are being uploaded: a pod can write to /tmp and to its volumes alone.
FILE_UPLOAD_TEMP_DIR = "/tmp"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
