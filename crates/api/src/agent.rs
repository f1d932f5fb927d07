//! What the node's agent is asked, and answers (docs/agent-protocol.md, which is the contract).
//!
//! Requests refuse fields that they don't know, answers ignore them: a caller learns at once that an
//! old agent would not do what it asks for.

use serde::{Deserialize, Serialize};

use crate::{Limits, Resize, RotationOrder, RotationState, Status};

/// Version of the protocol.
pub const AGENT_API: u32 = 1;

/// Where the agent listens.
pub const AGENT_SOCKET: &str = "/run/sealblk-agent/agent.sock";

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AgentRequest {
    /// Who are you: [`Hello`].
    Hello,
    /// Serve a volume: [`Attached`].
    Attach(Box<Attach>),
    /// Let go of a volume's device, and keep its key: [`Gone`].
    Park {
        /// The server's UUID.
        instance: String,
        /// The volume's UUID.
        volume: String,
    },
    /// Let go of a volume: [`Gone`].
    Detach {
        /// The server's UUID.
        instance: String,
        /// The volume's UUID.
        volume: String,
    },
    /// Let go of all volumes of an instance: [`Gone`].
    Forget {
        /// The server's UUID.
        instance: String,
    },
    /// What is there: [`Listed`].
    List {
        /// Only this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance: Option<String>,
        /// Only what comes after it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// A volume has another size: [`Resize`].
    Resize {
        /// The server's UUID.
        instance: String,
        /// The volume's UUID.
        volume: String,
    },
    /// What all daemons tell: [`NodeStatus`].
    Status {
        /// Only this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance: Option<String>,
        /// Only what comes after it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// An order for the rotations of one or many volumes: [`Rotated`].
    Rotate {
        /// Whose.
        select: Select,
        /// What.
        order: RotationOrder,
    },
}

/// Which volumes are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// All of the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// All of an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// This one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// A volume to be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The server's UUID.
    pub instance: String,
    /// The volume's UUID.
    pub volume: String,
    /// Where it lies.
    pub source: Source,
    /// Where its passphrase is.
    pub key: Key,
    /// The key manager's name of the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Who may get it.
    #[serde(default)]
    pub key_access: KeyAccess,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// Whether it may be formatted.
    #[serde(default)]
    pub format: Format,
    /// How much the guest may ask of it, in the words of Nova's `qos_specs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What the guest reads as the disk's serial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Most queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
}

/// Where a volume lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A block device of the host.
    Device {
        /// Its path.
        path: String,
    },
    /// A file.
    File {
        /// Its path.
        path: String,
    },
    /// An image on Ceph.
    Rbd {
        /// `POOL/IMAGE`
        image: String,
        /// Ceph's configuration file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        conf: Option<String>,
        /// Ceph's user, without `client.`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// File with its key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keyring: Option<String>,
        /// Monitors, `HOST:PORT`, where the configuration file has none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mon_hosts: Vec<String>,
    },
    /// A logical unit behind iSCSI, without the kernel's initiator.
    Iscsi {
        /// `iscsi://…`
        uri: String,
    },
}

/// Where a passphrase is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "lowercase", deny_unknown_fields)]
pub enum Key {
    /// In a descriptor of this message.
    Descriptor,
    /// At a key manager: the agent asks it.
    Source {
        /// `barbican:UUID` and the like.
        source: String,
    },
    /// The instance's daemon has it, or the node.
    Kept,
}

/// Who may get a key: Nova's words for the secrets of a vTPM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyAccess {
    /// Only who has the user's token.
    #[default]
    User,
    /// The deployment's service, too.
    Deployment,
    /// The node keeps it, sealed.
    Host,
}

/// Whether a volume may be formatted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// No.
    #[default]
    Never,
    /// If nothing was ever written to it.
    IfBlank,
}

/// Answer to [`AgentRequest::Hello`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// Version of the agent.
    pub version: String,
    /// Version of the protocol.
    pub api: u32,
    /// Kinds of volumes that can be served.
    pub drivers: Vec<String>,
    /// What this node is configured for.
    pub key_access: Vec<KeyAccess>,
    /// Where QEMU's sockets are.
    pub socket_dir: String,
    /// `ready`
    pub state: String,
}

/// Answer to [`AgentRequest::Attach`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attached {
    /// The vhost-user socket, which listens.
    pub socket: String,
    /// Size of the disk, in bytes.
    pub capacity_bytes: u64,
    /// The disk's serial.
    pub serial: String,
    /// The guest may not write.
    pub read_only: bool,
    /// 1 or 2.
    pub luks_version: u8,
    /// UUID in the LUKS header.
    pub luks_uuid: String,
    /// It was blank, and was formatted now.
    pub formatted: bool,
    /// `serving`
    pub state: String,
}

/// Answer to [`AgentRequest::Park`] and others that let go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gone {
    /// `parked` or `absent`
    pub state: String,
}

/// Answer to [`AgentRequest::List`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listed {
    /// In the order of their UUIDs.
    pub instances: Vec<ListedInstance>,
    /// There are more after this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An instance's daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListedInstance {
    /// The server's UUID.
    pub instance: String,
    /// The daemon's process.
    pub pid: u32,
    /// `running`, `starting` or `lost`
    pub state: String,
    /// Its volumes.
    pub volumes: Vec<ListedVolume>,
}

/// A volume of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListedVolume {
    /// The volume's UUID.
    pub volume: String,
    /// `serving`, `parked` or `failed`
    pub state: String,
    /// The vhost-user socket.
    pub socket: String,
    /// Where it lies.
    pub source: Option<Source>,
    /// QEMU is connected.
    pub connected: bool,
    /// The key manager's name of its secret.
    pub key_id: Option<String>,
    /// Who may get that.
    pub key_access: KeyAccess,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Answer to [`AgentRequest::Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Version of the agent.
    pub version: String,
    /// In the order of their UUIDs.
    pub instances: Vec<InstanceStatus>,
    /// Rotations of the node.
    pub rotations: NodeRotations,
    /// There are more after this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What an instance's daemon tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceStatus {
    /// The server's UUID.
    pub instance: String,
    /// The daemon's process.
    pub pid: u32,
    /// What it tells; none: it doesn't answer.
    pub status: Option<Status>,
    /// Why it doesn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Rotations of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRotations {
    /// Under way.
    pub running: u32,
    /// Ordered, waiting for their turn.
    pub queued: u32,
    /// Most at once; 0: no limit.
    pub limit: u32,
}

/// Answer to [`AgentRequest::Rotate`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rotated {
    /// Every volume that was meant.
    pub volumes: Vec<RotatedVolume>,
}

/// What an order did to a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RotatedVolume {
    /// The server's UUID.
    pub instance: String,
    /// The volume's UUID.
    pub volume: String,
    /// Waits for its turn.
    pub queued: bool,
    /// What its rotation does.
    pub state: RotationState,
    /// Why the order was not carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An answer as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer<T> {
    /// It is done.
    Ok(T),
    /// It is not.
    Error(AgentError),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentError {
    /// For a program.
    pub kind: ErrorKind,
    /// For a person; complete by itself.
    pub message: String,
}

impl std::fmt::Display for AgentError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for AgentError {}

/// What kind of failure it is; docs/agent-protocol.md says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the table in docs/agent-protocol.md")]
pub enum ErrorKind {
    Invalid,
    Refused,
    NotFound,
    Conflict,
    Unsupported,
    NotEncrypted,
    Header,
    KeyDenied,
    KeyMissing,
    KeyUnreachable,
    KeyWrong,
    Volume,
    Timeout,
    #[serde(other)]
    Internal,
}

/// Either answer of [`AgentRequest::Resize`].
pub type Resized = Answer<Resize>;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_read_as_the_contract_has_them() {
        let text = json!({
            "op": "attach", "instance": "i", "volume": "v",
            "source": {"kind": "rbd", "image": "rbd/x", "user": "cinder"},
            "key": {"from": "source", "source": "barbican:1"}, "format": "if-blank",
            "key_access": "deployment", "limits": {"total_iops_sec": 500},
        });
        let AgentRequest::Attach(attach) = serde_json::from_value(text).unwrap() else { panic!() };
        assert_eq!(attach.format, Format::IfBlank);
        assert_eq!(attach.key, Key::Source { source: "barbican:1".to_owned() });
        let hello: AgentRequest = serde_json::from_value(json!({"op": "hello"})).unwrap();
        assert_eq!(hello, AgentRequest::Hello);
        let text = json!({"op": "rotate", "select": {"all": true}, "order": {"action": "pause"}});
        assert!(serde_json::from_value::<AgentRequest>(text).is_ok());
    }

    #[test]
    fn unknown_fields_of_a_request_are_refused() {
        for text in [
            json!({"op": "park", "instance": "i", "volume": "v", "force": true}),
            json!({"op": "attach", "instance": "i", "volume": "v", "key": {"from": "kept"},
                   "source": {"kind": "device", "path": "/dev/x", "offset": 1}}),
            json!({"op": "attach", "instance": "i", "volume": "v", "key": {"from": "kept"},
                   "source": {"kind": "device", "path": "/dev/x"}, "formt": "never"}),
        ] {
            assert!(serde_json::from_value::<AgentRequest>(text.clone()).is_err(), "{text}");
        }
    }

    #[test]
    fn answers_read_as_the_contract_has_them() {
        let text = json!({"error": {"kind": "key-missing", "message": "m"}});
        let answer: Answer<Gone> = serde_json::from_value(text.clone()).unwrap();
        let error = AgentError { kind: ErrorKind::KeyMissing, message: "m".to_owned() };
        assert_eq!(answer, Answer::Error(error));
        assert_eq!(serde_json::to_value(&answer).unwrap(), text);
        let newer = json!({"error": {"kind": "quantum", "message": "m"}});
        let Answer::Error(error) = serde_json::from_value::<Answer<Gone>>(newer).unwrap() else {
            panic!()
        };
        assert_eq!(error.kind, ErrorKind::Internal);
    }
}
