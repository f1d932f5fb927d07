//! `sealblk-agent` with daemons of its own, in a directory of its own, and a client of its protocol.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType, connect, recv, sendmsg, socket, sockopt,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::log::Log;
use crate::process;
use crate::programs::agent_program;
use crate::volume::Scratch;
use crate::wait::until;

/// How long an answer, a start or an end may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A user without rights, and its group.
pub const NOBODY: u32 = 65534;

/// An agent, its configuration, and its directories.
pub struct Agent {
    /// Everything of it is in here; `disks/` is where volumes may be.
    pub scratch: Scratch,
    as_nobody: bool,
    child: Option<Child>,
    log: Log,
}

impl Agent {
    /// Starts one whose daemons run as `nobody` if we are root, else as us; `as_nobody`: the agent
    /// itself has no rights, either. `agent` and `more` are lines for its configuration: of `[agent]`,
    /// and what comes behind it.
    pub fn start(as_nobody: bool, agent: &str, more: &str) -> Result<Self> {
        let scratch = Scratch::new()?;
        let at = |name: &str| scratch.file(name);
        std::fs::create_dir(at("disks"))?;
        let text = format!(
            "[agent]\nsocket = {:?}\nrun_dir = {:?}\nstate_dir = {:?}\ndaemon_state_dir = {:?}\n\
             file_prefixes = [{:?}]\nlauncher = \"process\"\nuser = \"{NOBODY}\"\ngroup = \"{NOBODY}\"\n\
             {agent}\n{more}\n",
            at("agent/agent.sock"),
            at("run"),
            at("state"),
            at("daemons"),
            at("disks"),
        );
        // Who has an own group for sockets says so.
        let text = match agent.contains("socket_owner_group") {
            true => text,
            false => text.replace("[agent]\n", "[agent]\nsocket_owner_group = \"\"\n"),
        };
        std::fs::write(at("agent.toml"), text)?;
        if rustix::process::geteuid().is_root() {
            let owner = as_nobody.then_some(NOBODY);
            std::os::unix::fs::chown(scratch.path(), owner, owner)?;
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755))?;
        }
        let mut agent = Self { scratch, as_nobody, child: None, log: Log::default() };
        agent.run()?;
        Ok(agent)
    }

    /// Starts it again, after [`Self::kill`].
    pub fn run(&mut self) -> Result<()> {
        let mut command = match self.as_nobody && rustix::process::geteuid().is_root() {
            true => {
                let mut command = Command::new("setpriv");
                let id = NOBODY.to_string();
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]);
                command.arg(agent_program()?);
                command
            }
            false => Command::new(agent_program()?),
        };
        command.arg("--config").arg(self.scratch.file("agent.toml")).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("can't run sealblk-agent")?;
        if let Some(stderr) = child.stderr.take() {
            self.log.follow(stderr);
        }
        self.child = Some(child);
        until("the agent to answer", LIMIT, || {
            let child = self.child.as_mut().context("not started")?;
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("it ended: {status}");
            }
            Ok(self.ask(&json!({"op": "hello"}), None).ok().map(|_| ()))
        })
        .with_context(|| self.log.text())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the agent does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the agent does not run")?;
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        let status = until("the agent's end", LIMIT, || Ok(child.try_wait()?))?;
        ensure!(status.success(), "{status}\n{}", self.log.text());
        Ok(())
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.scratch.file("agent/agent.sock")
    }

    /// What it and its daemons logged.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Asks something, with a key in a descriptor if there is one; the answer, be it an error.
    pub fn ask(&self, request: &Value, key: Option<&[u8]>) -> Result<Value> {
        let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(LIMIT))?;
        connect(&socket, &SocketAddrUnix::new(self.socket())?)?;
        let memfd: Option<OwnedFd> = match key {
            Some(key) => {
                let mut file = File::from(memfd_create("key", MemfdFlags::CLOEXEC)?);
                file.write_all(key)?;
                Some(file.into())
            }
            None => None,
        };
        let descriptors: Vec<_> = memfd.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let bytes = serde_json::to_vec(request)?;
        sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
        let mut answer = vec![0; 256 << 10];
        let (len, _) = recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
        ensure!(len > 0, "closed without an answer to {request}");
        Ok(serde_json::from_slice(&answer[..len])?)
    }

    /// Asks what must be answered well; gives what is in `ok`.
    pub fn ok(&self, request: &Value, key: Option<&[u8]>) -> Result<Value> {
        let mut answer = self.ask(request, key)?;
        ensure!(answer["ok"].is_object(), "{request}: {answer}\n{}", self.log.text());
        Ok(answer["ok"].take())
    }

    /// Asks what must be refused; gives the kind.
    pub fn refusal(&self, request: &Value, key: Option<&[u8]>) -> Result<String> {
        let answer = self.ask(request, key)?;
        let kind = answer["error"]["kind"].as_str();
        Ok(kind.with_context(|| format!("{request}: {answer}"))?.to_owned())
    }

    /// A new file that volumes may be in.
    pub fn disk(&self, name: &str, size_bytes: u64) -> Result<PathBuf> {
        let path = self.scratch.file("disks").join(name);
        File::create(&path)?.set_len(size_bytes)?;
        if self.as_nobody && rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY))?;
        }
        Ok(path)
    }

    /// All processes of its daemons, keepers too, that are no zombies.
    pub fn daemons(&self) -> Result<Vec<Pid>> {
        let mark = self.scratch.file("run");
        let mark = mark.to_str().context("no UTF-8")?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let ours = line.contains("--run-dir") && line.contains(mark);
            found.extend(Pid::from_raw(pid).filter(|pid| ours && process::is_alive(*pid)));
        }
        Ok(found)
    }

    /// The process that serves an instance.
    pub fn worker(&self, instance: &str) -> Result<Pid> {
        until("the instance's daemon", LIMIT, || {
            let listed = self.ok(&json!({"op": "list", "instance": instance}), None)?;
            let running = listed["instances"][0]["state"] == "running";
            let pid = listed["instances"][0]["pid"].as_i64().filter(|_| running);
            Ok(pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)))
        })
    }

    /// Kills it and waits for its end.
    pub fn kill_worker(&self, instance: &str) -> Result<()> {
        process::end(self.worker(instance)?, Signal::KILL)
    }

    /// Nothing is served and nothing left of what was.
    pub fn must_be_idle(&self) -> Result<()> {
        let daemons = self.daemons()?;
        ensure!(daemons.is_empty(), "{daemons:?} run still\n{}", self.log.text());
        for directory in ["run", "run/instances"] {
            for entry in std::fs::read_dir(self.scratch.file(directory))? {
                let name = entry?.file_name();
                ensure!(name == "instances", "{directory}/{} is left", Path::new(&name).display());
            }
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The agent first: it must not start another.
        self.kill().ok();
        for pid in self.daemons().unwrap_or_default() {
            kill_process(pid, Signal::KILL).ok();
        }
    }
}
