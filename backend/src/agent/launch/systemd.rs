//! Daemons as transient units of systemd: `systemd-run`.
//!
//! Contract: the unit `sealblk-INSTANCE.service` has the sandbox of dist/systemd/sealblkd@.service,
//! but for the network, which volumes that come later may need. No `Restart=`: the keeper does that,
//! with the keys. Its log goes to the journal.

use std::io;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::Order;
use crate::agent::config::AgentConfig;
use crate::agent::host::{self, Ids};

/// What every unit has; as the file in dist/.
const SANDBOX: &[&str] = &[
    "UMask=0177",
    "LimitMEMLOCK=1G",
    "LimitNOFILE=65536",
    "LimitCORE=0",
    "OOMScoreAdjust=-900",
    "KillMode=mixed",
    "TimeoutStopSec=60s",
    "CapabilityBoundingSet=",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "DevicePolicy=closed",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "ProtectProc=invisible",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service memfd_secret",
    "SystemCallErrorNumber=EPERM",
];

/// How units are made.
#[derive(Debug, Clone)]
pub(in crate::agent) struct Units {
    properties: Vec<String>,
}

impl Units {
    pub(super) fn new(config: &AgentConfig, ids: &Ids) -> Self {
        let agent = &config.agent;
        let mut properties: Vec<_> = SANDBOX.iter().map(|&one| one.to_owned()).collect();
        properties.push(format!("User={}", ids.uid));
        properties.push(format!("Group={}", ids.gid));
        if let Some(gid) = ids.socket_gid {
            properties.push(format!("SupplementaryGroups={gid}"));
        }
        for path in [&agent.run_dir, &agent.daemon_state_dir] {
            properties.push(format!("ReadWritePaths={}", path.display()));
        }
        if let Some(parent) = agent.audit_log.as_deref().and_then(|path| path.parent()) {
            properties.push(format!("ReadWritePaths={}", parent.display()));
        }
        properties.extend(agent.unit_properties.iter().cloned());
        Self { properties }
    }

    /// What `systemd-run` is given.
    fn arguments(&self, order: &Order<'_>) -> Vec<String> {
        let mut arguments = vec![
            format!("--unit={}", unit(order.instance)),
            format!("--description=Encrypted volumes of server {}", order.instance),
            "--service-type=exec".to_owned(),
            "--collect".to_owned(),
            "--quiet".to_owned(),
        ];
        arguments.extend(self.properties.iter().map(|one| format!("--property={one}")));
        arguments.push("--".to_owned());
        arguments.push(order.program.display().to_string());
        arguments.extend_from_slice(order.args);
        arguments
    }

    pub(super) fn start(&self, order: &Order<'_>) -> io::Result<()> {
        // One that failed earlier keeps its name until somebody says so; none is the usual case.
        let _ = systemctl(&["reset-failed", &unit(order.instance)]);
        let output = run("systemd-run", &self.arguments(order))?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("systemd-run: {}", words.trim())))
    }

    pub(super) fn runs(&self, instance: &str) -> bool {
        let state = systemctl(&["show", "--value", "--property=ActiveState", &unit(instance)]);
        state.is_ok_and(|output| {
            let state = String::from_utf8_lossy(&output.stdout);
            matches!(state.trim(), "active" | "activating" | "deactivating" | "reloading")
        })
    }

    pub(super) fn pid(&self, instance: &str) -> Option<u32> {
        let output = systemctl(&["show", "--value", "--property=MainPID", &unit(instance)]).ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok().filter(|pid| *pid != 0)
    }

    pub(super) fn finish(&self, instance: &str, limit: Duration) {
        let end = Instant::now() + limit;
        while self.runs(instance) && Instant::now() < end {
            host::pause();
        }
        if self.runs(instance)
            && let Err(error) = systemctl(&["stop", &unit(instance)])
        {
            tracing::error!(instance, %error, "cannot stop its unit");
        }
    }
}

fn unit(instance: &str) -> String {
    format!("sealblk-{instance}.service")
}

fn systemctl(arguments: &[&str]) -> io::Result<Output> {
    run("systemctl", &arguments.iter().map(|&one| one.to_owned()).collect::<Vec<_>>())
}

fn run(program: &str, arguments: &[String]) -> io::Result<Output> {
    Command::new(program).args(arguments).stdin(Stdio::null()).output()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Each line `Name=…` of `[Service]`, without the comments.
    fn dist_service() -> Vec<String> {
        let text = include_str!("../../../../dist/systemd/sealblkd@.service");
        let service =
            text.split("\n[Service]\n").nth(1).unwrap().split("\n[Install]\n").next().unwrap();
        let lines = service.lines().map(str::trim).filter(|line| line.contains('='));
        lines.filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    /// What a transient unit has in another way, or not at all.
    const OTHERWISE: &[&str] = &[
        "Type",
        "ExecStart",
        "Restart",
        "RestartSec",
        "RestartPreventExitStatus",
        "TimeoutStartSec",
        "User",
        "Group",
        "RuntimeDirectory",
        "RuntimeDirectoryMode",
        "RuntimeDirectoryPreserve",
        "StateDirectory",
        "StateDirectoryMode",
        "PrivateNetwork",
        "RestrictAddressFamilies",
    ];

    #[test]
    fn the_sandbox_is_that_of_the_unit_in_dist() {
        for line in dist_service() {
            let name = line.split('=').next().unwrap();
            if !OTHERWISE.contains(&name) {
                assert!(SANDBOX.contains(&line.as_str()), "{line}");
            }
        }
    }

    #[test]
    fn a_unit_is_named_after_the_instance_and_has_its_user() {
        let mut config = AgentConfig::parse("", Path::new("c")).unwrap();
        config.agent.unit_properties = vec!["IPAddressDeny=any".into()];
        let ids = Ids { root: true, uid: 7, gid: 8, socket_gid: Some(9), socket_group: None };
        let units = Units::new(&config, &ids);
        let args = ["--instance".to_owned(), "x".to_owned()];
        let program = Path::new("/usr/bin/sealblkd");
        let arguments = units.arguments(&Order { instance: "x", program, args: &args });
        for one in [
            "--unit=sealblk-x.service",
            "--property=User=7",
            "--property=Group=8",
            "--property=SupplementaryGroups=9",
            "--property=NoNewPrivileges=yes",
            "--property=ReadWritePaths=/run/sealblk",
            "--property=IPAddressDeny=any",
        ] {
            assert!(arguments.iter().any(|argument| argument == one), "{one}: {arguments:?}");
        }
        let end = ["--", "/usr/bin/sealblkd", "--instance", "x"];
        assert!(arguments.ends_with(&end.map(str::to_owned)), "{arguments:?}");
    }
}
