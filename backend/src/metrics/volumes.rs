//! What the volumes are, who uses them, and whether their storage answers.

use sealblk_api::{SessionState, StorageState, VolumeStatus};

use super::page::{Kind, Page};

pub(super) fn write(page: &mut Page, volumes: &[VolumeStatus]) {
    page.family(
        "sealblk_volume_info",
        Kind::Gauge,
        "What encrypts the volume; always 1. Without encryption (plain) the labels are empty.",
    );
    for volume in volumes {
        let none = sealblk_api::Encryption::default();
        let (has, e) = match &volume.encryption {
            Some(encryption) => (true, encryption),
            None => (false, &none),
        };
        let number = |n: u32| if has { n.to_string() } else { String::new() };
        let labels = [
            ("volume", volume.name.as_str()),
            ("luks_version", &number(e.luks_version.into())),
            ("luks_uuid", &e.uuid),
            ("cipher", &e.cipher),
            ("key_bits", &number(e.key_bits)),
            ("sector_bytes", &number(e.sector_bytes)),
            ("implementation", &e.implementation),
        ];
        page.sample(&labels, 1);
    }
    let mut family = |name, kind, help, value: fn(&VolumeStatus) -> u64| {
        page.family(name, kind, help);
        for volume in volumes {
            page.sample(&[("volume", &volume.name)], value(volume));
        }
    };
    family(
        "sealblk_volume_capacity_bytes",
        Kind::Gauge,
        "Size of the disk that the guest sees.",
        |volume| volume.capacity_bytes,
    );
    family(
        "sealblk_storage_losses_total",
        Kind::Counter,
        "Times that the storage path was lost.",
        |volume| volume.storage.losses,
    );
    family(
        "sealblk_storage_lost_seconds_total",
        Kind::Counter,
        "How long the storage path was lost in all, the present loss included.",
        |volume| volume.storage.lost_seconds_total,
    );
    family(
        "sealblk_storage_waiting",
        Kind::Gauge,
        "I/Os that are held, or stuck in a volume that does not answer.",
        |volume| volume.storage.waiting,
    );
    page.family(
        "sealblk_storage_state",
        Kind::Gauge,
        "1 for the state that the storage path is in, 0 for the others.",
    );
    for volume in volumes {
        for state in StorageState::ALL {
            let is = u64::from(volume.storage.state == state);
            page.sample(&[("volume", &volume.name), ("state", state.as_str())], is);
        }
    }
    page.family(
        "sealblk_session_state",
        Kind::Gauge,
        "1 for the state that the vhost-user session is in, 0 for the others.",
    );
    for volume in volumes {
        for state in SessionState::ALL {
            let is = u64::from(volume.state == state);
            page.sample(&[("volume", &volume.name), ("state", state.as_str())], is);
        }
    }
}
