use std::path::Path;

use sealblk_rotation::{Schedule, UnknownAge, Windows};

use super::file::parse;
use super::*;

const MINIMAL: &str = r#"
[[volume]]
name = "vda"
uri = "file:/var/lib/vda.img"
key = "file:/etc/sealblk/vda.key"
socket = "/run/sealblk/vda.sock"
"#;

fn good(text: &str) -> Config {
    parse(text, Path::new("c.toml")).unwrap()
}

fn bad(text: &str) -> String {
    parse(text, Path::new("c.toml")).unwrap_err().to_string()
}

/// MINIMAL with a line more, which is line 7.
fn with(line: &str) -> String {
    format!("{MINIMAL}{line}\n")
}

#[test]
fn what_is_not_written_has_its_default() {
    let config = good(MINIMAL);
    let volume = &config.volumes[0];
    assert_eq!(volume.protection, Protection::Key("file:/etc/sealblk/vda.key".parse().unwrap()));
    assert_eq!((volume.queues, volume.queue_size, volume.socket.mode), (1, 256, 0o660));
    assert_eq!((volume.on_error, volume.cipher), (OnError::Report, CipherChoice::Auto));
    assert!(!volume.read_only && !volume.discard && volume.serial.is_none());
    assert!(volume.poll.is_none());
    assert_eq!(config.daemon.log_format, LogFormat::Text);
    assert!(config.daemon.control.is_none());
}

#[test]
fn every_field_is_understood() {
    let config = good(
        r#"
        [daemon]
        control = "/run/sealblk/control.sock"
        control_group = "operators"
        log_level = "debug"
        log_format = "json"
        [[volume]]
        name = "bench"
        uri = "/dev/vdb"
        plain = true
        socket = "/run/sealblk/bench.sock"
        socket_group = "kvm"
        queues = 4
        queue_size = 128
        read_only = true
        discard = true
        serial = "0123456789abcdef0123"
        on_error = "hold"
        cipher = "aws-lc"
        poll_us = 0
        [[volume]]
        name = "other"
        uri = "/dev/vdc"
        key = "file:key"
        socket = "/run/sealblk/other.sock"
        socket_mode = "0666"
        luks = 1
        uuid = "9ba0d8ce-5d5a-4a9e-9a3c-0123456789AB"
        "#,
    );
    let volume = &config.volumes[0];
    assert_eq!(volume.protection, Protection::Plain);
    assert_eq!((volume.socket.group.as_deref(), volume.socket.mode), (Some("kvm"), 0o660));
    assert_eq!((volume.on_error, volume.cipher), (OnError::Hold, CipherChoice::AwsLc));
    assert_eq!(volume.poll, Some(Duration::ZERO));
    assert_eq!((config.volumes[1].socket.mode, config.volumes[1].luks), (0o666, Some(1)));
    assert!(config.volumes[1].uuid.as_deref().unwrap().ends_with("AB"));
    assert_eq!(config.warnings().len(), 1);
    assert!(config.warnings()[0].contains("\"other\""));
    assert_eq!(config.daemon.log_format, LogFormat::Json);
}

#[test]
fn unknown_fields_are_refused_with_their_line() {
    let error = bad(&with("que = 2"));
    assert!(error.starts_with("c.toml:7: ") && error.contains("`que`"), "{error}");
    let error = bad("[daemon]\n\nspeed = 9\n");
    assert!(error.starts_with("c.toml:3: ") && error.contains("`speed`"), "{error}");
    let error = bad("\n[volumes]\n");
    assert!(error.starts_with("c.toml:2: ") && error.contains("`volumes`"), "{error}");
}

#[test]
fn values_of_the_wrong_kind_are_refused_with_their_line() {
    for line in ["queues = \"2\"", "queues = 70000", "on_error = \"panic\"", "discard = 1"] {
        let error = bad(&with(line));
        assert!(error.starts_with("c.toml:7: "), "{line}: {error}");
    }
    let error = bad(&with("uri = "));
    assert!(error.starts_with("c.toml:7: "), "{error}");
}

#[test]
fn a_missing_field_is_named_with_its_section_s_line() {
    let error = bad(&MINIMAL.replace("name = \"vda\"\n", ""));
    assert!(error.starts_with("c.toml:2: ") && error.contains("`name`"), "{error}");
}

#[test]
fn values_out_of_range_name_the_volume_and_the_section_s_line() {
    for (line, word) in [
        ("queues = 0", "1 to 64"),
        ("queues = 65", "1 to 64"),
        ("queue_size = 100", "powers of two"),
        ("queue_size = 2048", "powers of two"),
        ("serial = \"0123456789abcdef01234\"", "21 bytes"),
        ("serial = \"\"", "0 bytes"),
        ("serial = \"a b\"", "ASCII"),
        ("poll_us = 10001", "10000"),
        ("plain = true", "exclude"),
        ("luks = 3", "versions 1 and 2"),
        ("uuid = \"9ba0d8ce\"", "sealblk inspect"),
        ("socket_mode = \"rw\"", "octal"),
        ("socket_mode = \"0060\"", "octal"),
    ] {
        let error = bad(&with(line));
        assert!(error.starts_with("c.toml:2: volume \"vda\": "), "{line}: {error}");
        assert!(error.contains(word), "{line}: {error}");
    }
}

#[test]
fn a_volume_without_a_key_is_refused_unless_it_says_plain() {
    let keyless = MINIMAL.replace("key = \"file:/etc/sealblk/vda.key\"\n", "");
    assert!(bad(&keyless).contains("needs `key"));
    assert_eq!(good(&format!("{keyless}plain = true")).volumes[0].protection, Protection::Plain);
    let error = bad(&MINIMAL.replace("file:/etc", "vault:/etc"));
    assert!(error.contains("`vault:`"), "{error}");
}

#[test]
fn an_unencrypted_volume_has_no_header_to_pin() {
    let plain = MINIMAL.replace("key = \"file:/etc/sealblk/vda.key\"", "plain = true");
    for pin in ["luks = 2", "uuid = \"9ba0d8ce-5d5a-4a9e-9a3c-0123456789ab\""] {
        assert!(bad(&format!("{plain}{pin}")).contains("no LUKS header"));
    }
}

#[test]
fn a_volume_of_an_unknown_kind_is_refused() {
    for (uri, hint) in [("/srv/x.img", "file:/PATH"), ("nbd://a/b", "rbd:POOL/IMAGE")] {
        let error = bad(&MINIMAL.replace("file:/var/lib/vda.img", uri));
        assert!(error.starts_with("c.toml:2: ") && error.contains(hint), "{error}");
    }
}

#[test]
fn volumes_that_share_a_name_or_socket_or_uri_are_refused() {
    let second = |change: fn(String) -> String| {
        format!("{MINIMAL}{}", change(MINIMAL.replace("vda", "vdb")))
    };
    good(&second(|text| text));
    for (text, word) in [
        (second(|t| t.replace("name = \"vdb", "name = \"vda")), "name"),
        (second(|t| t.replace("vdb.img", "vda.img")), "vda.img"),
        (second(|t| t.replace("vdb.sock", "vda.sock")), "vda.sock"),
    ] {
        let error = bad(&text);
        assert!(error.starts_with("c.toml:8: volume ") && error.contains(word), "{error}");
    }
    let unit = |text: &str| {
        text.replace("file:/var/lib/vda.img", "iscsi://joe%hidden@host/iqn.2024-01.x:y/1")
    };
    let error = bad(&unit(&second(|t| t.replace("vdb.img", "vda.img"))));
    assert!(error.contains("iscsi://joe%***@host") && !error.contains("hidden"), "{error}");
    let shown = format!("{:?}", good(&unit(MINIMAL)));
    assert!(shown.contains("joe%***") && !shown.contains("hidden"), "{shown}");
    let error = bad(&format!("[daemon]\ncontrol = \"/run/sealblk/vda.sock\"{MINIMAL}"));
    assert!(error.starts_with("c.toml:3: ") && error.contains("vda.sock"), "{error}");
}

fn policy(text: &str) -> RotationPolicy {
    good(text).volumes.swap_remove(0).rotation
}

const FOR_ALL: &str = r#"
[rotation]
max_key_age = "365d"
window = ["Sat..Sun 01:00-05:00", "22:00-04:00 UTC"]
rate = "200M"
hotzone = 4194304
guest_latency_max = "5ms"
unknown_age = "first-sight"
"#;

#[test]
fn without_a_section_nothing_is_rotated_by_itself() {
    let config = good(MINIMAL);
    assert_eq!(config.volumes[0].rotation, RotationPolicy::default());
    assert_eq!(config.volumes[0].rotation.schedule.max_key_age, None);
    assert_eq!(config.daemon.state_dir(), Path::new("/var/lib/sealblk"));
    let config = good(&format!("[daemon]\nstate_dir = \"/srv/s\"\n{MINIMAL}"));
    assert_eq!(config.daemon.state_dir(), Path::new("/srv/s"));
    let error = bad(&format!("[daemon]\nstate_dir = \"s\"\n{MINIMAL}"));
    assert!(error.contains("`state_dir` s is no absolute path"), "{error}");
}

#[test]
fn rotations_are_configured_for_all_and_field_by_field_for_one() {
    let for_all = policy(&format!("{FOR_ALL}{MINIMAL}"));
    let windows = ["Sat..Sun 01:00-05:00", "22:00-04:00 UTC"].map(|text| text.parse().unwrap());
    let expected = RotationPolicy {
        schedule: Schedule {
            max_key_age: Some(Duration::from_secs(365 * 86_400)),
            windows: Windows::new(windows.to_vec()),
            unknown_age: UnknownAge::FirstSight,
        },
        rate_bytes: Some(200 << 20),
        hotzone_bytes: Some(4 << 20),
        guest_latency_max: Some(Duration::from_millis(5)),
    };
    assert_eq!(for_all, expected);

    let own = |fields: &str| policy(&format!("{FOR_ALL}{MINIMAL}[volume.rotation]\n{fields}"));
    assert_eq!(own(""), expected);
    assert_eq!(
        own("rate = 1000000\nunknown_age = \"due\""),
        RotationPolicy {
            schedule: Schedule { unknown_age: UnknownAge::Due, ..expected.schedule.clone() },
            rate_bytes: Some(1_000_000),
            ..expected.clone()
        }
    );
    // Each field can be taken back.
    let nothing = "max_key_age = \"never\"\nwindow = \"always\"\nrate = \"none\"\n\
        hotzone = \"none\"\nguest_latency_max = \"none\"\nunknown_age = \"due\"";
    assert_eq!(own(nothing), RotationPolicy::default());
    // The section belongs to the volume above it.
    let text = format!(
        "{MINIMAL}[volume.rotation]\nmax_key_age = \"30d\"\n{}",
        MINIMAL.replace("vda", "vdb")
    );
    let ages: Vec<_> =
        good(&text).volumes.iter().map(|v| v.rotation.schedule.max_key_age).collect();
    assert_eq!(ages, [Some(Duration::from_secs(30 * 86_400)), None]);
}

#[test]
fn what_is_wrong_about_rotations_is_named_with_its_place_and_what_is_possible() {
    for (field, word) in [
        ("max_key_age = \"1y\"", "one of us, ms, s, min, h, d, w"),
        ("max_key_age = \"0s\"", "possible are 1s to 36500d; \"never\" is possible, too"),
        ("max_key_age = \"200000d\"", "36500d"),
        ("window = \"Sat\"", "\"Sat..Sun 01:00-05:00\" (UTC"),
        ("window = [\"Sat 01:00-05:00\", \"always\"]", "\"always\" is no day"),
        ("window = []", "\"always\""),
        ("rate = \"fast\"", "is no size"),
        ("rate = 1000", "at least 64K"),
        ("hotzone = \"512M\"", "from 64K to 256M"),
        ("hotzone = 70000", "multiples of 4K"),
        ("guest_latency_max = \"1us\"", "100us to 10s"),
        ("guest_latency_max = \"5\"", "is no time"),
    ] {
        let name = field.split(' ').next().unwrap();
        let error = bad(&format!("[rotation]\n{field}{MINIMAL}"));
        assert!(error.starts_with(&format!("c.toml:1: [rotation]: `{name}`: ")), "{error}");
        assert!(error.contains(word), "{field}: {error}");
        let error = bad(&format!("{MINIMAL}[volume.rotation]\n{field}"));
        let place = format!("c.toml:2: volume \"vda\": [volume.rotation]: `{name}`: ");
        assert!(error.starts_with(&place) && error.contains(word), "{field}: {error}");
    }
    // Those that the file's form forbids.
    for (field, word) in [
        ("max_age = \"1d\"", "`max_age`"),
        ("unknown_age = \"new\"", "`first-sight`"),
        ("window = 3", "a list of them"),
        ("rate = -1", "a number of bytes"),
    ] {
        let error = bad(&format!("[rotation]\n{field}{MINIMAL}"));
        assert!(error.starts_with("c.toml:2: ") && error.contains(word), "{field}: {error}");
        let error = bad(&format!("{MINIMAL}[volume.rotation]\n{field}"));
        assert!(error.starts_with("c.toml:8: ") && error.contains(word), "{field}: {error}");
    }
}

#[test]
fn a_volume_without_a_key_of_ours_to_replace_has_no_rotation() {
    let plain = MINIMAL.replace("key = \"file:/etc/sealblk/vda.key\"", "plain = true");
    let read_only = with("read_only = true");
    for (text, word) in [(plain, "no key"), (read_only, "read_only")] {
        assert_eq!(policy(&format!("{FOR_ALL}{text}\n")), RotationPolicy::default());
        let error = bad(&format!("{text}\n[volume.rotation]\nrate = \"1M\""));
        assert!(error.contains(word) && error.contains("[volume.rotation]"), "{error}");
    }
}

#[test]
fn a_window_without_an_age_is_pointed_out() {
    let config = good(&format!("[rotation]\nwindow = \"Sat 01:00-05:00\"{MINIMAL}"));
    assert!(config.warnings()[0].contains("no `max_key_age`"));
    assert_eq!(good(&format!("{FOR_ALL}{MINIMAL}")).warnings(), Vec::<String>::new());
}

#[test]
fn limits_belong_to_their_volume_and_are_checked_by_name() {
    let limited = "[volume.limits]\ntotal_iops_sec = 500\ntotal_iops_sec_max = 2000\n";
    let text = format!("{MINIMAL}{limited}{}", MINIMAL.replace("vda", "vdb"));
    let volumes = good(&text).volumes;
    let expected =
        Limits { total_iops_sec: Some(500), total_iops_sec_max: Some(2000), ..Limits::default() };
    assert_eq!([volumes[0].limits, volumes[1].limits], [expected, Limits::default()]);
    let error = bad(&format!("{MINIMAL}{limited}read_iops_sec = 1\n"));
    let place = "c.toml:2: volume \"vda\": [volume.limits]: `total_iops_sec` and `read_iops_sec`";
    assert!(error.starts_with(place), "{error}");
    for (line, word) in [
        ("total_iops = 1", "`total_iops`"),
        ("write_bytes_sec = -1", "u64"),
        ("write_bytes_sec = \"100M\"", "u64"),
    ] {
        let error = bad(&format!("{MINIMAL}[volume.limits]\n{line}\n"));
        assert!(error.starts_with("c.toml:8: ") && error.contains(word), "{line}: {error}");
    }
}

#[test]
fn a_file_without_volumes_is_refused() {
    assert_eq!(bad(""), "c.toml: there is no `[[volume]]` section, so nothing to serve");
    assert!(bad(&format!("[daemon]\ncontrol_group = \"x\"\n{MINIMAL}")).contains("without"));
}

#[test]
fn a_socket_path_that_the_kernel_cannot_bind_is_refused() {
    let long = format!("/run/{}.sock", "x".repeat(100));
    assert!(bad(&MINIMAL.replace("/run/sealblk/vda.sock", &long)).contains("at most 107"));
}

#[test]
fn a_time_limit_for_one_io_follows_from_what_a_failure_does() {
    let limit = |text: &str| good(&with(text)).volumes[0].io_timeout;
    let seconds = |n| Some(Duration::from_secs(n));
    assert_eq!(limit(""), seconds(30));
    assert_eq!(limit("io_timeout = \"5s\""), seconds(5));
    assert_eq!(limit("io_timeout = \"none\""), None);
    assert_eq!(limit("on_error = \"hold\""), None);
    assert_eq!(limit("on_error = \"hold\"\nhold_limit = \"10s\""), seconds(10));
    assert_eq!(limit("on_error = \"hold\"\nhold_limit = \"1h\""), seconds(30));
    assert_eq!(limit("on_error = \"hold\"\nio_timeout = \"2s\""), seconds(2));
    for (text, what) in [("0s", "out of range"), ("2h", "out of range"), ("5", "is no time")] {
        let error = bad(&with(&format!("io_timeout = {text:?}")));
        assert!(error.contains(what), "{text}: {error}");
    }
}

#[test]
fn holding_may_have_a_limit() {
    let limit = |text: &str| good(&with(text)).volumes[0].hold_limit;
    assert_eq!(limit("on_error = \"hold\""), None);
    assert_eq!(limit("on_error = \"hold\"\nhold_limit = \"none\""), None);
    let five = Some(Duration::from_secs(300));
    assert_eq!(limit("on_error = \"hold\"\nhold_limit = \"5min\""), five);
    for (lines, expected) in [
        ("hold_limit = \"5min\"", "needs `on_error = \"hold\"`"),
        ("on_error = \"report\"\nhold_limit = \"5min\"", "needs `on_error = \"hold\"`"),
        ("on_error = \"hold\"\nhold_limit = \"5m\"", "is no time"),
        ("on_error = \"hold\"\nhold_limit = \"10ms\"", "out of range"),
    ] {
        let text = bad(&with(lines));
        assert!(text.contains(expected), "{lines}: {text}");
    }
}

#[test]
fn key_managers_must_be_usable_where_a_volume_needs_them_or_somebody_names_them() {
    let missing = "[daemon]\nkey_managers = \"/nowhere/keys.toml\"\n";
    let error = good(&format!("{missing}{MINIMAL}")).load_key_managers().unwrap_err().to_string();
    assert!(error.contains("/nowhere/keys.toml: No such file"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    std::fs::write(&file, "").unwrap();
    let named = format!("[daemon]\nkey_managers = {file:?}\n");
    let mut config = good(&format!("{named}{MINIMAL}new_key = \"vault:a\"\n"));
    config.load_key_managers().unwrap();
    let volume = &config.volumes[0];
    let key = volume.new_key.as_ref().unwrap();
    let error = volume.key_managers.fetch(key).unwrap_err().to_string();
    assert!(error.contains("keys.toml has no section [vault]"), "{error}");
}
