//! What a target's answer means.
//!
//! Contract: every status ends in exactly one [`Answer`]; what isn't known is an error of the
//! medium, never success. Codes: SAM-5 section 5.3.1, SPC-5 annex F.

/// `SCSI_STATUS_…` of scsi-lowlevel.h and libiscsi's own beyond them.
pub(super) const GOOD: i32 = 0;
const CHECK_CONDITION: i32 = 2;
const CONDITION_MET: i32 = 4;
const BUSY: i32 = 8;
const RESERVATION_CONFLICT: i32 = 0x18;
const TASK_SET_FULL: i32 = 0x28;
const ACA_ACTIVE: i32 = 0x30;
const TASK_ABORTED: i32 = 0x40;
pub(super) const REDIRECT: i32 = 0x101;
pub(super) const CANCELLED: i32 = 0x0f00_0000;

/// Sense keys.
const NO_SENSE: i32 = 0;
const RECOVERED: i32 = 1;
const NOT_READY: i32 = 2;
const ILLEGAL_REQUEST: i32 = 5;
const UNIT_ATTENTION: i32 = 6;
const DATA_PROTECT: i32 = 7;
const ABORTED_COMMAND: i32 = 0x0b;

/// A command's end, as libiscsi gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) status: i32,
    /// Bytes that were not transferred; none: the target moved more than asked for, or can't count.
    pub(super) missing_bytes: Option<u32>,
    pub(super) sense_key: i32,
    pub(super) ascq: i32,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done, but for this many bytes.
    Done {
        /// Bytes not transferred.
        missing_bytes: u32,
    },
    /// The unit tells news first; the command was not carried out: send it again at once.
    Again(News),
    /// It is busy: send it again in a while.
    Later,
    /// It failed for good.
    Failed(i32),
    /// The unit doesn't know the command.
    Unknown,
    /// The session is gone.
    Lost,
}

/// What a unit attention condition tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// The unit was powered on (29h 01h): whatever was in its volatile cache is gone.
    PowerOn,
    /// It has another size (2Ah 09h).
    Capacity,
    /// Anything else.
    Other,
}

impl Ended {
    pub(super) fn answer(self) -> Answer {
        match self.status {
            GOOD | CONDITION_MET => match self.missing_bytes {
                Some(missing_bytes) => Answer::Done { missing_bytes },
                None => Answer::Failed(libc::EIO),
            },
            CHECK_CONDITION => self.sense(),
            BUSY | TASK_SET_FULL | ACA_ACTIVE | TASK_ABORTED => Answer::Later,
            RESERVATION_CONFLICT => Answer::Failed(crate::FENCED),
            CANCELLED => Answer::Lost,
            // SCSI_STATUS_ERROR: libiscsi could make nothing of the answer, or ran out of memory.
            _ => Answer::Later,
        }
    }

    fn sense(self) -> Answer {
        let (code, qualifier) = (self.ascq >> 8 & 0xff, self.ascq & 0xff);
        match self.sense_key {
            NO_SENSE | RECOVERED => match self.missing_bytes {
                Some(missing_bytes) => Answer::Done { missing_bytes },
                None => Answer::Failed(libc::EIO),
            },
            UNIT_ATTENTION => Answer::Again(match (code, qualifier) {
                (0x29, 0x01) => News::PowerOn,
                (0x2a, 0x09) => News::Capacity,
                _ => News::Other,
            }),
            // Becoming ready, or an operation in progress: 04h with 01h, 04h, 07h, 09h, 0Ah …; a
            // medium that isn't there (3Ah) doesn't come by waiting.
            NOT_READY if code == 0x04 && qualifier != 0x03 => Answer::Later,
            ABORTED_COMMAND => Answer::Later,
            ILLEGAL_REQUEST if code == 0x20 => Answer::Unknown,
            // LOGICAL BLOCK ADDRESS OUT OF RANGE: what a block device says behind its end.
            ILLEGAL_REQUEST if code == 0x21 => Answer::Failed(libc::ENOSPC),
            DATA_PROTECT if (code, qualifier) == (0x27, 0x07) => Answer::Failed(libc::ENOSPC),
            DATA_PROTECT => Answer::Failed(libc::EROFS),
            _ => Answer::Failed(libc::EIO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sense(sense_key: i32, ascq: i32) -> Answer {
        Ended { status: CHECK_CONDITION, missing_bytes: Some(0), sense_key, ascq }.answer()
    }

    #[test]
    fn each_answer_has_its_meaning() {
        let good = |missing_bytes| Ended { status: GOOD, missing_bytes, sense_key: 0, ascq: 0 };
        assert_eq!(good(Some(7)).answer(), Answer::Done { missing_bytes: 7 });
        assert_eq!(good(None).answer(), Answer::Failed(libc::EIO), "an overflow is no success");
        assert_eq!(sense(6, 0x2901), Answer::Again(News::PowerOn));
        assert_eq!(sense(6, 0x2900), Answer::Again(News::Other));
        assert_eq!(sense(6, 0x2a09), Answer::Again(News::Capacity));
        assert_eq!(sense(6, 0x3f0e), Answer::Again(News::Other));
        assert_eq!(sense(5, 0x2100), Answer::Failed(libc::ENOSPC));
        assert_eq!(sense(5, 0x2000), Answer::Unknown);
        assert_eq!(sense(7, 0x2707), Answer::Failed(libc::ENOSPC));
        assert_eq!(sense(7, 0x2700), Answer::Failed(libc::EROFS));
        assert_eq!(sense(3, 0x1100), Answer::Failed(libc::EIO));
        assert_eq!(sense(2, 0x0401), Answer::Later);
        assert_eq!(sense(2, 0x3a00), Answer::Failed(libc::EIO));
        for status in [BUSY, TASK_SET_FULL, TASK_ABORTED] {
            let ended = Ended { status, missing_bytes: Some(0), sense_key: 0, ascq: 0 };
            assert_eq!(ended.answer(), Answer::Later);
        }
        let conflict = Ended { status: RESERVATION_CONFLICT, ..good(Some(0)) };
        assert_eq!(conflict.answer(), Answer::Failed(crate::FENCED));
        assert_eq!(Ended { status: CANCELLED, ..good(Some(0)) }.answer(), Answer::Lost);
    }
}
