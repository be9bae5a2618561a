"""The search of the documentation finds a useful page first, also where the site is opened as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

SITE = Path(__file__).parents[2] / "site"
# What newcomers type, and the pages of which one has to be among the first three.
QUERIES = {
    "letsencrypt": "tls how-do-i",
    "rollback": "deploying how-do-i",
    "https": "tls gateway how-do-i",
    "systemd": "production how-do-i deploying",
    "docker": "containers how-do-i",
    "compose": "coming-from containers",
    "kubernetes": "kubernetes",
    "celery": "programs how-do-i",
    "cron": "programs how-do-i",
    "static files": "how-do-i",
    "django": "wsgi how-do-i",
    "flask": "wsgi how-do-i",
    "fastapi": "tutorial how-do-i examples testing",
    "websocket": "restarts gateway production",
    "zero downtime": "deploying restarts",
    "graceful shutdown": "restarts production programs",
    "health check": "health",
    "memory limit": "how-do-i configuration recovery essentials",
    "log rotation": "logs",
    "environment variables": "environment",
    "secrets": "how-do-i environment configuration kubernetes security",
    "port in use": "troubleshooting",
    "permission denied": "troubleshooting",
    "502": "troubleshooting gateway",
    "import error": "troubleshooting",
    "autoscaling": "scaling how-do-i",
    "scale to zero": "scaling how-do-i",
    "pytest": "testing",
    "github actions": "testing",
    "migrations": "deploying how-do-i wsgi",
    "load balancing": "gateway gateway-keys",
    "rate limit": "gateway how-do-i gateway-keys",
    "nginx": "coming-from how-do-i production",
    "supervisord": "coming-from",
    "pm2": "coming-from",
    "gunicorn": "coming-from",
    "prometheus": "metrics how-do-i",
    "notifications": "events how-do-i",
    "virtualenv": "environment how-do-i troubleshooting",
    "monorepo": "how-do-i development",
    "hot reload": "development commands how-do-i",
    "debugger": "testing development how-do-i",
    "unix socket": "configuration how-do-i",
    "multiple domains": "how-do-i gateway",
    "autorestart": "coming-from how-do-i",
    "start order priority": "how-do-i coming-from",
    "run as another user": "how-do-i production",
    "stop all servers": "how-do-i essentials commands",
    "web interface": "how-do-i dashboard",
    "stdout_logfile": "coming-from",
    "volumes": "coming-from containers",
}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_search_finds_a_useful_page_among_the_first_three(page: Page) -> None:
    if not SITE.is_dir():
        pytest.skip("make docs has not built the site")
    missed = {}
    for words, useful in QUERIES.items():
        page.goto(f"{SITE.as_uri()}/index.html?q={words}")
        page.locator("input.md-search__input").focus()
        page.locator(".md-search-result__meta", has_text="match").wait_for()
        links = page.locator(".md-search-result__item > a:first-child")
        found = [
            link.evaluate("a => a.pathname.split('/site/')[1].replace('.html', '')")
            for link in links.all()[:3]
        ]
        if not {*found} & {*useful.split()}:
            missed[words] = found
    assert missed == {}
