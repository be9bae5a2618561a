"""What to write here for the keys and tables of other tools: data alone.

Keys of golib, uvicorn, gunicorn, supervisord, systemd, docker compose and pm2 stand for a server's; of nginx, HAProxy,
Traefik and Caddy for those of routes. Case, underscores and hyphens are ignored, because tools mix spellings.
"""

from __future__ import annotations

HTTP2 = (
    "take it out: the gateway speaks HTTP/2 to clients that use TLS: [gateway] with"
    ' bind = [{ bind = ":443", tls = { cert = "FILE", key = "FILE" } }], and a [[route]] to the server'
)

UDP = (
    "take it out: an app is HTTP and a stream is TCP; UDP is forwarded by nginx (stream), or by a [[server]] with"
    ' command = ["socat", "UDP-LISTEN:53,fork", "UDP:HOST:53"]'
)

# By the name of the table, "" for a server's: what to write, or why to take the key out, and the keys of others.
OTHER_TOOLS: dict[str, dict[str, str]] = {
    "": {
        # Addresses, and who serves
        'bind = "HOST:PORT"': "host hosts port ports address",
        'bind = "unix:/PATH"': "uds",
        'bind = "fd:3"': "fd",
        "take it out: the pool opens the socket, with the longest backlog of the system (net.core.somaxconn)": "backlog"
        " socketbacklog reuseport",
        "take it out: the lifespan of an app runs if it has one": "lifespan asgilifespan",
        'app = "module:attribute"': "wsgiapp asgiapp module application",
        'app_dir = "PATH"': "pythonpath",
        'command = ["prog", "argument"]': "script execstart entrypoint args arguments interpreterargs nodeargs cmd"
        " exec run",
        'python = "PATH" for an app; for a program, the first word of its command': "interpreter virtualenv venv",
        "workers = N": "numprocs instances replicas nworkers",
        "take it out: an app is served by uvicorn, and another server is a command": "workerclass execmode",
        "preload = true": "preloadapp",
        "take it out: POOLCTL_INDEX in its environment is the number of a worker": "numprocsstart instancevar"
        " incrementvar",
        'name = "NAME"': "processname procname defaultprocname containername syslogidentifier identifier",
        "take it out, or write it as a comment: # …": "description documentation",
        # HTTP
        'http = { loop = "uvloop" }': "loop asgiloop",
        'http = { websocket = "auto" }': "ws",
        "take it out: WebSockets have the limits and pings that uvicorn has by default": "wsmaxsize wsmaxqueue"
        " wspinginterval wspingtimeout wspermessagedeflate",
        'http = { head_timeout = "10s" }': "readtimeout readheadertimeout",
        'http = { keep_alive = "75s" }': "idletimeout timeoutkeepalive disablekeepalive keepalive",
        'http = { max_head_size = "64KiB" }': "maxheaderbytes h11maxincompleteeventsize limitrequestline"
        " limitrequestfieldsize",
        "http = { max_concurrency = N }": "maxhandlers limitconcurrency",
        "http = { max_connections = N }": "workerconnections",
        "http = { threads = N }": "threads",
        "http = { max_requests = N }": "limitmaxrequests maxrequests",
        "take it out: http.max_requests varies by up to a tenth": "limitmaxrequestsjitter maxrequestsjitter",
        'http = { root_path = "/path" }': "rootpath",
        "http = { proxy_headers = true }": "proxyheaders",
        'http = { proxy_headers = true, trusted_proxies = ["10.0.0.0/8"] }': "forwardedallowips trustedproxies",
        "response_headers of a [[route]]": "header headers",
        "http = { access_log = true }": "accesslog accesslogfile",
        'http = { log_level = "info" }': "loglevel",
        'tls = { cert = "FILE", key = "FILE" }': "sslcertfile sslkeyfile certfile keyfile ssl",
        'tls = { cert = "FILE", key = "FILE", password_env = "VARIABLE" }': "sslkeyfilepassword",
        'tls = { cert = "FILE", key = "FILE", ca = "FILE", client_auth = "required" }': "sslcacerts cacerts"
        " sslcertreqs certreqs",
        'tls = { cert = "FILE", key = "FILE", ciphers = "…" }': "sslciphers ciphers",
        'tls = { cert = "FILE", key = "FILE", min_version = "1.2" }': "sslversion",
        "take it out: a server with tls never starts without it": "tlsmandatory",
        # Start and stop
        'start_timeout = "30s"': "timeoutstartsec startperiod listentimeout",
        'drain_timeout = "30s"': "writetimeout timeoutgracefulshutdown gracefultimeout",
        'stop_timeout = "10s"': "stopwaitsecs killtimeout stopgraceperiod timeoutstopsec timeoutabortsec timeoutsec",
        'stdin = "open"': "stdinopen",
        'stop_signal = "SIGINT"': "killsignal restartkillsignal",
        'stop_group = "together"': "stopasgroup treekill",
        'stop_group = "after", "together" or "leader"': "killmode",
        "take it out: the rest of a process group is killed at stop_timeout": "killasgroup sendsigkill",
        'ready_after = "10s", for a program without an address': "startsecs minuptime",
        'ready_line = "a regular expression"': "readylogline",
        "notify = true for a program that reports READY=1 on NOTIFY_SOCKET": "notifyaccess waitready",
        'hooks = { before_start = ["prog", "argument"] }': "prestart beforestart execstartpre onstarting",
        'hooks = { after_stop = ["prog", "argument"] }': "poststop afterstop execstoppost onexit",
        "on_demand = true for a server that is started by its name alone": "autostart profiles",
        "take it out: every server that is not disabled is started": "wantedby requiredby",
        'depends_on = ["NAME"]': "priority links after requires wants bindsto partof requisite dependencies",
        'every = "0 3 * * *", and job = true': "schedule cron crontab oncalendar timer",
        "take it out: a crontab may call `poolctl restart NAME`": "cronrestart",
        "take it out, and start it with poolctl run --watch": "reload",
        "take it out: `poolctl start` runs it in the background, `poolctl run` in the foreground": "daemon nodaemon"
        " daemonize",
        "take it out: `poolctl list -o name,pids` shows the pids": "pidfile pid",
        # Restarts and health
        'restart = "always"': "autorestart",
        "restart = { limit = N }": "maxrestarts startlimitburst",
        "take it out: a server that was never ready is given up after 8 restarts in 5m, one that was ready before"
        " never": "startretries",
        'restart = { window = "5m" }': "startlimitintervalsec startlimitinterval",
        'restart = { backoff = { initial = "1s" } }': "restartsec restartdelay expbackoffrestartdelay",
        'restart = { backoff = { max = "30s" } }': "restartmaxdelaysec",
        'health = "/path", or health = { readiness = { http = "/path" } }': "monitor healthcheck healthchecks",
        'recovery = { stuck_after = "30s" }': "timeoutworkerhealthcheck watchdogsec",
        'limits = { memory = "300MB" }': "maxmemoryrestart memlimit memorymax memoryhigh",
        "limits = { open_files = N }": "limitnofile minfds ulimits",
        # Processes and files
        'cwd = "PATH"': "directory workingdir workingdirectory chdir",
        'env = { NAME = "value" }': "environment rawenv setenv envproduction envdevelopment",
        'env_file = "FILE"': "environmentfile",
        'user = "USER"': "uid username runas",
        'user = "USER:GROUP"': "gid",
        'tags = ["WORD"]': "groups namespace",
        'user = "USER:GROUP", or tags = ["WORD"] for a group of servers': "group",
        "take it out: a server has the groups of its user": "initgroups supplementarygroups groupadd",
        'log = { path = "FILE" }, which takes both streams': "logger stdoutlogfile stderrlogfile logfile errorlog"
        " errorlogfile outfile errorfile standardoutput standarderror stdout stderr",
        'log = { max_size = "10MiB" }': "stdoutlogfilemaxbytes stderrlogfilemaxbytes logfilemaxbytes",
        "log = { keep = N }": "stdoutlogfilebackups stderrlogfilebackups logfilebackups",
        "take it out: the log has both streams": "redirectstderr captureoutput",
        "take it out: the workers of a server share a log": "mergelogs combinelogs",
        "take it out: `poolctl logs` shows the time of each line": "logdateformat accesslogformat",
        'log = { format = "json" }; an app configures logging itself': "logconfig logconfigdict logconfigjson"
        " loggerclass logging logtype",
        'watch = { include = ["*.html"] }': "reloadinclude reloadincludes reloaddir reloaddirs reloadextrafile"
        " reloadextrafiles",
        'watch = { exclude = ["tests"] }': "reloadexclude reloadexcludes ignorewatch",
        "take it out: a program runs on this machine, not in a container": "volumes networks capadd capdrop privileged"
        " securityopt networkmode extrahosts pullpolicy readonly tmpfs shmsize platform",
        "take it out: new code that does not become ready never replaces the old, and a [[route]] sends a share of its"
        " requests by the weight of a target": "rollout canary",
        UDP: "protocol udp",
        HTTP2: "http2 maxconcurrentstreams maxreadframesize permitprohibitedciphersuites maxuploadbufferperconnection"
        " maxuploadbufferperstream",
        "take it out: poolctl has no equal": "serverheader dateheader usecolors reloaddelay"
        " reloadengine exitcodes stopexitcodes successexitstatus limitrequestfields sendfile workertmpdir statsdhost"
        " statsdprefix prefork postfork postworkerinit workerint workerabort preexec prerequest postrequest childexit"
        " workerexit whenready onreload",
    },
    "pool": {
        "[[server]] tables": "server servers service services program programs app apps",
        "[gateway], and [[route]] tables": "gateway route routes",
        "workers = N below [defaults], or below a [[server]]": "workers",
        'env = { NAME = "value" } below [defaults], or below a [[server]]': "env environment",
        "take it out: `poolctl export kubernetes` writes what a cluster applies": "platform",
    },
    "http": {HTTP2: "http2"},
    "hooks": {
        'before_start = ["prog", "argument"]': "prestart execstartpre",
        'after_stop = ["prog", "argument"]': "poststop execstoppost",
    },
    "triggers": {"requests_per_second = N": "rps qps rate"},
    "tls": {
        'tls = { cert = "FILE", key = "FILE" }, or tls = true for what [defaults.tls] says': "certs",
        "tls = true": "inheritdefault",
        'tls = { ca = "FILE" }': "rootca rootcafile",
        'tls = { ca = "FILE", client_auth = "required" }': "clientca clientcafile",
        'tls = { client_auth = "none", "optional" or "required" }': "authclient",
        'tls = { min_version = "1.2" }': "versionmin",
        'tls = { ciphers = "…" }, in OpenSSL\'s notation': "cipherlist",
        "take it out: poolctl has no equal": "versionmax curvelist dynamicsizingdisable sessionticketdisable",
    },
    "gateway": {
        'bind = ":80", or [":80", { bind = ":443", tls = { cert = "FILE", key = "FILE" } }]': "listen listeners"
        " address port entrypoints tls certificate sslcertificate sslcertificatekey",
        "[[route]] tables": "routes route server location rules",
        'trusted_proxies = ["10.0.0.0/8"]': "setrealipfrom forwardedallowips",
        'bind = [{ bind = ":80", accept_proxy_protocol = true }], and trusted_proxies': "proxyprotocol acceptproxy",
        "threads = N": "nbthread workerprocesses",
        'keep_alive = "75s"': "keepalivetimeout",
        'head_timeout = "10s"': "clientheadertimeout readheadertimeout",
        'max_head_size = "64KiB"': "largeclientheaderbuffers clientheaderbuffersize",
        "take it out: a [[route]] is HTTP, a [[stream]] TCP": "mode",
        'host = "HOST" in a [[route]]': "host servername domain domains hostname",
        'to = "SERVER" in a [[route]]': "to proxypass upstream backend backends",
        'max_body_size = "1MiB" in a [[route]]': "maxbodysize clientmaxbodysize",
        'set_headers = { NAME = "value" } in a [[route]]': "setheaders proxysetheader",
        'response_headers = { NAME = "value" } in a [[route]]': "responseheaders addheader hsts",
        'redirect = "https" in a [[route]]': "redirect httpsredirect sslredirect redirectscheme forcessl",
        'allow = ["10.0.0.0/8"] in a [[route]]': "allow deny ipallowlist",
        'to = [{ to = "https://HOST", verify = false }] in a [[route]]': "verify proxysslverify insecureskipverify",
        'timeouts = { connect = "5s", head = "60s" }': "proxyconnecttimeout proxyreadtimeout proxysendtimeout",
    },
    "timeouts": {
        'idle = "60s", the time without data; in a route also head = "60s", until the response begins': "read send"
        " write readtimeout sendtimeout writetimeout server response",
    },
    "route": {
        'to = "SERVER", or ["http://HOST:PORT", …]': "proxypass upstream backend backends server servers service target"
        " targets url destination usebackend reverseproxy",
        'host = "HOST"': "servername domain domains hostname hostregexp",
        'path = "/PREFIX"': "location prefix pathprefix paths rule",
        "strip_path = true": "stripprefix",
        "take it out: a path is passed as it is, or without the prefix of the route (strip_path)": "rewrite"
        " replacepath",
        'timeouts = { connect = "5s", head = "60s" }': "timeout proxyconnecttimeout proxyreadtimeout proxysendtimeout",
        'set_headers = { NAME = "value" }': "proxysetheader setheader setheaders requestheaders"
        " requestheader customrequestheaders",
        'add_headers = { NAME = "value" }': "addrequestheader addrequestheaders",
        'remove_headers = ["NAME"]': "removeheader deleteheader deleteheaders delheader",
        'response_headers = { NAME = "value" }': "addheader responseheader customresponseheaders proxyhideheader hsts"
        " stsseconds cors",
        'redirect = "https", "https://HOST" or "/PATH"': "return redirects redirectscheme httpsredirect sslredirect"
        " forcessl",
        'allow = ["10.0.0.0/8"]': "ipallowlist ipwhitelist allowlist whitelist sourcerange deny remoteip",
        'max_body_size = "1MiB"': "clientmaxbodysize",
        "buffer_requests = true": "proxyrequestbuffering requestbuffering",
        'sticky = "COOKIE"': "cookie stickysession sessionaffinity",
        'alias = "NAME"': "name id",
        "take it out: a [[route]] is HTTP, a [[stream]] TCP": "mode",
        'policy = "least-connections"': "balance lbpolicy loadbalancer algorithm",
        'to = [{ to = "SERVER", weight = 2 }]': "weight weights",
        'to = [{ to = "https://HOST", verify = false }]': "verify proxysslverify insecureskipverify",
        'to = [{ to = "https://HOST", ca = "FILE" }]': "ca proxyssltrustedcertificate rootcas",
        'to = [{ to = "https://HOST", sni = "NAME" }]': "sni proxysslname",
        'tls of an address of [gateway]: bind = [{ bind = ":443", tls = { cert = "FILE", key = "FILE" } }]': "tls"
        " certificate sslcertificate",
    },
    "stream": {
        'bind = ":5432"': "listen address port",
        'to = "HOST:PORT"': "proxypass upstream backend backends server servers target targets",
        'timeouts = { connect = "5s", idle = "10m" }': "timeout proxyconnecttimeout proxytimeout",
        'alias = "NAME"': "name id",
        UDP: "protocol udp",
        "take it out: TLS is copied as it is, from the client to the target": "tls certificate sslcertificate",
    },
}

# The tables of a file for those of others.
OTHER_TABLES: dict[str, str] = {
    "server": "servers service services program programs app apps application applications process processes watcher"
    " watchers worker",
    "defaults": "default common",
    "route": "routes routing location locations",
    "stream": "streams",
    "gateway": "proxy nginx haproxy traefik caddy entrypoint entrypoints",
    "notify": "notifications notification notifier alerts alert",
    "metrics": "prometheus",
    "events": "journal",
    "pool": "supervisord supervisor",
}
