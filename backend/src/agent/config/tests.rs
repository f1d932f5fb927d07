use super::*;

fn good(text: &str) -> AgentConfig {
    AgentConfig::parse(text, Path::new("a.toml")).unwrap()
}

fn bad(text: &str) -> String {
    AgentConfig::parse(text, Path::new("a.toml")).unwrap_err().to_string()
}

#[test]
fn a_file_that_is_not_there_is_all_defaults() {
    let config = AgentConfig::load(Path::new("/nonexistent/agent.toml"), false).unwrap();
    assert_eq!(config.agent.socket, Path::new(AGENT_SOCKET));
    assert_eq!(config.ready_timeout, Duration::from_secs(20));
    assert_eq!((config.rotation.max_running, config.rotation.max_running_per_backend), (2, 0));
    assert!(config.rotation.schedule.max_key_age.is_none() && config.agent.format_new_volumes);
    assert!(AgentConfig::load(Path::new("/nonexistent/agent.toml"), true).is_err());
}

#[test]
fn every_field_is_understood() {
    let config = good(
        r#"
        [agent]
        socket = "/run/a/agent.sock"
        socket_group = "operators"
        allow_users = ["nova", "ops"]
        run_dir = "/run/x"
        daemon = "/opt/sealblkd"
        user = "u"
        group = "g"
        socket_owner_group = "qemu"
        launcher = "process"
        unit_properties = ["IPAddressDeny=any"]
        key_managers = "/etc/k.toml"
        state_dir = "/var/a"
        daemon_state_dir = "/var/b"
        log_level = "debug"
        log_format = "json"
        audit_log = "/var/log/a.json"
        metrics_listen = "127.0.0.1:9779"
        format_new_volumes = false
        ceph_conf = "/etc/ceph/c.conf"
        device_prefixes = ["/dev/disk"]
        file_prefixes = ["/srv"]
        key_prefixes = ["/etc/keys"]
        ready_timeout = "1min"
        [volume]
        queues = 4
        queue_size = 128
        discard = true
        on_error = "report"
        io_timeout = "10s"
        cipher = "portable"
        poll_us = 0
        [rotation]
        max_key_age = "365d"
        window = "Sat..Sun 01:00-05:00"
        rate = "100M"
        max_running = 3
        max_running_per_backend = 1
        "#,
    );
    assert_eq!(config.agent.launcher, LauncherChoice::Process);
    assert_eq!(config.ready_timeout, Duration::from_secs(60));
    assert_eq!((config.rotation.max_running, config.rotation.max_running_per_backend), (3, 1));
    assert_eq!(config.rotation.schedule.max_key_age, Some(Duration::from_secs(365 * 86_400)));
    // The daemons are told how fast, and not when.
    let told = config.rotation.section.policy().unwrap();
    assert_eq!((told.rate_bytes, told.schedule), (Some(100 << 20), Schedule::default()));
    let section = config.section("v", "/dev/x".into(), false, Some("7".into()));
    assert_eq!((section.queues, section.queue_size, section.discard), (Some(4), Some(128), true));
    assert_eq!((section.on_error, section.hold_limit), (OnError::Report, None));
    assert_eq!(section.socket, Path::new("/run/x/v.sock"));
    // Nothing rotates what nobody writes.
    assert!(config.section("v", "/dev/x".into(), true, None).rotation.is_none());
}

#[test]
fn volumes_hold_their_requests_for_a_while_unless_it_is_said() {
    let section = good("").section("v", "/dev/x".into(), false, None);
    assert_eq!((section.on_error, section.hold_limit.as_deref()), (OnError::Hold, Some("5min")));
    let section =
        good("[volume]\nhold_limit = \"none\"").section("v", "/dev/x".into(), false, None);
    assert_eq!(section.hold_limit.as_deref(), Some("none"));
}

#[test]
fn mistakes_are_told_with_file_and_line() {
    for (text, begin, word) in [
        ("[agent]\nsockett = 1", "a.toml:2: ", "sockett"),
        ("\n[agents]", "a.toml:2: ", "agents"),
        ("\n[agent]\nrun_dir = \"run\"", "a.toml:2: [agent]: ", "absolute"),
        ("[agent]\nready_timeout = \"0s\"", "a.toml:1: [agent]: ", "ready_timeout"),
        ("[agent]\nmetrics_listen = \"9779\"", "a.toml:2: ", "socket address"),
        ("\n\n[volume]\nqueues = 0", "a.toml:3: [volume]: ", "queues"),
        ("[volume]\non_error = \"panic\"", "a.toml:2: ", "panic"),
        ("\n[rotation]\nmax_key_age = \"soon\"", "a.toml:2: [rotation]: ", "max_key_age"),
        ("[rotation]\nmax_running = -1", "a.toml:1: [rotation]: ", "max_running"),
        ("[rotation]\nspeed = 1", "a.toml:1: [rotation]: ", "speed"),
    ] {
        let error = bad(text);
        assert!(error.starts_with(begin) && error.contains(word), "{text:?}: {error}");
    }
}
