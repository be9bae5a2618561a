"""Keys of other tools get what there is instead, or no hint at all; each fix is valid where it is pasted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poolctl.config.model.pool_tables import file_tables
from poolctl.config.model.server_keys import ServerConfig
from poolctl.config.values.other_tools import OTHER_TABLES, OTHER_TOOLS
from poolctl.config.values.problems import plain_word, reset_suggestions, unknown_key
from poolctl.feature import FEATURES
from tests.config_files import load_text, told

# Every key of a program of supervisord, of an app of pm2, every option of uvicorn and gunicorn, every key of a service
# of compose, and those of systemd.service(5), systemd.exec(5) and their neighbours that are used most.
KEYS = (
    # supervisor
    """
    command process_name numprocs numprocs_start priority autostart startsecs startretries autorestart
    exitcodes stopsignal stopwaitsecs stopasgroup killasgroup user redirect_stderr stdout_logfile
    stdout_logfile_maxbytes stdout_logfile_backups stdout_capture_maxbytes stdout_events_enabled
    stdout_syslog stderr_logfile stderr_logfile_maxbytes stderr_logfile_backups stderr_capture_maxbytes
    stderr_events_enabled stderr_syslog environment directory umask serverurl socket socket_backlog
    socket_owner socket_mode programs buffer_size events result_handler logfile logfile_maxbytes
    logfile_backups loglevel pidfile nodaemon silent minfds minprocs nocleanup childlogdir strip_ansi
    identifier username password chmod chown prompt history_file files
    """,
    # pm2
    """
    name script cwd args interpreter interpreter_args node_args instances exec_mode watch watch_delay
    ignore_watch max_memory_restart env env_production env_file source_map_support instance_var filter_env
    version_metadata log_date_format error_file out_file log_file combine_logs merge_logs log_type pid_file
    min_uptime listen_timeout kill_timeout shutdown_with_message wait_ready max_restarts autorestart
    restart_delay exp_backoff_restart_delay stop_exit_codes cron_restart vizion post_update force
    increment_var namespace append_env_to_name time treekill disable_logs uid gid user port automation trace
    pmx kill_retry_time
    """,
    # uvicorn
    """
    app host port uds fd loop http ws ws_max_size ws_max_queue ws_ping_interval ws_ping_timeout
    ws_per_message_deflate lifespan interface reload reload_dir reload_dirs reload_include reload_includes
    reload_exclude reload_excludes reload_delay workers env_file timeout_worker_healthcheck log_config
    log_level access_log use_colors proxy_headers forwarded_allow_ips server_header date_header header
    headers root_path limit_concurrency backlog limit_max_requests limit_max_requests_jitter
    timeout_keep_alive timeout_graceful_shutdown timeout_notify ssl_keyfile ssl_certfile
    ssl_keyfile_password ssl_version ssl_cert_reqs ssl_ca_certs ssl_ciphers ssl_context_factory app_dir
    factory h11_max_incomplete_event_size callback_notify reset_contextvars
    """,
    # gunicorn
    """
    config bind backlog workers worker_class threads worker_connections max_requests max_requests_jitter
    timeout graceful_timeout keepalive limit_request_line limit_request_fields limit_request_field_size
    reload reload_engine reload_extra_files spew check_config print_config accesslog
    disable_redirect_access_to_syslog access_log_format errorlog loglevel capture_output logger_class
    logconfig logconfig_dict logconfig_json syslog_addr syslog syslog_prefix syslog_facility
    enable_stdio_inheritance statsd_host dogstatsd_tags statsd_prefix proc_name default_proc_name pythonpath
    paste keyfile certfile ssl_version cert_reqs ca_certs suppress_ragged_eofs do_handshake_on_connect
    ciphers preload_app sendfile reuse_port chdir daemon raw_env pidfile worker_tmp_dir user group umask
    initgroups tmp_upload_dir secure_scheme_headers forwarded_allow_ips proxy_protocol proxy_allow_ips
    raw_paste_global_conf permit_obsolete_folding strip_header_spaces header_map wsgi_app on_starting
    on_reload when_ready pre_fork post_fork post_worker_init worker_int worker_abort pre_exec pre_request
    post_request child_exit worker_exit nworkers_changed on_exit dirty_workers asgi_loop asgi_lifespan
    root_path
    """,
    # compose
    """
    image build command entrypoint environment env_file ports expose volumes networks depends_on restart
    healthcheck container_name hostname deploy labels logging user working_dir stop_grace_period stop_signal
    init privileged cap_add cap_drop security_opt tmpfs ulimits sysctls extra_hosts dns secrets configs
    profiles platform pull_policy stdin_open tty read_only shm_size mem_limit mem_reservation cpus
    cpu_shares cpuset pids_limit oom_score_adj network_mode links external_links extends scale replicas
    annotations attach blkio_config cgroup credential_spec device_cgroup_rules devices domainname group_add
    ipc isolation mac_address memswap_limit oom_kill_disable pid post_start pre_stop runtime storage_opt
    userns_mode uts volumes_from develop gpus interval timeout retries start_period test
    """,
    # systemd
    """
    Description Documentation Requires Wants Requisite BindsTo PartOf Upholds Conflicts Before After
    OnFailure OnSuccess Type RemainAfterExit GuessMainPID PIDFile BusName ExecStart ExecStartPre
    ExecStartPost ExecCondition ExecReload ExecStop ExecStopPost RestartSec RestartSteps RestartMaxDelaySec
    TimeoutStartSec TimeoutStopSec TimeoutAbortSec TimeoutSec RuntimeMaxSec WatchdogSec Restart RestartMode
    SuccessExitStatus RestartPreventExitStatus RestartForceExitStatus NonBlocking NotifyAccess Sockets
    FileDescriptorStoreMax OOMPolicy User Group DynamicUser SupplementaryGroups WorkingDirectory
    RootDirectory Environment EnvironmentFile PassEnvironment UnsetEnvironment StandardInput StandardOutput
    StandardError SyslogIdentifier LimitNOFILE LimitNPROC LimitCORE MemoryMax MemoryHigh CPUQuota CPUWeight
    TasksMax Nice OOMScoreAdjust UMask KillMode KillSignal RestartKillSignal FinalKillSignal SendSIGHUP
    SendSIGKILL Slice Delegate ProtectSystem ProtectHome PrivateTmp NoNewPrivileges CapabilityBoundingSet
    AmbientCapabilities ReadWritePaths StateDirectory CacheDirectory LogsDirectory RuntimeDirectory
    ConfigurationDirectory StartLimitIntervalSec StartLimitBurst WantedBy Alias Also LoadCredential
    ListenStream Accept SocketUser SocketMode SocketGroup Backlog OnCalendar OnBootSec Persistent
    """,
)
# Spelled alike, and meant alike.
ALIKE = {"stopsignal", "Restart", "SocketMode", "Sockets", "User", "UMask", "timeout"}


def hint_for(key: str) -> str:
    reset_suggestions()
    return unknown_key((key,), ServerConfig.keys_in_files(), "").hint


@pytest.mark.parametrize("keys", KEYS)
def test_no_key_of_another_tool_gets_a_key_that_is_not_similar(keys: str) -> None:
    known = ServerConfig.keys_in_files()
    hints = {key: hint_for(key) for key in keys.split() if key not in known}
    proposed = {key for key, hint in hints.items() if hint.startswith(("similar", "did you mean"))}
    assert proposed <= ALIKE


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("uds", 'write bind = "unix:/PATH"'),
        ("timeout_graceful_shutdown", 'write drain_timeout = "30s"'),
        ("timeout-graceful-shutdown", 'write drain_timeout = "30s"'),
        ("lifespan", "take it out: the lifespan of an app runs if it has one"),
        ("backlog", "take it out: the pool opens the socket"),
        ("log_config", 'write log = { format = "json" }; an app configures logging itself'),
        ("ws_max_size", "take it out: WebSockets have the limits and pings that uvicorn has by default"),
        ("description", "take it out, or write it as a comment"),
        ("stdout_logfile_maxbytes", 'write log = { max_size = "10MiB" }'),
        ("WorkingDirectory", 'write cwd = "PATH"'),
        ("mem_limit", 'write limits = { memory = "300MB" }'),
    ],
)
def test_key_of_another_tool_gets_what_there_is_instead(key: str, hint: str) -> None:
    assert hint_for(key).startswith(hint)


# The header of each table, and its feature.
HEADERS = {
    "": ("[[server]]", ""),
    "pool": ("[pool]", ""),
    "http": ("[server.http]", ""),
    "hooks": ("[server.hooks]", ""),
    "triggers": ("[server.scale.triggers]", "scaling"),
    "tls": ("[server.tls]", ""),
    "gateway": ("[gateway]", "gateway"),
    "timeouts": ("[gateway.timeouts]", "gateway"),
    "route": ("[[route]]", "gateway"),
    "stream": ("[[stream]]", "gateway"),
}


@pytest.mark.parametrize("table", OTHER_TOOLS)
def test_each_key_of_another_tool_says_what_there_is_instead(tmp_path: Path, table: str) -> None:
    header, feature = HEADERS[table]
    if feature not in ("", *FEATURES):
        pytest.skip("without its feature")
    fixes = {word: fix for fix, words in OTHER_TOOLS[table].items() for word in words.split()}
    problems = told(tmp_path, "\n".join(["[[server]]", header, *(f"{word} = 1" for word in fixes)]))
    missing = [
        word
        for word, fix in fixes.items()
        if not re.search(
            rf"'{word}' (is a key of another tool|belongs elsewhere); (write )?{re.escape(fix)}", problems
        )
    ]
    assert missing == []


FIXES = [fix for fix in OTHER_TOOLS[""] if re.match(r"[a-z_]+ = ", fix)]


@pytest.mark.parametrize("fix", FIXES)
def test_fix_is_valid_where_it_is_pasted(tmp_path: Path, fix: str) -> None:
    pasted = re.split(r"(?<=[\w\"\]}]), (?:or|and|for|which) |; | for ", fix)[0]
    pasted = pasted.replace("= N", "= 64").replace("HOST:PORT", "127.0.0.1:8080").replace("module:", "shop:")
    key = pasted.partition(" ")[0]
    if key == "stop_group":
        pasted = pasted.partition(",")[0]
    lines = {"name": 'name = "a"', "app": 'app = "a:b"', "bind": 'bind = ":1"'}
    if key in (
        "command",
        "notify",
        "stdin",
        "stop_signal",
        "stop_group",
        "every",
        "ready_after",
        "ready_line",
    ):
        del lines["app"]
        lines["command"] = 'command = ["a"]'
    if key in ("every", "ready_after"):
        del lines["bind"]
    if key == "every":
        lines["job"] = "job = true"
    lines[key] = pasted.replace('"NAME"', '"b"') if key == "depends_on" else pasted
    others = '[[server]]\nname = "b"\ncommand = ["a"]\n'
    assert told(tmp_path, f"{others}[[server]]\n" + "\n".join(lines.values()) + "\n") == ""


def test_each_key_has_one_fix_in_its_table_and_none_is_a_key_of_ours() -> None:
    for table, fixes in OTHER_TOOLS.items():
        words = [word for text in fixes.values() for word in text.split()]
        assert sorted(words) == sorted({*words}), table
        assert all(word == plain_word(word) for word in words), table
    known = {plain_word(key) for key in ServerConfig.keys_in_files()}
    assert not known & {word for text in OTHER_TOOLS[""].values() for word in text.split()}


@pytest.mark.parametrize(
    ("table", "words"), [(table, words) for table, words in OTHER_TABLES.items() if table in file_tables()]
)
def test_table_of_another_tool_is_written_as_ours(tmp_path: Path, table: str, words: str) -> None:
    for word in words.split():
        header = f"[{word}]"
        problem = told(tmp_path, f"{header}\nx = 1\n")
        assert re.search(rf"; write \[+{table}\]+(, with two brackets)?$", problem), problem
    assert load_text(tmp_path, '[[server]]\nname = "a"\ncommand = ["a"]\n').problems == []
